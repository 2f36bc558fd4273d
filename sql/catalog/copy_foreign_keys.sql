-- Every foreign key of a table that holds rows: its columns and those they refer to, in order.
SELECT format('%I.%I', cn.nspname, c.relname) AS child,
       format('%I.%I', pn.nspname, p.relname) AS parent,
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
ORDER BY 1, f.conname;
