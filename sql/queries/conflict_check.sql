-- Does this patient already have an appointment in this clinic that overlaps the wanted one?
SELECT id, scheduled_at, duration_minutes
FROM appointments
WHERE org_id = %(org_id)s::uuid
  AND contact_id = %(contact_id)s::uuid
  -- No appointment lasts longer than 120 minutes, so an index on scheduled_at can bound the search on both sides.
  AND scheduled_at > %(scheduled_at)s::timestamptz - interval '120 minutes'
  AND scheduled_at < %(scheduled_at)s::timestamptz + make_interval(mins => %(duration_minutes)s::integer)
  AND scheduled_at + make_interval(mins => duration_minutes) > %(scheduled_at)s::timestamptz
  AND status <> 'cancelled'
LIMIT 1
