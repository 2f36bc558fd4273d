-- The user's tables, largest first, with their primary keys and the leading columns of their indexes.
SELECT c.relname AS name,
       format('%I.%I', n.nspname, c.relname) AS "table",
       size.rows::bigint AS rows,
       size.bytes::bigint AS bytes,
       size.index_bytes::bigint AS index_bytes,
       (SELECT array_agg(quote_ident(a.attname) ORDER BY k.ord)
        FROM pg_index x, unnest(x.indkey::smallint[]) WITH ORDINALITY k (attnum, ord), pg_attribute a
        WHERE x.indrelid = c.oid AND x.indisprimary AND k.ord <= x.indnkeyatts
          AND a.attrelid = c.oid AND a.attnum = k.attnum) AS key,
       (SELECT coalesce(jsonb_agg(columns), '[]')
        FROM (SELECT jsonb_agg(quote_ident(a.attname) ORDER BY k.ord) AS columns -- null where it is an expression
              FROM pg_index x
              CROSS JOIN unnest(x.indkey::smallint[]) WITH ORDINALITY k (attnum, ord)
              LEFT JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.attnum
              WHERE x.indrelid = c.oid AND x.indisvalid AND x.indpred IS NULL AND k.ord <= x.indnkeyatts
              GROUP BY x.indexrelid) i) AS indexed
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
-- A partitioned table is as large as its partitions; one that was never analysed has about a row in 100 bytes.
CROSS JOIN LATERAL (
    SELECT sum(CASE WHEN p.reltuples >= 0 AND p.relkind <> 'p' THEN p.reltuples::bigint
                    ELSE pg_relation_size(p.oid) / 100 END) AS rows,
           sum(pg_table_size(p.oid)) AS bytes,
           sum(pg_indexes_size(p.oid)) AS index_bytes
    FROM pg_class p
    WHERE p.oid = c.oid OR p.oid IN (SELECT relid FROM pg_partition_tree(c.oid))
) size
WHERE c.relkind IN ('r', 'p')
  AND NOT c.relispartition
  AND n.nspname !~ '^pg_'
  AND n.nspname <> 'information_schema'
  AND has_schema_privilege(n.oid, 'USAGE')
  AND has_table_privilege(c.oid, 'SELECT')
ORDER BY 3 DESC, 2;
