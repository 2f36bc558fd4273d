-- Roles whose setting overrides that of the database.
SELECT DISTINCT r.rolname::text AS role
FROM pg_db_role_setting s
JOIN pg_roles r ON r.oid = s.setrole
CROSS JOIN unnest(s.setconfig) c
WHERE s.setdatabase IN (0, %(database)s) AND split_part(c, '=', 1) = %(setting)s
ORDER BY 1;
