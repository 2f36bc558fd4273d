-- Prepared transactions, which hold their locks until they are committed or rolled back.
SELECT gid,
       owner::text AS "user",
       database::text AS database,
       extract(epoch FROM clock_timestamp() - prepared)::float8 AS seconds
FROM pg_prepared_xacts
ORDER BY prepared;
