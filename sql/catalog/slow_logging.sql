-- Settings that control the logging of statements, for sessions like this one.
SELECT current_user::text AS "user",
       current_setting('compute_query_id', true) AS query_id,
       current_setting('pg_stat_statements.max', true) IS NOT NULL AS statements_loaded,
       current_setting('auto_explain.log_min_duration', true) IS NOT NULL AS auto_explain_loaded,
       (SELECT setting FROM pg_settings WHERE name = 'session_preload_libraries') AS preloaded,  -- NULL: not to be seen
       current_setting('log_parameter_max_length', true) AS parameters,
       current_setting('auto_explain.log_parameter_max_length', true) AS plan_parameters;
