-- The server, database and process that answer, and the client address that they see.
SELECT current_database() AS database,
       host(inet_server_addr()) AS address,
       inet_server_port() AS port,
       host(inet_client_addr()) AS client_address,
       inet_client_port() AS client_port,
       current_setting('port')::int AS listens,
       pg_backend_pid() AS pid,
       has_function_privilege('pg_control_system()', 'EXECUTE') AS identifiable;
