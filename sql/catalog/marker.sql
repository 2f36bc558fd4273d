-- This database and its owner, the permission (if any), and whether the owner granted it.
SELECT d.oid::bigint AS database,
       o.rolname AS owner,
       has_function_privilege('pg_control_system()', 'EXECUTE') AS identifiable,
       obj_description(n.oid, 'pg_namespace') AS comment,
       coalesce(n.nspowner = d.datdba OR r.rolsuper, false) AS by_owner
FROM pg_database d
JOIN pg_roles o ON o.oid = d.datdba
LEFT JOIN pg_namespace n ON n.nspname = 'perfkit_allowed'
LEFT JOIN pg_roles r ON r.oid = n.nspowner
WHERE d.datname = current_database();
