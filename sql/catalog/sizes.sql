-- Rows and bytes of each table, its indexes apart.
SELECT c.relname AS "table",
       pg_relation_size(c.oid) AS bytes,
       pg_indexes_size(c.oid) AS index_bytes
FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
ORDER BY c.relname;
