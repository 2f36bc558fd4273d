-- End every other connection to this database; the count of those that are still there.
SELECT count(pg_terminate_backend(pid)) AS n
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid();
