-- Entries of pg_stat_statements for this database; names that depend on its version are filled in.
SELECT userid::bigint AS "user",
       queryid::text AS id,
       query AS text,
       :toplevel AS toplevel,
       calls,
       :total_ms AS total_ms,
       rows,
       shared_blks_hit + shared_blks_read + local_blks_hit + local_blks_read AS buffers,
       temp_blks_written * current_setting('block_size')::bigint AS temp_bytes,
       :wal_bytes::bigint AS wal_bytes,
       :since AS since
FROM :schema.pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database());
