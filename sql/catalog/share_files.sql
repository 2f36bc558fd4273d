-- A new database shares its template's files until they are written to, where the server knows that (since 18).
SELECT set_config(name, 'clone', false) FROM pg_settings WHERE name = 'file_copy_method' AND 'clone' = ANY (enumvals);
