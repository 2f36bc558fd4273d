-- One row: scans of the newest hundred indexes of the user's tables, and the number of indexes that the planner cannot
-- use, without those that are being built.
SELECT (SELECT count(*)
        FROM pg_index x
        JOIN pg_class i ON i.oid = x.indexrelid AND i.relkind = 'i'
        JOIN pg_namespace n ON n.oid = i.relnamespace
        WHERE NOT (x.indisvalid AND x.indisready AND x.indislive)
          AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
          AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p
                          WHERE p.datname = current_database() AND p.index_relid = x.indexrelid))::float8
           AS invalid_indexes,
       (SELECT coalesce(json_object_agg(name, scans), '{}')
        FROM (SELECT CASE schemaname WHEN 'public' THEN '' ELSE schemaname || '.' END || indexrelname AS name,
                     coalesce(idx_scan, 0) AS scans
              FROM pg_stat_user_indexes
              ORDER BY indexrelid DESC
              LIMIT 100) newest) AS scans;
