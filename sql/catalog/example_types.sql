-- The types of a prepared statement's parameters, each with its category, that of an array's elements, a first value.
SELECT p.number::integer AS number,
       t.oid,
       pg_catalog.format_type(t.oid, -1) AS type,
       t.typcategory::text AS category,
       CASE t.typcategory WHEN 'A' THEN t.typelem ELSE t.oid END AS element,
       coalesce(e.typcategory, t.typcategory)::text AS element_category,
       (SELECT enumlabel FROM pg_catalog.pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder LIMIT 1) AS label
FROM pg_catalog.pg_prepared_statements s
CROSS JOIN unnest(s.parameter_types) WITH ORDINALITY AS p (type, number)
JOIN pg_catalog.pg_type t ON t.oid = p.type
LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
WHERE s.name = 'perfkit_types'
ORDER BY number
