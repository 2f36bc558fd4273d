-- Who holds locks on tables of this database that nobody can read meanwhile, and for how long their transactions last.
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
