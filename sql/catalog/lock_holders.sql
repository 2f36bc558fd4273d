-- Processes that hold locks on a table, and whether their locks block an index build.
SELECT l.pid,
       bool_or(l.mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                          'AccessExclusiveLock')) AS conflicts
FROM pg_locks l
WHERE l.relation = to_regclass(%(table)s::text)
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.granted
  AND l.pid <> pg_backend_pid()
GROUP BY l.pid
ORDER BY l.pid;
