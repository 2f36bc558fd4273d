-- Names that a new index cannot have.
SELECT DISTINCT relname AS name FROM pg_catalog.pg_class WHERE oid >= 16384
