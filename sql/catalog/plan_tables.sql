-- Catalogue data of the tables in a plan: sizes, age of statistics, columns, indexes, foreign keys.
WITH wanted AS (
    SELECT DISTINCT c.oid, n.nspname AS schema, c.relname AS name, c.reltuples, c.relpages, c.relkind
    FROM unnest(%(schemas)s::text[], %(tables)s::text[]) AS w (schema, name)
    JOIN pg_catalog.pg_class c ON c.relname = w.name AND c.relkind IN ('r', 'p', 'm', 'f')
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE CASE WHEN w.schema = '' THEN pg_catalog.pg_table_is_visible(c.oid) ELSE n.nspname = w.schema END
)
SELECT pg_catalog.json_build_object(
    'schema', w.schema,
    'name', w.name,
    'rows', greatest(w.reltuples, 0),
    'pages', w.relpages,
    'size', CASE WHEN w.relkind IN ('r', 'm') THEN
        pg_catalog.pg_relation_size(w.oid) / pg_catalog.current_setting('block_size')::pg_catalog.int8 END,
    'dead', s.n_dead_tup,
    'changed', s.n_mod_since_analyze,
    'inserted', s.n_tup_ins,
    'rewritten', s.n_tup_upd + s.n_tup_del,
    'analyzed', greatest(s.last_analyze, s.last_autoanalyze) IS NOT NULL,
    'vacuumed', greatest(s.last_vacuum, s.last_autovacuum) > greatest(s.last_analyze, s.last_autoanalyze),
    'hidden', pg_catalog.row_security_active(w.oid) OR NOT pg_catalog.has_any_column_privilege(w.oid, 'SELECT'),
    'parent', (
        SELECT pg_catalog.json_build_array(n.nspname, p.relname)
        FROM pg_catalog.pg_class p JOIN pg_catalog.pg_namespace n ON n.oid = p.relnamespace
        WHERE p.oid = pg_catalog.pg_partition_root(w.oid) AND p.oid <> w.oid
    ),
    'columns', (
        SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
            'name', a.attname,
            'type', pg_catalog.format_type(a.atttypid, NULL),
            'distinct', st.n_distinct,
            'commonest', (st.most_common_freqs)[1]
        ) ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a
        LEFT JOIN pg_catalog.pg_stats st
            ON st.schemaname = w.schema AND st.tablename = w.name AND st.attname = a.attname AND NOT st.inherited
        WHERE a.attrelid = w.oid AND a.attnum > 0 AND NOT a.attisdropped
    ),
    'indexes', (
        SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
            'name', ic.relname,
            'method', am.amname,
            'unique', i.indisunique,
            'valid', i.indisvalid,
            'predicate', pg_catalog.pg_get_expr(i.indpred, i.indrelid),
            'keys', (
                SELECT pg_catalog.json_agg(pg_catalog.pg_get_indexdef(i.indexrelid, k, true) ORDER BY k)
                FROM pg_catalog.generate_series(1, i.indnkeyatts) k
            ),
            'definition', pg_catalog.pg_get_indexdef(i.indexrelid)
        ) ORDER BY ic.relname)
        FROM pg_catalog.pg_index i
        JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid
        JOIN pg_catalog.pg_am am ON am.oid = ic.relam
        WHERE i.indrelid = w.oid
    ),
    'referenced_by', (
        SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
            'constraint', f.conname,
            'table', f.conrelid::pg_catalog.regclass::text,
            'columns', (
                SELECT pg_catalog.json_agg(a.attname ORDER BY k.n)
                FROM unnest(f.conkey) WITH ORDINALITY AS k (attnum, n)
                JOIN pg_catalog.pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.attnum
            ),
            'indexed', EXISTS (
                SELECT FROM pg_catalog.pg_index i
                WHERE i.indrelid = f.conrelid AND i.indisvalid AND i.indpred IS NULL
                AND (i.indkey::int2[])[0:pg_catalog.cardinality(f.conkey) - 1] OPERATOR(pg_catalog.@>) f.conkey
            )
        ) ORDER BY f.conname)
        FROM pg_catalog.pg_constraint f
        WHERE f.confrelid = w.oid AND f.contype = 'f'
    )
) AS facts
FROM wanted w
LEFT JOIN pg_catalog.pg_stat_all_tables s ON s.relid = w.oid
ORDER BY w.schema, w.name
