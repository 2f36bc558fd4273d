-- Tables (and sequences, for their positions) that this role cannot read, or not with every row.
SELECT format('%I.%I', n.nspname, c.relname) AS name, c.relkind = 'S' AS sequence, allowed.every AS readable
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT has_schema_privilege(n.oid, 'USAGE')
           AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege(c.oid, 'SELECT')
                              ELSE has_table_privilege(c.oid, 'SELECT') END AS every
) allowed
WHERE c.relkind IN ('r', 'p', 'S')
  AND (NOT allowed.every OR (c.relrowsecurity AND row_security_active(c.oid)))
  AND n.nspname !~ '^pg_'
  AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 2, 1;
