-- Which of these names belong to a function that is declared volatile, in any schema.
SELECT DISTINCT CASE n.nspname WHEN 'pg_catalog' THEN '' ELSE n.nspname || '.' END || p.proname AS name
FROM pg_proc p
JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE p.provolatile = 'v'
  AND p.prokind IN ('f', 'w')
  AND p.proname = ANY (%(names)s::text[]);
