-- Activity of a server so far: blocks that the checkpointer wrote and that autovacuum processed, in all databases;
-- blocks that sessions of one database read from outside shared_buffers, and found inside.
SELECT (SELECT sum(writes) FROM pg_stat_io WHERE backend_type = 'checkpointer')::bigint AS checkpoints,
       (SELECT sum(coalesce(reads, 0) + coalesce(hits, 0))
        FROM pg_stat_io
        WHERE backend_type = 'autovacuum worker' AND context = 'vacuum')::bigint AS autovacuums,
       blks_read AS blocks_read,
       blks_hit AS blocks_hit
FROM pg_stat_database
WHERE datname = %(database)s;
