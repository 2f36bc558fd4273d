-- Bytes of WAL written so far; on a standby, received so far.
SELECT pg_wal_lsn_diff(
           CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END, '0/0'
       )::float8 AS wal_bytes;
