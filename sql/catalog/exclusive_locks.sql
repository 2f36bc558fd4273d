-- Processes that hold locks which block readers of a table in this database, and the age of their transactions.
SELECT l.relation::regclass::text AS "table",
       l.pid,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float AS seconds
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation'
  AND l.mode = 'AccessExclusiveLock'
  AND l.granted
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.pid <> pg_backend_pid()
ORDER BY seconds DESC NULLS LAST
LIMIT 3;
