-- Every index of the user's tables: its size, whether another index contains it, whether it is on an expression.
SELECT
    i.indexrelid::bigint AS oid,
    c.relname AS name,
    i.indexrelid::pg_catalog.regclass::text AS quoted,
    i.indrelid::pg_catalog.regclass::text AS on_table,
    CASE WHEN c.relkind = 'I' THEN 0 ELSE pg_catalog.pg_relation_size(i.indexrelid) END AS bytes,
    c.relispartition AS part,
    i.indexprs IS NOT NULL AS expressive
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
WHERE i.indexrelid >= 16384
ORDER BY i.indexrelid
