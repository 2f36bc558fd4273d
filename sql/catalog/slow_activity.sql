-- Running sessions of this database, and sessions of the whole server that block them; prepared transactions have no
-- process.
WITH prepared AS (
    SELECT l.*, p.gid
    FROM pg_prepared_xacts p
    JOIN pg_locks x ON x.locktype = 'transactionid' AND x.transactionid = p.transaction AND x.pid IS NULL
    JOIN pg_locks l ON l.virtualtransaction = x.virtualtransaction AND l.pid IS NULL AND l.granted
), sessions AS MATERIALIZED (
    SELECT a.*,
           a.state IS NULL AND a.query = '<insufficient privilege>' AS hidden,
           to_jsonb(a) ->> 'query_id' AS query_id_text,
           CASE WHEN a.wait_event_type = 'Lock' OR a.query = '<insufficient privilege>' THEN pg_blocking_pids(a.pid)
                ELSE '{}' END AS blockers
    FROM pg_stat_activity a
    WHERE a.pid <> pg_backend_pid() AND a.backend_type IS DISTINCT FROM 'parallel worker'
)
SELECT s.pid,
       s.usename::text AS "user",
       s.datname::text AS database,
       s.application_name AS application,
       host(s.client_addr) AS client,
       s.backend_type AS kind,
       s.hidden,
       CASE WHEN s.hidden THEN NULL ELSE s.state END AS state,
       s.wait_event_type || ': ' || s.wait_event AS wait,
       s.query_id_text AS id,
       CASE WHEN s.hidden THEN '' ELSE s.query END AS text,
       extract(epoch FROM clock_timestamp() - CASE WHEN s.state = 'active' THEN s.query_start ELSE s.state_change END)
           ::float8 AS seconds,
       extract(epoch FROM clock_timestamp() - s.xact_start)::float8 AS transaction_seconds,
       array(SELECT DISTINCT b FROM unnest(s.blockers) b WHERE b > 0 AND b <> s.pid ORDER BY b) AS blocked_by,
       array(SELECT DISTINCT p.gid
             FROM pg_locks w JOIN prepared p
             ON (w.locktype, w.database, w.relation, w.page, w.tuple, w.virtualxid, w.transactionid, w.classid,
                 w.objid, w.objsubid)
                IS NOT DISTINCT FROM
                (p.locktype, p.database, p.relation, p.page, p.tuple, p.virtualxid, p.transactionid, p.classid,
                 p.objid, p.objsubid)
             WHERE w.pid = s.pid AND NOT w.granted AND 0 = ANY (s.blockers)
             ORDER BY p.gid) AS prepared
FROM sessions s
WHERE (s.datname = current_database() AND s.state IS DISTINCT FROM 'idle')
   OR s.pid = ANY (SELECT unnest(blockers) FROM sessions)
ORDER BY s.pid;
