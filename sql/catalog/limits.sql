-- Time limits for a session, unless it has stricter ones already.
SELECT set_config(l.name, l.value, false)
FROM (VALUES ('statement_timeout', %(statement)s::text), ('lock_timeout', %(lock)s::text)) l (name, value)
WHERE current_setting(l.name)::interval = '0' OR current_setting(l.name)::interval > l.value::interval;
