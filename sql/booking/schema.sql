-- The tables of the booking system, without keys: rows load faster before constraints.sql adds the keys.

CREATE TYPE appointment_status AS ENUM ('booked', 'confirmed', 'completed', 'cancelled', 'no_show');

CREATE TABLE organizations (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE contacts (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    org_id uuid NOT NULL,
    name text NOT NULL,
    phone text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE appointments (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    org_id uuid NOT NULL,
    contact_id uuid NOT NULL,
    scheduled_at timestamptz NOT NULL,
    duration_minutes integer NOT NULL,
    status appointment_status NOT NULL DEFAULT 'booked',
    notes text,
    created_at timestamptz NOT NULL DEFAULT now()
);
