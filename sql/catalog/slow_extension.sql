-- The schema of pg_stat_statements in this database, the columns of its view, and the rights that this role lacks.
SELECT quote_ident(n.nspname) AS schema,
       has_schema_privilege(n.oid, 'USAGE') AS usable,
       coalesce(has_table_privilege(c.oid, 'SELECT'), false) AS readable,
       current_setting('pg_stat_statements.max', true) AS most,
       quote_ident(current_user) AS "user",
       (SELECT array_agg(a.attname::text) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0) AS columns,
       EXISTS (SELECT FROM pg_class i WHERE i.relnamespace = n.oid AND i.relname = 'pg_stat_statements_info') AS info
FROM pg_extension x
JOIN pg_namespace n ON n.oid = x.extnamespace
LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = 'pg_stat_statements'
WHERE x.extname = 'pg_stat_statements';
