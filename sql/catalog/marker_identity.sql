-- Which database this is, and whose.
SELECT d.oid::bigint AS database,
       r.rolname AS owner,
       has_function_privilege('pg_control_system()', 'EXECUTE') AS identifiable
FROM pg_database d
JOIN pg_roles r ON r.oid = d.datdba
WHERE d.datname = current_database();
