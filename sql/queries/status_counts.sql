-- How many appointments of this clinic are in which status?
SELECT status, count(*) AS appointments
FROM appointments
WHERE org_id = %(org_id)s::uuid
GROUP BY status
ORDER BY status
