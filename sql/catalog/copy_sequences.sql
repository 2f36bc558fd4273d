-- The position of every sequence (NULL: at its start, or not visible to this role), and the column that owns it.
SELECT format('%I.%I', s.schemaname, s.sequencename) AS name,
       s.last_value,
       s.increment_by > 0 AS ascending,
       s.max_value AS maximum,
       owner."table",
       owner."column"
FROM pg_sequences s
LEFT JOIN LATERAL (
    SELECT format('%I.%I', n.nspname, t.relname) AS "table", quote_ident(a.attname) AS "column"
    FROM pg_depend d
    JOIN pg_class t ON t.oid = d.refobjid
    JOIN pg_namespace n ON n.oid = t.relnamespace
    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
    WHERE d.classid = 'pg_class'::regclass
      AND d.refclassid = 'pg_class'::regclass
      AND d.objid = format('%I.%I', s.schemaname, s.sequencename)::regclass
      AND d.deptype IN ('a', 'i')
) owner ON true
ORDER BY 1;
