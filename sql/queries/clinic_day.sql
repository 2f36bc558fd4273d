-- What does this clinic's day (UTC) look like, in order of time?
SELECT appointments.id, scheduled_at, duration_minutes, status, contact_id, contacts.name AS contact
FROM appointments
JOIN contacts ON contacts.id = appointments.contact_id
WHERE appointments.org_id = %(org_id)s::uuid
  AND scheduled_at >= %(day)s::date::timestamp AT TIME ZONE 'UTC'
  AND scheduled_at < (%(day)s::date + 1)::timestamp AT TIME ZONE 'UTC'
ORDER BY scheduled_at, appointments.id
