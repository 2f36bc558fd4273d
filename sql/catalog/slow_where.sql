-- The numbers of a database and a role by their names.
SELECT (SELECT oid::bigint FROM pg_database WHERE datname = %(database)s) AS database,
       (SELECT oid::bigint FROM pg_roles WHERE rolname = %(role)s) AS role;
