-- The statements of the corpus, as corpus.py runs them: each begins with its name, EXPLAIN's options where they are
-- not all of them, and then words: settings, sets of settings, the first version that has it (since:17), `system` for
-- what an embedded server lacks, `live` for what has no file, `inside` where the plan is that of a statement in a trigger.

--- scans
-- seq_scan
SELECT * FROM visits WHERE note = 'note 7';
-- sample_scan
SELECT id FROM visits TABLESAMPLE system (50) REPEATABLE (1);
-- index_scan
SELECT note FROM visits WHERE id = 7 AND day > 0;
-- index_scan_backward
SELECT note FROM visits WHERE day > 3 ORDER BY id DESC LIMIT 3;
-- index_scan_many: enable_bitmapscan=off
SELECT note FROM visits WHERE id IN (7, 900, 5000);
-- index_only_scan
SELECT id FROM visits WHERE id < 100;
-- bitmap_and: enable_seqscan=off enable_indexscan=off
SELECT id FROM sparse WHERE k < 150 AND id < 2000;
-- bitmap_or: enable_seqscan=off
SELECT id FROM visits WHERE clinic = 5 OR day = 20;
-- bitmap_lossy: work_mem=64kB enable_seqscan=off
SELECT sum(id) FROM sparse WHERE k < 500;
-- tid_scan
SELECT id FROM visits WHERE ctid = '(0,1)';
-- tid_range_scan
SELECT id FROM visits WHERE ctid < '(2,0)';
-- subquery_scan
SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) n FROM visits) s WHERE n % 2 = 1;
-- function_scan
SELECT * FROM generate_series(1, 10) g(n), slow_sum(g.n) s WHERE n > 3;
-- rows_from: live
SELECT * FROM ROWS FROM (generate_series(1, 3), generate_series(1, 5)) AS r(a, b);
-- json_table: since:17
SELECT * FROM JSON_TABLE('[1, 2]', '$[*]' COLUMNS (n int PATH '$')) t;
-- xml_table: system
SELECT * FROM XMLTABLE('/a/b' PASSING xmlparse(document '<a><b/></a>') COLUMNS x text PATH '.') t;
-- values_scan
SELECT * FROM (VALUES (1, 'a'), (2, 'b')) v(n, t) WHERE n > 1;
-- result
SELECT 1;
-- result_never
SELECT * FROM visits WHERE (SELECT false);
-- result_false
SELECT * FROM visits WHERE false;
-- named_tuplestore: inside
INSERT INTO noted SELECT n, n FROM generate_series(1, 20) n;
-- foreign_scan: system
SELECT f.id FROM far f WHERE day = 3;
-- foreign_join: system
SELECT f.id, c.name FROM far f JOIN far_clinics c ON c.id = f.clinic WHERE f.day = 3;
-- foreign_aggregate: system
SELECT clinic, count(*) FROM far GROUP BY clinic;
-- foreign_append: system
SELECT id FROM far WHERE day = 3 UNION ALL SELECT id FROM far_clinics;
-- foreign_update: system
UPDATE far SET note = 'x' WHERE id = 3;
-- foreign_insert: system
INSERT INTO far VALUES (100000, 1, 1, 'x');

