-- End every other connection to this database; return the number that is left.
SELECT count(pg_terminate_backend(pid)) AS n
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid();
