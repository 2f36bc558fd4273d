-- Which appointments does this patient still have in this clinic, the next one first?
SELECT id, contact_id, scheduled_at, duration_minutes, status, notes
FROM appointments
WHERE org_id = %(org_id)s::uuid
  AND contact_id = %(contact_id)s::uuid
  AND scheduled_at >= now()
  AND status <> 'cancelled'
ORDER BY scheduled_at
LIMIT 100
