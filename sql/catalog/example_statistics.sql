-- A column's values by ANALYZE: the most common ones with their share of the rows, then histogram bounds (no share),
-- between which the other values are distributed equally.
SELECT v.value, v.share
FROM pg_catalog.pg_stats s
CROSS JOIN LATERAL (
    SELECT 1 AS kind, value, share::float8
    FROM unnest(s.most_common_vals::text::text[], s.most_common_freqs) AS common (value, share)
    UNION ALL
    SELECT 2, value, NULL FROM unnest(s.histogram_bounds::text::text[]) AS bound (value)
) v
WHERE s.schemaname = %(schema)s AND s.tablename = %(table)s AND s.attname = %(column)s
  AND s.inherited = (SELECT bool_or(inherited) FROM pg_catalog.pg_stats o
                     WHERE o.schemaname = s.schemaname AND o.tablename = s.tablename AND o.attname = s.attname)
ORDER BY v.kind, v.share DESC
