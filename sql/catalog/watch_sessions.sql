-- Client sessions, their activity and their waits. A role without pg_read_all_stats sees only the existence, database
-- and locks of other roles' sessions; the rest is NULL.
WITH clients AS MATERIALIZED (
    SELECT pid, datname, state, wait_event_type, query_start, xact_start
    FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND usesysid IS NOT NULL
      AND coalesce(backend_type, 'client backend') = 'client backend'
), here AS (
    SELECT * FROM clients WHERE datname = current_database()
), locks AS MATERIALIZED (
    SELECT l.granted, l.locktype, h.pid,
           -- since 14 the server says since when; before, the statement's begin is the earliest that it can be
           coalesce((to_jsonb(l) ->> 'waitstart')::timestamptz, h.query_start) AS since
    FROM pg_locks l
    JOIN here h USING (pid)
    WHERE NOT l.granted OR l.locktype = 'relation'
)
SELECT extract(epoch FROM pg_postmaster_start_time())::float8 AS started,
       (SELECT count(*) FROM clients)::float8 AS connections,
       current_setting('max_connections')::float8 AS connections_max,
       CASE WHEN visible THEN (SELECT count(*) FROM here WHERE state = 'active') END::float8 AS active,
       (SELECT count(DISTINCT pid) FROM locks WHERE NOT granted)::float8 AS waiting,
       CASE WHEN NOT EXISTS (SELECT FROM locks WHERE NOT granted AND since IS NULL) THEN
           (SELECT coalesce(greatest(max(extract(epoch FROM clock_timestamp() - since)), 0), 0)
            FROM locks WHERE NOT granted)
       END::float8 AS lock_wait_s,
       CASE WHEN visible THEN (SELECT count(*) FROM here WHERE state LIKE 'idle in transaction%') END::float8
           AS idle_in_transaction,
       CASE WHEN visible THEN
           (SELECT coalesce(greatest(max(extract(epoch FROM clock_timestamp() - xact_start)), 0), 0) FROM here)
       END::float8 AS transaction_s,
       (SELECT count(*) FROM locks WHERE granted)::float8 AS locks_held
FROM (SELECT pg_has_role('pg_read_all_stats', 'USAGE') AS visible) role;
