-- When the server was asked, where, and by whom.
SELECT clock_timestamp() AS at, current_database()::text AS database, quote_ident(current_user) AS "user";
