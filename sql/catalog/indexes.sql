-- Every index of the database with its size and whether the planner may use it.
SELECT i.relname AS name,
       t.relname AS "table",
       pg_get_indexdef(i.oid) AS definition,
       pg_relation_size(i.oid) AS bytes,
       x.indisvalid AND x.indisready AS valid
FROM pg_index x
JOIN pg_class i ON i.oid = x.indexrelid
JOIN pg_class t ON t.oid = x.indrelid
WHERE t.relnamespace = 'public'::regnamespace
ORDER BY t.relname, i.relname;
