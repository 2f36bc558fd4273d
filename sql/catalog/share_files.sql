-- Let a new database share its template's files until they are written to, if the server can (since 18).
SELECT set_config(name, 'clone', false) FROM pg_settings WHERE name = 'file_copy_method' AND 'clone' = ANY (enumvals);
