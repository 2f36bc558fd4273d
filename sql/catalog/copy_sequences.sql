-- Where every sequence stands.
SELECT format('%I.%I', schemaname, sequencename) AS name, last_value
FROM pg_sequences
WHERE last_value IS NOT NULL;
