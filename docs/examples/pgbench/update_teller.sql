UPDATE pgbench_tellers SET tbalance = tbalance + %(delta)s WHERE tid = %(tid)s
