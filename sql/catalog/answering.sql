-- Which server, database and process answers.
SELECT current_database() AS database,
       host(inet_server_addr()) AS address,
       inet_server_port() AS port,
       pg_backend_pid() AS pid,
       CASE WHEN has_function_privilege('pg_control_system()', 'EXECUTE')
            THEN (SELECT system_identifier::text FROM pg_control_system()) END AS system;
