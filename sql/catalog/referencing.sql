-- Foreign keys without an index that begins with their columns, by referenced table.
SELECT
    pn.nspname AS parent_schema,
    p.relname AS parent,
    cn.nspname AS schema,
    c.relname AS table_name,
    greatest(c.reltuples, 0) AS rows,
    c.relpages AS pages,
    (
        SELECT pg_catalog.array_agg(a.attname::text ORDER BY k.n)
        FROM unnest(f.conkey) WITH ORDINALITY AS k (attnum, n)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.attnum
    ) AS columns,
    (
        SELECT pg_catalog.array_agg(a.attname::text ORDER BY k.n)
        FROM unnest(f.confkey) WITH ORDINALITY AS k (attnum, n)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = k.attnum
    ) AS parent_columns
FROM pg_catalog.pg_constraint f
JOIN pg_catalog.pg_class p ON p.oid = f.confrelid
JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
JOIN pg_catalog.pg_class c ON c.oid = f.conrelid
JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace
WHERE f.contype = 'f' AND f.conparentid = 0
AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_index i
    WHERE i.indrelid = f.conrelid AND i.indisvalid AND i.indpred IS NULL
    AND (i.indkey::int2[])[0:pg_catalog.cardinality(f.conkey) - 1] OPERATOR(pg_catalog.@>) f.conkey
)
ORDER BY pn.nspname, p.relname, f.conname
