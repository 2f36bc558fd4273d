-- When pg_stat_statements was reset, and how often it dropped entries.
SELECT stats_reset AS reset, dealloc AS dropped FROM :schema.pg_stat_statements_info;
