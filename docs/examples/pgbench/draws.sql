-- Values as pgbench draws them: a random account, teller and branch, and an amount.
SELECT 1 + (random() * (a.n - 1))::integer AS aid, 1 + (random() * (t.n - 1))::integer AS tid,
       1 + (random() * (b.n - 1))::integer AS bid, (random() * 10000)::integer - 5000 AS delta
FROM (SELECT count(*) AS n FROM pgbench_accounts) a,
     (SELECT count(*) AS n FROM pgbench_tellers) t,
     (SELECT count(*) AS n FROM pgbench_branches) b,
     generate_series(1, 2000)
