-- Two indexes in a form to compare: everything after the table's name, and the tablespace.
SELECT x.indexrelid = to_regclass(%(temporary)s::text) AS temporary,
       x.indisunique AS "unique",
       f.whole,
       substr(f.whole, 1 + length(p.prefix)) AS rest,
       s.spcname::text AS tablespace
FROM pg_index x
JOIN pg_class i ON i.oid = x.indexrelid
JOIN pg_class t ON t.oid = x.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
JOIN pg_database d ON d.datname = current_database()
JOIN pg_tablespace s ON s.oid = coalesce(nullif(i.reltablespace, 0), d.dattablespace)
CROSS JOIN LATERAL (SELECT pg_get_indexdef(i.oid) AS whole) f
CROSS JOIN LATERAL (VALUES (n.nspname::text), ('pg_temp')) w (schema) -- newer servers call the temporary one so
CROSS JOIN LATERAL (
    SELECT 'CREATE ' || CASE WHEN x.indisunique THEN 'UNIQUE ' ELSE '' END || 'INDEX ' || quote_ident(i.relname) || ' ON '
        || CASE i.relkind WHEN 'I' THEN 'ONLY ' ELSE '' END
        || quote_ident(w.schema) || '.' || quote_ident(t.relname) || ' ' AS prefix) p
WHERE x.indexrelid IN (to_regclass(%(temporary)s::text), %(there)s::bigint)
  AND starts_with(f.whole, p.prefix);
