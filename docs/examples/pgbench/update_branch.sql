UPDATE pgbench_branches SET bbalance = bbalance + %(delta)s WHERE bid = %(bid)s
