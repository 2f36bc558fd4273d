-- Ten percent more rows, so that whatever reads the whole table takes ten percent longer.
INSERT INTO appointments
SELECT gen_random_uuid(), org_id, contact_id, scheduled_at, duration_minutes, status, notes, created_at
FROM appointments
ORDER BY id
LIMIT (SELECT count(*) / 10 FROM appointments);
