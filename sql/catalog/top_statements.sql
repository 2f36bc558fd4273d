-- Where time goes: the statements of this database with the largest total, wherever the extension is.
SELECT query AS text, calls, mean_exec_time AS mean_ms, total_exec_time AS total_ms
FROM :schema.pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND query ~* '^\s*(select|with|insert|update|delete)'
  AND query <> '<insufficient privilege>'
ORDER BY total_exec_time DESC
LIMIT 10;
