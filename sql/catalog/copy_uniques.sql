-- The columns or expressions of every unique index of a table, its predicate, and whether NULL equals NULL in it.
-- Indexes on generated columns are left out: these have no value yet while rows are generated.
SELECT format('%I.%I', n.nspname, c.relname) AS "table",
       (SELECT array_agg(pg_get_indexdef(x.indexrelid, k, false) ORDER BY k)
        FROM generate_series(1, x.indnkeyatts) k) AS columns,
       pg_get_expr(x.indpred, x.indrelid) AS predicate,
       coalesce((to_jsonb(x) ->> 'indnullsnotdistinct')::boolean, false) AS nulls_equal
FROM pg_index x
JOIN pg_class c ON c.oid = x.indrelid AND c.relkind = 'r'
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE x.indisunique
  AND NOT EXISTS (SELECT FROM pg_depend d
                  JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid AND a.attgenerated <> ''
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = x.indexrelid AND d.refobjid = x.indrelid)
  AND n.nspname !~ '^pg_'
  AND n.nspname <> 'information_schema'
ORDER BY 1, 2;
