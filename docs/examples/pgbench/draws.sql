-- As pgbench draws them: any account, teller and branch, and an amount; a hash, so that every run has the same.
SELECT 1 + (hashint8extended(n, 1) & 2147483647) % a.n AS aid, 1 + (hashint8extended(n, 2) & 2147483647) % t.n AS tid,
       1 + (hashint8extended(n, 3) & 2147483647) % b.n AS bid, (hashint8extended(n, 4) & 2147483647) % 10001 - 5000 AS delta
FROM (SELECT count(*) AS n FROM pgbench_accounts) a,
     (SELECT count(*) AS n FROM pgbench_tellers) t,
     (SELECT count(*) AS n FROM pgbench_branches) b,
     generate_series(1, 2000) n
