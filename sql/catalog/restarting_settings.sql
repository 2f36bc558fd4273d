-- Settings that apply to all databases of a server at once, or need a restart.
SELECT lower(name) AS name
FROM pg_settings
WHERE context IN ('postmaster', 'sighup');
