-- Settings that are not at their default, and those that affect results even at their default.
SELECT name, current_setting(name) AS value
FROM pg_settings
WHERE source NOT IN ('default', 'override', 'client')
   OR name IN ('shared_buffers', 'work_mem', 'effective_cache_size', 'random_page_cost', 'seq_page_cost',
               'jit', 'fsync', 'synchronous_commit', 'full_page_writes', 'wal_level', 'autovacuum',
               'max_parallel_workers_per_gather', 'max_connections', 'track_io_timing', 'plan_cache_mode',
               'io_method', 'data_checksums', 'checkpoint_timeout', 'max_wal_size')
ORDER BY name;
