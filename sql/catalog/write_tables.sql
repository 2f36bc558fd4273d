-- Facts for generating statements that write to these tables: columns, keys, and columns of indexes.
SELECT t.given,
       t.oid::bigint AS oid,
       format('%%I.%%I', n.nspname, c.relname) AS quoted,
       CASE n.nspname WHEN 'public' THEN '' ELSE n.nspname || '.' END || c.relname AS "table",
       c.relname AS name,
       c.relkind = 'p' AS partitioned,
       greatest(c.reltuples, 0)::bigint AS rows,
       (SELECT json_agg(json_build_object(
                   'number', a.attnum,
                   'name', a.attname,
                   'quoted', quote_ident(a.attname),
                   'type', format_type(a.atttypid, a.atttypmod),
                   'base', coalesce(nullif(y.typbasetype, 0), y.oid)::regtype::text,
                   'long', a.atttypmod = -1 OR a.atttypmod >= 36,
                   'generated', a.attgenerated <> '',
                   'filled', a.attnotnull OR coalesce(s.null_frac, 0) < 0.9
               ) ORDER BY a.attnum)
        FROM pg_attribute a
        JOIN pg_type y ON y.oid = a.atttypid
        LEFT JOIN pg_stats s ON (s.schemaname, s.tablename, s.attname) = (n.nspname, c.relname, a.attname) AND NOT s.inherited
        WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
       -- the primary key first, then the narrowest: whole, on plain columns
       (SELECT json_agg(x.indkey::int2[] ORDER BY NOT x.indisprimary, x.indnkeyatts)
        FROM pg_index x
        WHERE x.indrelid = t.oid AND x.indisunique AND x.indisvalid AND x.indpred IS NULL AND 0 <> ALL (x.indkey)
          AND NOT EXISTS (SELECT FROM pg_attribute a
                          WHERE a.attrelid = t.oid AND a.attnum = ANY (x.indkey) AND NOT a.attnotnull)) AS keys,
       (SELECT json_agg(unique_columns.numbers)
        FROM pg_index x
        CROSS JOIN LATERAL (SELECT array_agg(d.refobjsubid) AS numbers
                            FROM pg_depend d
                            WHERE d.refobjid = t.oid AND d.refobjsubid > 0
                              AND (d.objid = x.indexrelid OR d.objid = (SELECT k.oid FROM pg_constraint k
                                                                        WHERE k.conindid = x.indexrelid
                                                                          AND k.contype IN ('p', 'u', 'x')))
                           ) unique_columns
        WHERE x.indrelid = t.oid AND (x.indisunique OR x.indisexclusion)) AS uniques,
       (SELECT coalesce(json_agg(DISTINCT d.refobjsubid), '[]')
        FROM pg_index x
        LEFT JOIN pg_constraint k ON k.conindid = x.indexrelid AND k.contype IN ('p', 'u', 'x')
        JOIN pg_depend d ON d.objid IN (x.indexrelid, k.oid) AND d.refobjid = t.oid AND d.refobjsubid > 0
        WHERE x.indrelid = t.oid) AS indexed,
       (SELECT coalesce(json_agg(f.conkey), '[]')
        FROM pg_constraint f WHERE f.conrelid = t.oid AND f.contype = 'f') AS foreign_keys
FROM (SELECT DISTINCT ON (to_regclass(given)) given, to_regclass(given) AS oid FROM unnest(%(tables)s::text[]) given) t
JOIN pg_class c ON c.oid = t.oid
JOIN pg_namespace n ON n.oid = c.relnamespace;