--- joins
-- hash_join: HASHED
SELECT v.id, c.name FROM visits v JOIN clinics c ON c.id = v.clinic;
-- hash_left: HASHED
SELECT c.id, v.id FROM visits v LEFT JOIN clinics c ON c.id = v.clinic;
-- hash_right: HASHED live
SELECT c.id, v.id FROM clinics c LEFT JOIN visits v ON c.id = v.clinic;
-- hash_full: HASHED
SELECT c.id, v.id FROM clinics c FULL JOIN visits v ON c.id = v.clinic;
-- hash_semi: HASHED
SELECT id FROM visits v WHERE EXISTS (SELECT FROM sparse s WHERE s.id = v.day AND s.k < v.clinic);
-- hash_right_semi: HASHED enable_hashagg=off enable_sort=off enable_indexonlyscan=off
SELECT id FROM clinics c WHERE EXISTS (SELECT FROM visits v WHERE v.clinic = c.id AND v.note > 'a');
-- hash_anti: HASHED
SELECT id FROM visits v WHERE NOT EXISTS (SELECT FROM clinics c WHERE v.clinic = c.id);
-- hash_right_anti: HASHED
SELECT id FROM clinics c WHERE NOT EXISTS (SELECT FROM visits v WHERE v.clinic = c.id);
-- merge_join: MERGED
SELECT c.id, p.id FROM clinics c JOIN visits p ON p.id = c.id;
-- merge_full: MERGED
SELECT c.id, v.id FROM clinics c FULL JOIN visits v ON c.id = v.clinic;
-- merge_left: MERGED
SELECT c.id, v.id FROM clinics c LEFT JOIN visits v ON c.id = v.id;
-- merge_materialized: MERGED enable_indexscan=off live
SELECT a.id FROM visits a JOIN visits b ON a.clinic = b.day WHERE a.id < 500;
-- merge_right_anti: MERGED
SELECT id FROM clinics c WHERE NOT EXISTS (SELECT FROM visits v WHERE v.clinic = c.id);
-- nested_loop: NESTED enable_memoize=off
SELECT v.note FROM clinics c JOIN visits v ON v.id = c.id WHERE c.kind = 1;
-- nested_left: NESTED enable_memoize=off live
SELECT c.id, v.id FROM clinics c LEFT JOIN visits v ON v.clinic = c.id AND v.day < c.kind;
-- nested_semi: NESTED
SELECT id FROM clinics c WHERE EXISTS (SELECT FROM visits v WHERE v.clinic = c.id);
-- nested_anti: NESTED live
SELECT id FROM clinics c WHERE NOT EXISTS (SELECT FROM visits v WHERE v.clinic = c.id);
-- memoize: NESTED enable_material=off
SELECT v.id, c.name FROM visits v JOIN clinics c ON c.id = v.clinic WHERE v.day < 40;
-- memoize_evicting: NESTED work_mem=64kB enable_material=off live
SELECT v.id, w.note FROM visits v JOIN visits w ON w.id = v.day;
-- materialize: NESTED
SELECT count(*) FROM clinics c JOIN clinics d ON c.kind < d.kind;
-- materialize_disk: NESTED work_mem=64kB enable_indexscan=off enable_bitmapscan=off enable_indexonlyscan=off
SELECT count(*) FROM (SELECT * FROM clinics WHERE id < 3) c JOIN visits d ON c.kind < d.day;
-- lateral
SELECT c.id, s.n FROM clinics c, LATERAL (SELECT count(*) n FROM visits v WHERE v.clinic = c.id OFFSET 0) s WHERE
    c.id < 9;
-- inner_never_executed: NESTED
SELECT * FROM (SELECT * FROM visits WHERE id = -1) v JOIN clinics c ON c.id = v.clinic;

