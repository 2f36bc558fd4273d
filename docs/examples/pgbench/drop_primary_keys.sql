-- What a restore without its constraints leaves behind.
ALTER TABLE pgbench_accounts DROP CONSTRAINT pgbench_accounts_pkey;
ALTER TABLE pgbench_tellers DROP CONSTRAINT pgbench_tellers_pkey;
ALTER TABLE pgbench_branches DROP CONSTRAINT pgbench_branches_pkey;
