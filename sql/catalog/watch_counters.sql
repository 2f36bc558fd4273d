-- Counters of the database; checksum_failures is NULL if pages have no checksums.
SELECT xact_commit::float8 AS commits,
       xact_rollback::float8 AS rollbacks,
       blks_hit::float8 AS blocks_hit,
       blks_read::float8 AS blocks_read,
       temp_bytes::float8 AS temp_bytes,
       deadlocks::float8 AS deadlocks,
       checksum_failures::float8 AS checksum_failures
FROM pg_stat_database
WHERE datname = current_database();
