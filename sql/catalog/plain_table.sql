-- Whether a name is that of a table which the planner reads as it is written: no view, no parts or heirs, no rules.
SELECT 1
FROM pg_catalog.pg_class c
WHERE c.oid = pg_catalog.to_regclass(%(name)s::text)
AND c.relkind IN ('r', 'm') AND NOT c.relhassubclass AND NOT c.relhasrules
