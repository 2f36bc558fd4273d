-- Keys and rules, after the rows. No index beyond the primary keys: the others are what is being tested.

ALTER TABLE organizations ADD PRIMARY KEY (id);
ALTER TABLE contacts
    ADD PRIMARY KEY (id),
    ADD FOREIGN KEY (org_id) REFERENCES organizations (id);
ALTER TABLE appointments
    ADD PRIMARY KEY (id),
    ADD FOREIGN KEY (org_id) REFERENCES organizations (id),
    ADD FOREIGN KEY (contact_id) REFERENCES contacts (id),
    -- The upper bound is what lets a conflict check look at a window of scheduled_at instead of all of it.
    ADD CHECK (duration_minutes BETWEEN 5 AND 120);

-- The advisory lock of one patient in one clinic; every booking takes it in a statement before its conflict check.
CREATE FUNCTION booking_lock(clinic uuid, patient uuid) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT
AS $$ SELECT uuid_hash_extended(patient, uuid_hash_extended(clinic, 0)) $$;

-- Books in one round trip: outcome is 'booked' (with the new id), 'unknown' or 'taken'.
-- VOLATILE matters: each statement inside then sees what was committed before it began, so the check that
-- follows the lock sees the booking that the lock waited for. One statement holding both would not.
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
