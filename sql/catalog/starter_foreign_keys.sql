-- Every foreign key: its table, its columns in order, and the referenced table; partitions are left out.
SELECT format('%I.%I', cn.nspname, c.relname) AS child,
       format('%I.%I', pn.nspname, p.relname) AS parent,
       (SELECT array_agg(quote_ident(a.attname) ORDER BY k.ord)
        FROM unnest(f.conkey) WITH ORDINALITY k (attnum, ord)
        JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.attnum) AS columns
FROM pg_constraint f
JOIN pg_class c ON c.oid = f.conrelid AND NOT c.relispartition
JOIN pg_namespace cn ON cn.oid = c.relnamespace
JOIN pg_class p ON p.oid = f.confrelid AND NOT p.relispartition
JOIN pg_namespace pn ON pn.oid = p.relnamespace
WHERE f.contype = 'f'
ORDER BY 1, f.conname;
