-- A patient books; the conflict check before it found the slot free.
INSERT INTO appointments (org_id, contact_id, scheduled_at, duration_minutes, notes)
VALUES (%(org_id)s::uuid, %(contact_id)s::uuid, %(scheduled_at)s::timestamptz, %(duration_minutes)s::integer, 'Online')
RETURNING id
