-- The table from which one of a given name inherits a CHECK constraint of a given name, or that table itself.
WITH RECURSIVE upwards AS (
    SELECT %s::regclass::oid AS oid
    UNION
    SELECT i.inhparent FROM upwards u JOIN pg_inherits i ON i.inhrelid = u.oid
)
SELECT format('%%I.%%I', n.nspname, c.relname) AS "table"
FROM upwards u
JOIN pg_class c ON c.oid = u.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_constraint k ON k.conrelid = u.oid AND k.conname = %s AND k.contype = 'c' AND k.coninhcount = 0;