--- sorting and grouping
-- sort_memory
SELECT id FROM visits ORDER BY note;
-- sort_disk: work_mem=64kB
SELECT id FROM visits ORDER BY note;
-- sort_top
SELECT id FROM visits ORDER BY note LIMIT 5;
-- incremental_sort: enable_seqscan=off enable_bitmapscan=off
SELECT id FROM visits ORDER BY clinic, note LIMIT 400;
-- incremental_sort_all: enable_seqscan=off enable_bitmapscan=off enable_sort=off work_mem=64kB
SELECT id FROM visits ORDER BY clinic, note;
-- hash_batches: HASHED work_mem=64kB
SELECT count(*) FROM visits a JOIN visits b ON a.note = b.note;
-- aggregate_plain
SELECT count(*), sum(day) FROM visits;
-- aggregate_sorted: enable_hashagg=off
SELECT clinic, count(*) FROM visits GROUP BY clinic HAVING count(*) > 3;
-- aggregate_hashed
SELECT clinic, count(*) FROM visits GROUP BY clinic;
-- aggregate_spilled: work_mem=64kB enable_sort=off
SELECT note, count(*) FROM visits GROUP BY note;
-- aggregate_mixed
SELECT clinic, day, count(*) FROM visits GROUP BY GROUPING SETS ((clinic), (day), ());
-- aggregate_rollup: enable_hashagg=off live
SELECT clinic, day, count(*) FROM visits WHERE id < 300 GROUP BY ROLLUP (clinic, day);
-- group: enable_hashagg=off
SELECT clinic FROM visits GROUP BY clinic;
-- unique: enable_hashagg=off
SELECT DISTINCT clinic FROM visits;
-- distinct_on
SELECT DISTINCT ON (clinic) clinic, note FROM visits ORDER BY clinic, id;
-- setop_except
SELECT clinic FROM visits EXCEPT SELECT id FROM clinics WHERE id < 40;
-- setop_intersect_all: enable_hashagg=off
SELECT clinic FROM visits INTERSECT ALL SELECT id FROM clinics;
-- union
SELECT clinic FROM visits UNION SELECT id FROM clinics;
-- limit
SELECT id FROM visits WHERE day > 9 OFFSET 5 LIMIT 10;
-- limit_nothing
SELECT id FROM visits LIMIT 0;
-- lock_rows
SELECT id FROM visits WHERE id < 20 FOR UPDATE;
-- window
SELECT id, sum(day) OVER w, rank() OVER w, lag(day) OVER (ORDER BY id) FROM visits WHERE id < 500 WINDOW w AS
    (PARTITION BY clinic ORDER BY day);
-- window_run_condition
SELECT * FROM (SELECT id, row_number() OVER (ORDER BY id) n FROM visits) s WHERE n <= 10;
-- window_disk: work_mem=64kB
SELECT id, count(*) OVER () FROM visits;
-- project_set
SELECT id, generate_series(1, kind) FROM clinics;

--- sets of tables
-- append
SELECT x FROM parts WHERE x > 10;
-- append_pruned
SELECT x FROM parts WHERE day < 100 AND x > 10;
-- append_pruned_later
SELECT x FROM parts WHERE day = (SELECT min(kind) + 150 FROM clinics);
-- append_pruned_per_loop: NESTED enable_memoize=off live
SELECT p.x FROM clinics c JOIN parts p ON p.day = c.id * 3 WHERE c.id < 20;
-- merge_append: enable_sort=off
SELECT day, x FROM parts ORDER BY day LIMIT 2500;
-- append_union_all
SELECT id FROM clinics UNION ALL SELECT id FROM visits;

--- workers
-- gather: PARALLEL
SELECT id FROM visits WHERE note LIKE '%7';
-- gather_leader_off: ALONE
SELECT id FROM visits WHERE note LIKE '%7';
-- gather_not_launched: PARALLEL max_parallel_workers=0
SELECT id FROM visits WHERE note LIKE '%7';
-- gather_fewer_launched: PARALLEL max_parallel_workers=1
SELECT id FROM visits WHERE note LIKE '%7';
-- gather_rescanned: PARALLEL NESTED enable_material=off
SELECT g, n FROM generate_series(1, 3) g LEFT JOIN (SELECT count(*) n FROM visits WHERE note > 'a') s ON s.n > g;
-- gather_single_copy: debug_parallel_query=on since:16
SELECT max(note) FROM visits;
-- gather_single_copy_15: force_parallel_mode=on system
SELECT max(note) FROM visits;
-- gather_merge: PARALLEL
SELECT id, note FROM visits WHERE day > 300 ORDER BY note;
-- gather_merge_leader_off: ALONE live
SELECT id, note FROM visits WHERE day > 300 ORDER BY note;
-- partial_aggregate: PARALLEL
SELECT count(*) FROM visits;
-- partial_aggregate_hashed: PARALLEL
SELECT clinic, count(*) FROM visits GROUP BY clinic;
-- partial_aggregate_sorted: PARALLEL enable_hashagg=off live
SELECT clinic, count(*) FROM visits GROUP BY clinic;
-- parallel_hash: PARALLEL HASHED
SELECT count(*) FROM visits a JOIN visits b ON a.note = b.note;
-- parallel_hash_left: PARALLEL HASHED live
SELECT count(*) FROM visits a LEFT JOIN clinics b ON a.clinic = b.id AND b.kind = 1;
-- parallel_hash_shared_not: PARALLEL HASHED enable_parallel_hash=off live
SELECT count(*) FROM visits a JOIN clinics b ON a.clinic = b.id;
-- parallel_nested_loop: PARALLEL NESTED enable_material=off live
SELECT count(v.note) FROM visits v JOIN clinics c ON c.id = v.clinic;
-- parallel_merge_join: PARALLEL MERGED live
SELECT count(*) FROM visits a JOIN visits b ON a.id = b.id;
-- parallel_index_scan: PARALLEL enable_seqscan=off enable_bitmapscan=off
SELECT count(note) FROM visits WHERE id < 4000;
-- parallel_index_only: PARALLEL enable_seqscan=off enable_bitmapscan=off live
SELECT count(*) FROM visits WHERE id < 4000;
-- parallel_bitmap: PARALLEL enable_seqscan=off enable_indexscan=off
SELECT count(id) FROM sparse WHERE k < 300;
-- parallel_append: PARALLEL
SELECT count(*) FROM parts WHERE x > 3;
-- parallel_window: PARALLEL live
SELECT clinic, rank() OVER (ORDER BY n) FROM (SELECT clinic, count(*) n FROM visits GROUP BY clinic) s;
-- parallel_no_rows: PARALLEL live
SELECT count(*) FROM visits WHERE note = 'none';

