-- Clinics and one of their working days: larger clinics and busier days come more often, as real traffic would.
SELECT org_id, to_char(scheduled_at AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day FROM appointments ORDER BY id LIMIT :rows
