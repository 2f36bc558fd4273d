-- Number of open connections of load workers to this database.
SELECT count(*) AS n
FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'perfkit load';