--- subqueries
-- initplan
SELECT id FROM visits WHERE day = (SELECT max(kind) FROM clinics);
-- initplan_output
SELECT (SELECT sum(day) FROM visits), (SELECT count(*) FROM clinics);
-- initplan_twelve
SELECT (SELECT kind FROM clinics WHERE id = 1), (SELECT kind FROM clinics WHERE id = 2), (SELECT kind FROM clinics
    WHERE id = 3), (SELECT kind FROM clinics WHERE id = 4), (SELECT kind FROM clinics WHERE id = 5), (SELECT kind FROM
    clinics WHERE id = 6), (SELECT kind FROM clinics WHERE id = 7), (SELECT kind FROM clinics WHERE id = 8), (SELECT
    kind FROM clinics WHERE id = 9), (SELECT kind FROM clinics WHERE id = 10), (SELECT kind FROM clinics WHERE id =
    11), (SELECT kind FROM clinics WHERE id = 12);
-- initplan_twelve_below
SELECT id FROM visits WHERE id IN ((SELECT kind FROM clinics WHERE id = 1), (SELECT kind FROM clinics WHERE id =
    2), (SELECT kind FROM clinics WHERE id = 3), (SELECT kind FROM clinics WHERE id = 4), (SELECT kind FROM clinics
    WHERE id = 5), (SELECT kind FROM clinics WHERE id = 6), (SELECT kind FROM clinics WHERE id = 7), (SELECT kind FROM
    clinics WHERE id = 8), (SELECT kind FROM clinics WHERE id = 9), (SELECT kind FROM clinics WHERE id = 10), (SELECT
    kind FROM clinics WHERE id = 11), (SELECT kind FROM clinics WHERE id = 12)) AND day > 0;
-- initplan_nested
SELECT id FROM clinics WHERE id > (SELECT min(day) FROM visits WHERE clinic = (SELECT max(kind) FROM clinics));
-- initplan_limit: live
SELECT id FROM visits ORDER BY id LIMIT (SELECT max(kind) FROM clinics) OFFSET (SELECT 2);
-- initplan_exists
SELECT id FROM clinics WHERE EXISTS (SELECT FROM visits WHERE note = 'note 5000');
-- initplan_exists_output
SELECT id, EXISTS (SELECT FROM visits WHERE note = 'note 5000') FROM clinics;
-- initplan_row: live
SELECT id FROM clinics WHERE (id, kind) = (SELECT day, 3 FROM visits WHERE id = 3);
-- initplan_array
SELECT id FROM visits WHERE clinic = ANY (ARRAY(SELECT id FROM clinics WHERE kind = 2));
-- initplan_minmax: live
SELECT min(id), max(id), (SELECT max(clinic) FROM visits) FROM visits;
-- initplan_under_join: NESTED enable_memoize=off live
SELECT v.id FROM clinics c JOIN visits v ON v.clinic = c.id AND v.day > (SELECT avg(day) FROM visits) WHERE c.kind = 1;
-- initplan_in_loop
SELECT c.id, s.n FROM clinics c, LATERAL (SELECT count(*) n FROM visits v WHERE v.clinic = c.id AND v.day >
    (SELECT max(kind) FROM clinics d WHERE d.id > c.id) OFFSET 0) s WHERE c.id < 9;
