-- Every column with the planner's statistics of its values.
WITH RECURSIVE bases AS (
    SELECT oid AS of, oid, typtype, typbasetype, typnotnull, typelem, typlen, typtypmod
    FROM pg_type WHERE typtype <> 'p'
    UNION ALL
    SELECT d.of, t.oid, t.typtype, t.typbasetype, d.typnotnull OR t.typnotnull,
           t.typelem, t.typlen, greatest(d.typtypmod, t.typtypmod)
    FROM bases d JOIN pg_type t ON t.oid = d.typbasetype
    WHERE d.typtype = 'd'
)
SELECT format('%I.%I', n.nspname, c.relname) AS "table",
       quote_ident(a.attname) AS name,
       CASE WHEN t.typtype = 'r' THEN 'range'
            WHEN t.typtype = 'c' THEN 'composite'
            WHEN t.typtype = 'm' THEN 'array'
            WHEN t.typelem <> 0 AND t.typlen = -1 THEN 'array'
            ELSE format_type(t.oid, NULL) END AS type,
       format_type(a.atttypid, a.atttypmod) AS full_type,
       CASE WHEN format_type(t.oid, NULL) IN ('character varying', 'character')
            THEN nullif(greatest(a.atttypmod, t.typtypmod) - 4, -5) END AS most,
       a.attnotnull OR t.typnotnull AS not_null,
       (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid) AS labels,
       coalesce(s.null_frac, 0)::float8 AS null_frac,
       coalesce(s.n_distinct, 0)::float8 AS n_distinct,
       coalesce(s.correlation, 0)::float8 AS correlation,
       coalesce(s.avg_width, 0) AS width,
       coalesce(s.most_common_vals::text::text[], '{}') AS common,
       coalesce(s.most_common_freqs::float8[], '{}') AS frequencies,
       coalesce(s.histogram_bounds::text::text[], '{}') AS bounds,
       coalesce(s.most_common_elems::text::text[], '{}') AS elements,
       coalesce(s.most_common_elem_freqs::float8[], '{}') AS element_frequencies
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
JOIN bases t ON t.of = a.atttypid AND t.typtype <> 'd'
LEFT JOIN pg_stats s ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = a.attname
                    AND NOT s.inherited
WHERE c.relkind = 'r'
  AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_'
  AND n.nspname <> 'information_schema'
ORDER BY 1, a.attnum;
