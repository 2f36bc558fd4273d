-- By index: the bytes that an insert is expected to add to it, as a share of what it adds to the table.
-- (8 + widths of its columns) / (23 + 4 + widths of all columns) x share of the rows that it holds: pganalyze's formula.
SELECT i.relname AS name,
       ((8 + own.width) / (27.0 + whole.width)
           * CASE WHEN x.indpred IS NULL OR t.reltuples <= 0 THEN 1 ELSE i.reltuples / t.reltuples END)::float8 AS share
FROM pg_index x
JOIN pg_class i ON i.oid = x.indexrelid
JOIN pg_class t ON t.oid = x.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
CROSS JOIN LATERAL (
    SELECT coalesce(sum(coalesce(s.avg_width, 8)), 0) AS width
    FROM pg_attribute a
    LEFT JOIN pg_attribute b ON b.attrelid = t.oid AND b.attnum = x.indkey[a.attnum - 1] AND b.attnum > 0
    LEFT JOIN pg_stats s ON s.schemaname = n.nspname
                        AND (s.tablename, s.attname) = CASE WHEN b.attname IS NULL THEN (i.relname, a.attname)
                                                            ELSE (t.relname, b.attname) END
    WHERE a.attrelid = i.oid AND a.attnum > 0
) own
CROSS JOIN LATERAL (
    SELECT coalesce(sum(s.avg_width), 0) AS width
    FROM pg_stats s WHERE (s.schemaname, s.tablename) = (n.nspname, t.relname) AND NOT s.inherited
) whole
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND t.relkind = 'r';
