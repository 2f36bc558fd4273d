-- How often each index and each table (sequentially) was scanned so far; `seq:` marks a table.
SELECT indexrelname AS name, idx_scan AS scans FROM pg_stat_user_indexes
UNION ALL
SELECT 'seq:' || relname, seq_scan FROM pg_stat_user_tables;
