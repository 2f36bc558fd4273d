-- Every table that holds rows itself, with its estimated number of rows (by its size if it was never analysed) and
-- its writable columns.
SELECT format('%I.%I', n.nspname, c.relname) AS "table",
       CASE WHEN c.reltuples > 0 THEN c.reltuples ELSE pg_relation_size(c.oid) / 100 END::bigint AS rows,
       c.reltuples <= 0 AND pg_relation_size(c.oid) > 0 AS unknown,
       CASE WHEN c.relispartition THEN pg_get_partition_constraintdef(c.oid) END AS bounds,
       (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
        FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '') AS columns
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r'
  AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_'
  AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY rows DESC, 1;
