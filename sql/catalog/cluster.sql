-- The cluster's identity; only for who may execute the function, which is checked even where it is not called.
SELECT system_identifier::text AS system FROM pg_control_system();
