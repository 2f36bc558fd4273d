-- Settings that a running server takes for all its databases at once, or not at all.
SELECT lower(name) AS name
FROM pg_settings
WHERE context IN ('postmaster', 'sighup');
