-- Every column with what the planner's statistics say about its values.
SELECT format('%I.%I', n.nspname, c.relname) AS "table",
       greatest(c.reltuples, 0)::bigint AS rows,
       quote_ident(a.attname) AS "column",
       format_type(b.oid, NULL) AS type,
       format_type(a.atttypid, a.atttypmod) AS full_type,
       a.attnotnull OR t.typnotnull AS not_null,
       a.attgenerated <> '' AS generated,
       (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = b.oid) AS labels,
       s.null_frac::float8 AS null_frac,
       s.most_common_vals::text::text[] AS common,
       s.most_common_freqs::float8[] AS frequencies,
       s.histogram_bounds::text::text[] AS bounds
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid
JOIN pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
LEFT JOIN pg_stats s ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = a.attname
                    AND NOT s.inherited
WHERE c.relkind = 'r'
  AND c.relpersistence = 'p'
  AND n.nspname !~ '^pg_'
  AND n.nspname <> 'information_schema'
ORDER BY c.reltuples DESC, 1, a.attnum;
