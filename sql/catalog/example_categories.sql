-- The categories of types, as pg_type has them.
SELECT oid, typcategory::text AS category FROM pg_catalog.pg_type WHERE oid = ANY (%(types)s::oid[])
