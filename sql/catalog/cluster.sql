-- The cluster's identity. In a file of its own: the right to execute the function is checked even without a call.
SELECT system_identifier::text AS system FROM pg_control_system();
