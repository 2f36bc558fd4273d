-- The owner's permission as it stands in this database, and the database that it must name to count.
SELECT obj_description(n.oid, 'pg_namespace') AS comment,
       n.nspowner = d.datdba OR r.rolsuper AS by_owner,
       d.oid::bigint AS database,
       has_function_privilege('pg_control_system()', 'EXECUTE') AS identifiable
FROM pg_namespace n
JOIN pg_roles r ON r.oid = n.nspowner
JOIN pg_database d ON d.datname = current_database()
WHERE n.nspname = 'perfkit_allowed';