-- initplan_never_asked: enable_bitmapscan=off
SELECT id FROM visits WHERE id = -1 AND day = (SELECT max(kind) FROM clinics);
-- initplan_gather: PARALLEL
SELECT count(*) FROM visits WHERE day > (SELECT avg(kind) FROM clinics);
-- initplan_gather_alone: ALONE live
SELECT count(*) FROM visits WHERE day > (SELECT avg(id) FROM clinics);
-- initplan_with_workers: PARALLEL
SELECT id FROM visits WHERE day = (SELECT max(kind) FROM clinics) AND clinic > (SELECT min(day) FROM visits);
-- initplan_said_in_text
SELECT id FROM visits WHERE note <> 'the (InitPlan 1).col1 and $0' AND day < (SELECT max(kind) FROM clinics);
-- initplan_order: live
SELECT id FROM clinics ORDER BY kind = (SELECT max(clinic) FROM visits), id LIMIT 3;
-- initplan_group: live
SELECT clinic > (SELECT avg(kind) FROM clinics) AS far, count(*) FROM visits GROUP BY 1;
-- initplan_hash: HASHED live
SELECT count(*) FROM visits v JOIN clinics c ON c.id = v.clinic + (SELECT min(kind) FROM clinics);
-- initplan_one_time: live
SELECT id FROM visits WHERE (SELECT max(kind) FROM clinics) = 3 AND note > 'a';
-- subplan_filter
SELECT id FROM clinics c WHERE kind < (SELECT count(*) FROM visits v WHERE v.clinic = c.id);
-- subplan_output
SELECT id, (SELECT max(day) FROM visits v WHERE v.clinic = c.id) FROM clinics c;
-- subplan_hashed
SELECT id FROM visits WHERE clinic NOT IN (SELECT id FROM clinics WHERE kind > 1);
-- subplan_alternatives
SELECT id, EXISTS (SELECT FROM visits v WHERE v.clinic = c.id) FROM clinics c;
-- subplan_any: live
SELECT id FROM clinics c WHERE kind < ANY (SELECT day FROM visits v WHERE v.clinic = c.id);
-- subplan_nested: live
SELECT id, (SELECT sum((SELECT kind FROM clinics d WHERE d.id = v.clinic)) FROM visits v WHERE v.clinic = c.id)
    FROM clinics c WHERE id < 6;
-- subplan_workers: PARALLEL
SELECT id FROM visits v WHERE day > (SELECT kind FROM clinics c WHERE c.id = v.clinic);
-- subplan_materialized
SELECT id FROM clinics c WHERE kind < ALL (SELECT day FROM visits WHERE id < 40);

--- common table expressions
-- cte_once
WITH w AS MATERIALIZED (SELECT clinic, count(*) n FROM visits GROUP BY clinic) SELECT * FROM w WHERE n > 3;
-- cte_twice
WITH w AS (SELECT clinic, count(*) n FROM visits GROUP BY clinic) SELECT * FROM w a JOIN w b ON a.clinic = b.n;
-- cte_unequal
WITH w AS MATERIALIZED (SELECT * FROM visits) SELECT (SELECT clinic FROM w LIMIT 1), count(*) FROM w;
-- cte_nested: live
WITH a AS MATERIALIZED (SELECT id, day FROM visits WHERE id < 900), b AS MATERIALIZED (SELECT day, count(*) n FROM
    a GROUP BY day) SELECT * FROM b WHERE n > 1;
