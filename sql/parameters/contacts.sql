-- Patients and their clinic, as often as they really come (identifiers are hashes: their order is a shuffle).
SELECT org_id, contact_id FROM appointments ORDER BY id LIMIT :rows
