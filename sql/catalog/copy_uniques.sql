-- The columns of every unique index on plain columns of a table.
SELECT format('%I.%I', n.nspname, c.relname) AS "table",
       array_agg(quote_ident(a.attname) ORDER BY k.ord) AS columns
FROM pg_index x
JOIN pg_class c ON c.oid = x.indrelid AND c.relkind = 'r'
JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL unnest(x.indkey::smallint[]) WITH ORDINALITY k (attnum, ord)
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
WHERE x.indisunique
  AND x.indexprs IS NULL
  AND k.ord <= x.indnkeyatts
  AND n.nspname !~ '^pg_'
  AND n.nspname <> 'information_schema'
GROUP BY n.nspname, c.relname, x.indexrelid
ORDER BY 1, 2;
