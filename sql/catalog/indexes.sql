-- Every index of the user's tables with its size and whether the planner may use it.
SELECT i.oid::bigint AS oid,
       i.relname AS name,
       format('%I.%I', n.nspname, i.relname) AS quoted,
       CASE n.nspname WHEN 'public' THEN '' ELSE n.nspname || '.' END || t.relname AS "table",
       pg_get_indexdef(i.oid) AS definition,
       pg_relation_size(i.oid) AS bytes,
       x.indisvalid AND x.indisready AS valid
FROM pg_index x
JOIN pg_class i ON i.oid = x.indexrelid
JOIN pg_class t ON t.oid = x.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE n.nspname !~ '^pg_'
  AND n.nspname <> 'information_schema'
ORDER BY n.nspname = 'public' DESC, n.nspname, t.relname, i.relname;
