-- Whether a name is that of a plain table: no view, no partitions, no inheritance, no rules.
SELECT 1
FROM pg_catalog.pg_class c
WHERE c.oid = pg_catalog.to_regclass(%(name)s::text)
AND c.relkind IN ('r', 'm') AND NOT c.relhassubclass AND NOT c.relhasrules
