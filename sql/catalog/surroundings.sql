-- What a server has done so far: blocks that the checkpointer wrote and that autovacuum went through, in the whole of
-- it; blocks that sessions in one database read from outside and found in shared_buffers.
SELECT (SELECT sum(writes) FROM pg_stat_io WHERE backend_type = 'checkpointer')::bigint AS checkpoints,
       (SELECT sum(coalesce(reads, 0) + coalesce(hits, 0))
        FROM pg_stat_io
        WHERE backend_type = 'autovacuum worker' AND context = 'vacuum')::bigint AS autovacuums,
       blks_read AS blocks_read,
       blks_hit AS blocks_hit
FROM pg_stat_database
WHERE datname = %(database)s;
