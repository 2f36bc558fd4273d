-- Rights of this role in this database, facts about the server, and the number of free connections.
WITH tables AS (
    SELECT c.oid::regclass::text AS name, c.reltuples, c.relowner,
           has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS readable,
           pg_has_role(c.relowner, 'USAGE') AS owned,
           EXISTS (SELECT FROM pg_depend x
                   WHERE x.classid = 'pg_class'::regclass AND x.objid = c.oid AND x.deptype = 'e') AS extension
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
)
SELECT current_user AS "user",
       r.rolsuper AS superuser,
       r.rolsuper OR r.rolcreatedb AS createdb,
       r.rolsuper OR pg_has_role(d.datdba, 'USAGE') AS owner,
       r.rolsuper OR pg_has_role('pg_read_all_stats', 'USAGE') AS reads_stats,
       pg_get_userbyid(d.datdba) AS owned_by,
       (SELECT o.rolsuper FROM pg_roles o WHERE o.oid = d.datdba) AS owner_super,
       current_setting('server_version') AS version,
       current_setting('server_version_num')::integer / 10000 AS major,
       pg_is_in_recovery() AS standby,
       pg_database_size(d.oid) AS bytes,
       (SELECT reset_val FROM pg_settings WHERE name = 'statement_timeout') AS statement_timeout,  -- in ms, the role's
       (SELECT reset_val FROM pg_settings WHERE name = 'lock_timeout') AS lock_timeout,
       (SELECT reset_val FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout') AS idle_timeout,
       current_setting('log_min_duration_statement') AS log_min_duration,
       current_setting('track_io_timing') AS track_io_timing,
       current_setting('pg_stat_statements.max', true) IS NOT NULL AS statements_loaded,
       current_setting('auto_explain.log_min_duration', true) IS NOT NULL AS auto_explain_loaded,
       current_setting('max_connections')::integer
           - current_setting('superuser_reserved_connections')::integer
           - coalesce(current_setting('reserved_connections', true), '0')::integer AS connections,
       (SELECT sum(numbackends)::integer FROM pg_stat_database) AS connected,
       r.rolconnlimit AS role_limit,
       (SELECT count(*)::integer FROM pg_stat_activity a WHERE a.usename = current_user) AS role_connected,
       d.datconnlimit AS database_limit,
       (SELECT numbackends FROM pg_stat_database s WHERE s.datid = d.oid) AS database_connected,
       (SELECT coalesce(array_agg(name ORDER BY reltuples DESC) FILTER (WHERE NOT readable), '{}') FROM tables)
           AS unreadable,
       (SELECT count(*)::integer FROM tables WHERE NOT extension) AS tables,
       (SELECT coalesce(array_agg(name ORDER BY reltuples DESC), '{}') FROM tables WHERE NOT owned AND NOT extension)
           AS not_owned,
       (SELECT coalesce(array_agg(DISTINCT quote_ident(o.rolname)), '{}')
        FROM tables t JOIN pg_roles o ON o.oid = t.relowner
        WHERE NOT owned AND NOT extension AND NOT o.rolsuper) AS table_owners,
       (SELECT coalesce(jsonb_object_agg(x.extname, n.nspname), '{}')
        FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace) AS extensions,
       (SELECT coalesce(array_agg(name), '{}') FROM pg_available_extensions) AS available
FROM pg_roles r, pg_database d
WHERE r.rolname = current_user AND d.datname = current_database();