-- cte_chain_shared
WITH a AS MATERIALIZED (SELECT id, day FROM visits), b AS MATERIALIZED (SELECT day FROM a WHERE id < 9) SELECT
    (SELECT count(*) FROM b), (SELECT max(day) FROM a), (SELECT min(day) FROM b);
-- cte_unread
WITH w AS MATERIALIZED (SELECT id FROM visits) SELECT c.id FROM clinics c WHERE c.id < 0 AND EXISTS (SELECT FROM w
    WHERE w.id = c.id);
-- cte_stopped
WITH w AS MATERIALIZED (SELECT id FROM visits) SELECT id FROM w LIMIT 7;
-- cte_recursive
WITH RECURSIVE w(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM w WHERE n < 60) SELECT c.id FROM w JOIN clinics c ON
    c.id = w.n;
-- cte_recursive_union
WITH RECURSIVE w(n) AS (SELECT 1 UNION SELECT v.day FROM w JOIN visits v ON v.id = w.n + 1) SELECT count(*) FROM w;
-- cte_shadowed
WITH w AS MATERIALIZED (SELECT id FROM visits) SELECT (WITH w AS MATERIALIZED (SELECT id FROM clinics) SELECT
    count(*) FROM w), count(*) FROM w;
-- cte_in_initplan
SELECT id FROM clinics WHERE id > (WITH w AS MATERIALIZED (SELECT day FROM visits) SELECT max(day) - 360 FROM w);
-- cte_asks_initplan: live
WITH w AS MATERIALIZED (SELECT id FROM visits WHERE day > (SELECT avg(kind) FROM clinics)) SELECT count(*) FROM w;
-- cte_workers_inside: PARALLEL
WITH w AS MATERIALIZED (SELECT id FROM visits WHERE note LIKE '%7') SELECT count(*) FROM w;
-- cte_workers_stopped: PARALLEL
WITH w AS MATERIALIZED (SELECT id FROM visits WHERE note LIKE '%7') SELECT * FROM w LIMIT 3;
-- initplan_workers_inside: PARALLEL live
SELECT id FROM clinics WHERE id > (SELECT min(kind) FROM (SELECT clinic AS kind FROM visits WHERE note LIKE '%7') s);
-- initplan_workers_stopped: PARALLEL
SELECT id FROM clinics WHERE EXISTS (SELECT FROM visits WHERE note LIKE '%7') AND kind > (SELECT clinic FROM
    visits WHERE note LIKE '%8' LIMIT 1);
-- cte_spilled: work_mem=64kB
WITH w AS MATERIALIZED (SELECT * FROM visits) SELECT count(*) FROM w a JOIN w b ON a.id = b.id + 1;
-- cte_in_loop: live
SELECT c.id, s.n FROM clinics c, LATERAL (WITH w AS MATERIALIZED (SELECT day FROM visits v WHERE v.clinic = c.id)
    SELECT count(*) n FROM w) s WHERE c.id < 6;
-- cte_insert_read
WITH w AS (INSERT INTO stock SELECT n, n FROM generate_series(100, 200) n RETURNING id) SELECT count(*) FROM w;
-- cte_update_unread
WITH w AS (UPDATE stock SET n = n + 1 RETURNING id) SELECT id FROM clinics WHERE id < 4;
-- cte_delete_partly_read
WITH w AS (DELETE FROM children WHERE id < 500 RETURNING id) SELECT id FROM w LIMIT 3;
-- cte_writes_two: corpus.options=COSTS
WITH w AS (DELETE FROM stock WHERE id < 9 RETURNING id), x AS (INSERT INTO noted SELECT id, id FROM w RETURNING
    id) SELECT count(*) FROM stock;

