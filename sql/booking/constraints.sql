-- Keys, constraints and functions; run this file after data.sql. There is no index beyond the primary keys, because
-- further indexes are what perfkit tests.

ALTER TABLE organizations ADD PRIMARY KEY (id);
ALTER TABLE contacts
    ADD PRIMARY KEY (id),
    ADD FOREIGN KEY (org_id) REFERENCES organizations (id);
ALTER TABLE appointments
    ADD PRIMARY KEY (id),
    ADD FOREIGN KEY (org_id) REFERENCES organizations (id),
    ADD FOREIGN KEY (contact_id) REFERENCES contacts (id),
    -- The upper bound lets a conflict check search a window of scheduled_at instead of the whole table.
    ADD CHECK (duration_minutes BETWEEN 5 AND 120);

-- Returns the key of the advisory lock for a patient in a clinic. Every booking takes the lock in a statement before
-- its conflict check.
CREATE FUNCTION booking_lock(clinic uuid, patient uuid) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT
AS $$ SELECT uuid_hash_extended(patient, uuid_hash_extended(clinic, 0)) $$;

-- Books an appointment in one round trip; outcome is 'booked' (with the new id), 'unknown' or 'taken'.
-- The function must be VOLATILE: each statement inside then has its own snapshot, so the check after the lock sees the
-- booking that the lock waited for. A single statement with both lock and check would miss that booking.
CREATE FUNCTION book_appointment(
    clinic uuid, patient uuid, starts timestamptz, minutes integer, remark text,
    OUT outcome text, OUT appointment_id uuid
)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(booking_lock(clinic, patient));
    PERFORM FROM contacts WHERE id = patient AND org_id = clinic;
    IF NOT FOUND THEN
        outcome := 'unknown';
        RETURN;
    END IF;
    -- The same condition as queries/conflict_check.sql.
    PERFORM FROM appointments
    WHERE org_id = clinic
      AND contact_id = patient
      AND scheduled_at > starts - interval '120 minutes'
      AND scheduled_at < starts + make_interval(mins => minutes)
      AND scheduled_at + make_interval(mins => duration_minutes) > starts
      AND status <> 'cancelled'
    LIMIT 1;
    IF FOUND THEN
        outcome := 'taken';
        RETURN;
    END IF;
    INSERT INTO appointments (org_id, contact_id, scheduled_at, duration_minutes, notes)
    VALUES (clinic, patient, starts, minutes, remark)
    RETURNING id INTO appointment_id;
    outcome := 'booked';
END
$$;
