-- What new sessions bring along because of a database, a role or a role in a database (0: any), and their names now.
SELECT (SELECT datname::text FROM pg_database WHERE oid = %(database)s) AS database,
       (SELECT rolname::text FROM pg_roles WHERE oid = %(role)s) AS role,
       coalesce((SELECT setconfig FROM pg_db_role_setting
                 WHERE setdatabase = %(database)s AND setrole = %(role)s), '{}') AS settings;
