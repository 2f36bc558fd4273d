-- Functions of extensions in column defaults that use only built-in types.
SELECT DISTINCT e.extname AS extension,
       quote_ident(n.nspname) AS schema,
       format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) AS signature,
       format_type(p.prorettype, NULL) AS returns
FROM pg_depend d
JOIN pg_attrdef f ON f.oid = d.objid
JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum AND a.attgenerated = ''
JOIN pg_proc p ON p.oid = d.refobjid
JOIN pg_namespace n ON n.oid = p.pronamespace
JOIN pg_depend m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid AND m.deptype = 'e'
JOIN pg_extension e ON e.oid = m.refobjid
WHERE d.classid = 'pg_attrdef'::regclass
  AND d.refclassid = 'pg_proc'::regclass
  AND p.prorettype < 16384
  AND NOT EXISTS (SELECT FROM unnest(p.proargtypes::oid[]) argument WHERE argument >= 16384)
ORDER BY 3;
