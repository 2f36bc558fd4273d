-- Whether an index is valid, its table, and whether LOCK TABLE can lock that table.
SELECT x.indisvalid AS valid,
       t.relkind IN ('r', 'p') AS lockable,
       quote_ident(n.nspname) || '.' || quote_ident(t.relname) AS "table"
FROM pg_index x
JOIN pg_class t ON t.oid = x.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE x.indexrelid = to_regclass(%s::text)
