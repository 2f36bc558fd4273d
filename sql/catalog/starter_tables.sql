-- The user's tables that hold rows, largest first, with their primary keys and the columns their indexes begin with.
SELECT c.relname AS name,
       format('%I.%I', n.nspname, c.relname) AS "table",
       greatest(c.reltuples, 0)::bigint AS rows,
       pg_table_size(c.oid) AS bytes,
       pg_indexes_size(c.oid) AS index_bytes,
       (SELECT array_agg(quote_ident(a.attname) ORDER BY k.ord)
        FROM pg_index x, unnest(x.indkey::smallint[]) WITH ORDINALITY k (attnum, ord), pg_attribute a
        WHERE x.indrelid = c.oid AND x.indisprimary AND a.attrelid = c.oid AND a.attnum = k.attnum) AS key,
       (SELECT coalesce(jsonb_agg(columns), '[]')
        FROM (SELECT jsonb_agg(quote_ident(a.attname) ORDER BY k.ord) AS columns
              FROM pg_index x, unnest(x.indkey::smallint[]) WITH ORDINALITY k (attnum, ord), pg_attribute a
              WHERE x.indrelid = c.oid AND x.indisvalid AND x.indpred IS NULL
                AND a.attrelid = c.oid AND a.attnum = k.attnum AND k.ord <= x.indnkeyatts
              GROUP BY x.indexrelid) i) AS indexed
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p')
  AND NOT c.relispartition
  AND n.nspname !~ '^pg_'
  AND n.nspname <> 'information_schema'
  AND has_schema_privilege(n.oid, 'USAGE')
  AND has_table_privilege(c.oid, 'SELECT')
ORDER BY c.reltuples DESC, 2;
