-- A table by its name in a statement, and the relation that has the name of an index there.
SELECT t.relkind::text AS kind,
       quote_ident(n.nspname) AS schema,
       quote_ident(n.nspname) || '.' || quote_ident(t.relname) AS "table",
       quote_ident(t.relname) AS bare,
       quote_ident(n.nspname) || '.' || quote_ident(%(name)s::text) AS quoted,
       quote_ident(%(name)s::text) AS bare_index,
       n.nspname ~ '^pg_' OR n.nspname = 'information_schema' AS system,
       pg_has_role(t.relowner, 'USAGE') AS owner,
       pg_get_userbyid(t.relowner)::text AS owned_by,
       has_schema_privilege(n.oid, 'CREATE') AS creatable,
       (SELECT string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod)
                   || CASE WHEN a.attcollation NOT IN (0, y.typcollation)
                           THEN ' COLLATE ' || quote_ident(s.nspname) || '.' || quote_ident(o.collname) ELSE '' END
                   || CASE a.attgenerated WHEN 'v' -- which cannot be indexed
                           THEN ' GENERATED ALWAYS AS (' || pg_get_expr(d.adbin, d.adrelid) || ') VIRTUAL' ELSE '' END,
                   ', ' ORDER BY a.attnum)
        FROM pg_attribute a
        JOIN pg_type y ON y.oid = a.atttypid
        LEFT JOIN pg_collation o ON o.oid = a.attcollation
        LEFT JOIN pg_namespace s ON s.oid = o.collnamespace
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
       i.oid::bigint AS relation,
       i.relkind::text AS index_kind,
       coalesce(x.indrelid = t.oid, false) AS on_it,
       x.indisvalid AND x.indisready AND x.indislive AS valid,
       CASE WHEN x.indrelid <> t.oid THEN pg_get_indexdef(i.oid) END AS definition,
       coalesce(pg_relation_size(x.indexrelid), 0) AS bytes,
       (SELECT min(k.conname)::text FROM pg_constraint k
        WHERE k.conindid = i.oid AND k.contype IN ('p', 'u', 'x')) AS "constraint",
       (SELECT min(p.pid) FROM pg_stat_progress_create_index p WHERE p.index_relid = i.oid) AS builder
FROM pg_class t
JOIN pg_namespace n ON n.oid = t.relnamespace
LEFT JOIN pg_class i ON i.relnamespace = n.oid AND i.relname = %(name)s::text
LEFT JOIN pg_index x ON x.indexrelid = i.oid
WHERE t.oid = to_regclass(%(table)s::text);
