UPDATE pgbench_accounts SET abalance = abalance + %(delta)s WHERE aid = %(aid)s
