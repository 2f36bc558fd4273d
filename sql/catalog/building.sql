-- Settings of a session that builds or drops indexes: no time limit, and it ends when its client is gone.
-- Only settings that this server has.
SELECT set_config(s.name, w.value, false)
FROM (VALUES ('statement_timeout', '0'),
             ('transaction_timeout', '0'),
             ('client_connection_check_interval', '1s'),
             ('standard_conforming_strings', 'on')) w (name, value)
JOIN pg_settings s ON s.name = w.name;
