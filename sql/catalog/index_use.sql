-- One row: every index of the user's tables with the facts that judge it, every foreign key, and how reliable the
-- usage counters are. An index of a partitioned table and those of its partitions count as one.
WITH own AS (
    SELECT x.*, i.relname AS name, i.reloptions, m.amname, t.relname, t.relkind, n.nspname,
           format('%I.%I', n.nspname, i.relname) AS quoted
    FROM pg_index x
    JOIN pg_class i ON i.oid = x.indexrelid AND NOT i.relispartition
    JOIN pg_am m ON m.oid = i.relam
    JOIN pg_class t ON t.oid = x.indrelid
    JOIN pg_namespace n ON n.oid = t.relnamespace
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM pg_depend d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid IN (t.oid, i.oid) AND d.deptype = 'e')
), indexes AS (
    SELECT o.indexrelid::bigint AS oid, o.name, o.quoted,
           CASE o.nspname WHEN 'public' THEN '' ELSE o.nspname || '.' END || o.relname AS "table",
           format('%I.%I', o.nspname, o.relname) AS quoted_table,
           o.relkind = 'p' AS partitioned, o.amname AS method,
           pg_get_indexdef(o.indexrelid) AS definition,
           keys.keys, keys.kinds, keys.collations, keys.orders,
           ARRAY(SELECT pg_get_indexdef(o.indexrelid, k, false)
                 FROM generate_series(o.indnkeyatts + 1, o.indnatts) k) AS include,
           coalesce(pg_get_expr(o.indpred, o.indrelid), '') AS predicate,
           coalesce(o.reloptions, '{}') AS options,
           o.indisunique AS "unique", o.indisprimary AS "primary", o.indisexclusion AS exclusion,
           o.indimmediate AS immediate, o.indisreplident AS identity,
           coalesce(to_jsonb(o) ->> 'indnullsnotdistinct', 'false')::bool AS nulls_equal,  -- since 15
           coalesce((SELECT min(c.conname) FROM pg_constraint c
                     WHERE c.conindid = o.indexrelid AND c.contype <> 'f'), '') AS "constraint",
           EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = o.indexrelid AND c.contype = 'f')
           OR EXISTS (SELECT FROM pg_depend d
                      WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = o.indexrelid AND d.deptype = 'n')
               AS referenced,
           o.indisvalid AND o.indisready AND o.indislive AS valid,
           -- a build holds it, and so do VACUUM and ANALYZE; everybody may see that
           EXISTS (SELECT FROM pg_locks l
                   WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                     AND l.relation = o.indrelid AND l.mode = 'ShareUpdateExclusiveLock' AND l.granted) AS busy,
           parts.parts, parts.members, parts.scans, parts.table_scans, parts.clustered
    FROM own o
    CROSS JOIN LATERAL (
        SELECT json_agg(pg_get_indexdef(o.indexrelid, k.n, false) ORDER BY k.n) AS keys,
               json_agg(CASE WHEN p.opcdefault THEN '' WHEN p.opcnamespace = 'pg_catalog'::regnamespace THEN p.opcname
                             ELSE p.opcnamespace::regnamespace::text || '.' || p.opcname END
                        || coalesce(array_to_string(a.attoptions, ','), '') ORDER BY k.n) AS kinds,
               json_agg(CASE WHEN o.indcollation[k.n - 1] IN (0, coalesce(b.attcollation, 100)) THEN ''  -- 100: default
                        ELSE o.indcollation[k.n - 1]::regcollation::text END ORDER BY k.n) AS collations,
               json_agg(o.indoption[k.n - 1] ORDER BY k.n) AS orders
        FROM generate_series(1, o.indnkeyatts) k (n)
        JOIN pg_attribute a ON a.attrelid = o.indexrelid AND a.attnum = k.n
        JOIN pg_opclass p ON p.oid = o.indclass[k.n - 1]
        LEFT JOIN pg_attribute b ON b.attrelid = o.indrelid AND b.attnum = o.indkey[k.n - 1] AND b.attnum <> 0
    ) keys
    CROSS JOIN LATERAL (
        SELECT json_object_agg(x.indrelid, coalesce(pg_relation_size(x.indexrelid), 0)) AS parts,
               json_agg(i.relname ORDER BY i.relname) AS members,
               bool_or(x.indisclustered) AS clustered,
               sum(coalesce(pg_stat_get_numscans(x.indexrelid), 0)) AS scans,
               sum(coalesce(pg_stat_get_numscans(x.indrelid), 0)) AS table_scans
        FROM (SELECT o.indexrelid AS oid UNION SELECT relid FROM pg_partition_tree(o.indexrelid)) tree
        JOIN pg_index x ON x.indexrelid = tree.oid
        JOIN pg_class i ON i.oid = tree.oid
    ) parts
), foreign_keys AS (
    SELECT f.conname AS name,
           CASE n.nspname WHEN 'public' THEN '' ELSE n.nspname || '.' END || t.relname AS "table",
           format('%I.%I', n.nspname, t.relname) AS quoted_table, t.relkind = 'p' AS partitioned,
           format('%I.%I', pn.nspname, p.relname) AS parent,
           (SELECT json_agg(quote_ident(a.attname) ORDER BY k.n)
            FROM unnest(f.conkey) WITH ORDINALITY k (attnum, n)
            JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.attnum) AS columns,
           tree.parts,
           (SELECT coalesce(sum(pg_stat_get_tuples_deleted(d.oid) + pg_stat_get_tuples_updated(d.oid)), 0)
            FROM (SELECT f.confrelid AS oid UNION SELECT relid FROM pg_partition_tree(f.confrelid)) d) AS changes
    FROM pg_constraint f
    JOIN pg_class t ON t.oid = f.conrelid
    JOIN pg_namespace n ON n.oid = t.relnamespace
    JOIN pg_class p ON p.oid = f.confrelid
    JOIN pg_namespace pn ON pn.oid = p.relnamespace
    CROSS JOIN LATERAL (
        SELECT coalesce(json_object_agg(c.oid, coalesce(pg_relation_size(c.oid), 0)), '{}') AS parts
        FROM (SELECT t.oid UNION SELECT relid FROM pg_partition_tree(t.oid)) d
        JOIN pg_class c ON c.oid = d.oid AND c.relkind = 'r'
    ) tree
    WHERE f.contype = 'f' AND f.conparentid = 0
      AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM pg_depend d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = t.oid AND d.deptype = 'e')
)
SELECT coalesce((SELECT json_agg(x ORDER BY x."table", x.name) FROM indexes x), '[]') AS indexes,
       coalesce((SELECT json_agg(f ORDER BY f."table", f.name) FROM foreign_keys f), '[]') AS foreign_keys,
       json_build_object(
           'since', coalesce(to_char(s.since, 'YYYY-MM-DD'), ''),
           'days', extract(epoch FROM now() - s.since) / 86400,
           'replica', pg_is_in_recovery(),
           'replicas', k.replicas,
           'counted', current_setting('track_counts')::bool,
           'database', (SELECT system_identifier FROM pg_control_system())
                       || '/' || (SELECT oid FROM pg_database WHERE datname = current_database()),
           'server', pg_postmaster_start_time()) AS counters
-- A crash, an upgrade and a restore into a new database begin counting anew, and leave no date of a reset. Then the
-- oldest date among the counters of this database's own tables says how long they are there at least.
FROM (SELECT coalesce(
          (SELECT stats_reset FROM pg_stat_database WHERE datname = current_database()),
          (SELECT min(seen.at)
           FROM pg_stat_all_tables t
           JOIN pg_class c ON c.oid = t.relid AND NOT c.relisshared
           CROSS JOIN LATERAL (VALUES
               (t.last_vacuum), (t.last_autovacuum), (t.last_analyze), (t.last_autoanalyze),
               ((to_jsonb(t) ->> 'last_seq_scan')::timestamptz),  -- since 16
               ((to_jsonb(t) ->> 'last_idx_scan')::timestamptz)) seen (at))) AS since) s,
     -- Logical subscribers and copies of the WAL answer no queries of this database's.
     (SELECT (SELECT count(*) FROM pg_stat_replication r
              WHERE coalesce(r.application_name, '') NOT IN ('pg_basebackup', 'pg_receivewal')
                AND NOT EXISTS (SELECT FROM pg_replication_slots l
                                WHERE l.slot_type = 'logical' AND l.active_pid = r.pid))
             + (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT active) AS replicas) k;
