-- Time on the server, database and role.
SELECT clock_timestamp() AS at, current_database()::text AS database, quote_ident(current_user) AS "user";
