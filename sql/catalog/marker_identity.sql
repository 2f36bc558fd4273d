-- Which database of which cluster this is, and whose.
SELECT d.oid::bigint AS database,
       (SELECT system_identifier::text FROM pg_control_system()) AS system,
       r.rolname AS owner
FROM pg_database d
JOIN pg_roles r ON r.oid = d.datdba
WHERE d.datname = current_database();