--- writing
-- insert
INSERT INTO stock SELECT n, n FROM generate_series(100, 150) n;
-- insert_values
INSERT INTO stock VALUES (100, 1);
-- insert_conflict
INSERT INTO stock VALUES (1, 1), (100, 2) ON CONFLICT (id) DO UPDATE SET n = stock.n + 1 WHERE stock.n > 0;
-- insert_triggers: corpus.options=COSTS
INSERT INTO noted SELECT n, n FROM generate_series(1, 20) n;
-- update
UPDATE stock SET n = n + 1 WHERE id < 9 RETURNING id, n;
-- update_partitions
UPDATE parts SET x = 0 WHERE day IN (99, 101);
-- update_initplan
UPDATE stock SET n = (SELECT max(day) FROM visits);
-- delete
DELETE FROM stock WHERE id IN (SELECT kind FROM clinics);
-- delete_cascade
DELETE FROM parents WHERE id < 6;
-- merge
MERGE INTO stock s USING (SELECT n, n * 2 AS m FROM generate_series(15, 25) n) u ON s.id = u.n WHEN MATCHED AND
    s.n < 18 THEN DELETE WHEN MATCHED THEN UPDATE SET n = m WHEN NOT MATCHED THEN INSERT VALUES (u.n, m);

--- situations
-- disabled: enable_seqscan=off
SELECT * FROM sparse WHERE pad = 'x';
-- disabled_below: enable_seqscan=off enable_indexscan=off enable_indexonlyscan=off enable_bitmapscan=off HASHED
SELECT count(*) FROM sparse s JOIN clinics c ON s.k = c.id;
-- deep: live
SELECT * FROM (SELECT * FROM (SELECT * FROM (SELECT * FROM (SELECT * FROM (SELECT * FROM (SELECT * FROM (SELECT *
    FROM visits WHERE id = 1 OFFSET 0) s2 WHERE id > -7 OFFSET 0) s3 WHERE id > -6 OFFSET 0) s4 WHERE id > -5 OFFSET
    0) s5 WHERE id > -4 OFFSET 0) s6 WHERE id > -3 OFFSET 0) s7 WHERE id > -2 OFFSET 0) s8 WHERE id > -1;
-- hostile
SELECT * FROM "say ""hi"" !"."</script><b>'$0' (InitPlan 1).col1" AS "it's ""t"" </script>" WHERE U&"a\000ab" < 9 AND U&"\202edesrever" <> E'''</script>
$0 (InitPlan 1).col1 "plan: {"';
-- hostile_initplan
SELECT * FROM "say ""hi"" !"."</script><b>'$0' (InitPlan 1).col1" WHERE U&"a\000ab" = (SELECT max(kind) FROM
    clinics) AND U&"\202edesrever" <> '$0''$0';
-- jit: jit=on jit_above_cost=0 jit_inline_above_cost=0 system
SELECT sum(day) FROM visits;
-- io_timing: track_io_timing=on work_mem=64kB system
SELECT sum(id) FROM sparse WHERE k > 3;

--- EXPLAIN's other options
-- planned (VERBOSE, SETTINGS)
SELECT v.id FROM visits v JOIN clinics c ON c.id = v.clinic WHERE day = (SELECT max(kind) FROM clinics);
-- planned_workers (COSTS): PARALLEL
SELECT count(*) FROM visits;
-- planned_cte (BUFFERS, COSTS)
WITH w AS MATERIALIZED (SELECT id FROM visits) SELECT * FROM w LIMIT 3;
-- no_costs (COSTS OFF)
SELECT id FROM visits WHERE day = 3;
-- no_timing (ANALYZE, TIMING OFF, BUFFERS)
WITH w AS MATERIALIZED (SELECT id FROM visits) SELECT count(*) FROM w, clinics c WHERE c.id = w.id;
-- no_summary (ANALYZE, SUMMARY OFF)
SELECT id FROM visits WHERE day = 3;
-- no_buffers (ANALYZE, BUFFERS OFF)
SELECT id FROM visits WHERE day = (SELECT max(kind) FROM clinics);
-- generic (GENERIC_PLAN, VERBOSE): since:16
SELECT id FROM visits WHERE day = $1 AND note <> $2;
-- serialized (ANALYZE, BUFFERS, SERIALIZE TEXT, MEMORY, SETTINGS): since:17
SELECT * FROM visits;
