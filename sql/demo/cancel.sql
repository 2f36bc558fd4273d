-- A patient cancels by the link in a message, which knows whose appointment it is and when.
UPDATE appointments
SET status = 'cancelled'
WHERE org_id = %(org_id)s::uuid AND contact_id = %(contact_id)s::uuid AND scheduled_at = %(scheduled_at)s::timestamptz
