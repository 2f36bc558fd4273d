INSERT INTO pgbench_history (tid, bid, aid, delta, mtime)
VALUES (%(tid)s, %(bid)s, %(aid)s, %(delta)s, CURRENT_TIMESTAMP)
