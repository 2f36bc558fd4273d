-- The categories of types in pg_type.
SELECT oid, typcategory::text AS category FROM pg_catalog.pg_type WHERE oid = ANY (%(types)s::oid[])
