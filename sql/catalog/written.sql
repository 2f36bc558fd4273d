-- Updated rows of a table, those of them without index updates (HOT), and bytes of WAL that the server wrote.
SELECT n_tup_upd AS updated, n_tup_hot_upd AS hot, (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint AS wal
FROM pg_stat_user_tables
WHERE relid = %(table)s::regclass;
