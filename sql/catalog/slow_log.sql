-- Settings of the server's log, and the functions that this role may not use to read it.
SELECT current_setting('logging_collector') AS collector,
       current_setting('log_destination') AS destination,
       current_setting('log_line_prefix') AS prefix,
       quote_ident(current_user) AS "user",
       (SELECT coalesce(array_agg(f ORDER BY f), '{}')
        FROM unnest(ARRAY['pg_current_logfile(text)', 'pg_ls_logdir()',
                          'pg_read_binary_file(text, bigint, bigint, boolean)']) f
        WHERE NOT has_function_privilege(f, 'EXECUTE')) AS lacking;
