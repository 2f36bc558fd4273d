-- The table that defines a CHECK constraint: a given table, or the one that it inherits the constraint from.
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
