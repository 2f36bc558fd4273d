-- Every foreign key of a table that holds rows: its columns and the referenced columns, in order, and the tables that
-- hold the referenced rows. PostgreSQL's internal copies of a key for referenced partitions are left out.
SELECT format('%I.%I', cn.nspname, c.relname) AS child,
       CASE p.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END || format('%I.%I', pn.nspname, p.relname) AS parent_rows,
       coalesce((SELECT array_agg(format('%I.%I', ln.nspname, l.relname))
                 FROM pg_partition_tree(CASE p.relkind WHEN 'p' THEN p.oid END) tree
                 JOIN pg_class l ON l.oid = tree.relid AND l.relkind = 'r'
                 JOIN pg_namespace ln ON ln.oid = l.relnamespace),
                ARRAY[format('%I.%I', pn.nspname, p.relname)]) AS parents,
       (SELECT array_agg(quote_ident(a.attname) ORDER BY k.ord)
        FROM unnest(f.conkey) WITH ORDINALITY k (attnum, ord)
        JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.attnum) AS columns,
       (SELECT array_agg(quote_ident(a.attname) ORDER BY k.ord)
        FROM unnest(f.confkey) WITH ORDINALITY k (attnum, ord)
        JOIN pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = k.attnum) AS parent_columns
FROM pg_constraint f
JOIN pg_class c ON c.oid = f.conrelid AND c.relkind = 'r'
JOIN pg_namespace cn ON cn.oid = c.relnamespace
JOIN pg_class p ON p.oid = f.confrelid
JOIN pg_namespace pn ON pn.oid = p.relnamespace
WHERE f.contype = 'f'
  AND NOT EXISTS (SELECT FROM pg_constraint whole WHERE whole.oid = f.conparentid AND whole.conrelid = f.conrelid)
ORDER BY cardinality(f.conkey) DESC, 1, f.conname;
