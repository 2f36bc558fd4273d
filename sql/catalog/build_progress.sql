-- Progress of an index build in another session.
SELECT phase, blocks_done, blocks_total, tuples_done, tuples_total, current_locker_pid AS waits_for
FROM pg_stat_progress_create_index
WHERE pid = %(pid)s;
