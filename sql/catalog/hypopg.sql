-- The schema of HypoPG's functions if it is installed in this database and usable, and its versions: that of the
-- functions here, and that of the files on the server, which may differ.
SELECT pg_catalog.quote_ident(n.nspname) AS schema, e.extversion AS version, a.default_version AS files
FROM pg_catalog.pg_extension e
JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
LEFT JOIN pg_catalog.pg_available_extensions() a ON a.name = e.extname
WHERE e.extname = 'hypopg' AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
