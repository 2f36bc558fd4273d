-- Since when pg_stat_statements counts, and how often it made room for others.
SELECT stats_reset AS reset, dealloc AS dropped FROM :schema.pg_stat_statements_info;
