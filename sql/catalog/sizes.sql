-- Estimated rows of each user table, its bytes, and the bytes of its indexes.
SELECT CASE n.nspname WHEN 'public' THEN '' ELSE n.nspname || '.' END || c.relname AS "table",
       format('%I.%I', n.nspname, c.relname) AS quoted,
       greatest(c.reltuples, 0)::bigint AS rows,
       pg_relation_size(c.oid) AS bytes,
       pg_indexes_size(c.oid) AS index_bytes
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r'
  AND n.nspname !~ '^pg_'
  AND n.nspname <> 'information_schema'
  AND has_schema_privilege(n.oid, 'USAGE')
ORDER BY n.nspname = 'public' DESC, n.nspname, c.relname;
