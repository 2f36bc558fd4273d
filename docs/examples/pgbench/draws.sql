-- As pgbench draws them: any account, teller and branch, and an amount; a hash, so that every run has the same.
SELECT 1 + (hashint8extended(draw, 1) & 2147483647) % accounts AS aid,
       1 + (hashint8extended(draw, 2) & 2147483647) % tellers AS tid,
       1 + (hashint8extended(draw, 3) & 2147483647) % branches AS bid,
       (hashint8extended(draw, 4) & 2147483647) % 10001 - 5000 AS delta
FROM (SELECT count(*) AS accounts FROM pgbench_accounts) a,
     (SELECT count(*) AS tellers FROM pgbench_tellers) t,
     (SELECT count(*) AS branches FROM pgbench_branches) b,
     generate_series(1, 2000) AS draw
