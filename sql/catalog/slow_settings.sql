-- Settings of new sessions by database, role, or role in a database (0: any), with their current names.
SELECT (SELECT datname::text FROM pg_database WHERE oid = %(database)s) AS database,
       (SELECT rolname::text FROM pg_roles WHERE oid = %(role)s) AS role,
       coalesce((SELECT setconfig FROM pg_db_role_setting
                 WHERE setdatabase = %(database)s AND setrole = %(role)s), '{}') AS settings;
