-- The seven proposed indexes, as proposed; whether each earns its place is for the measurement to say.

-- The conflict check of every booking and a patient's upcoming appointments: equality on two columns, then a range.
CREATE INDEX IF NOT EXISTS idx_appointments_org_contact_date ON appointments (org_id, contact_id, scheduled_at);

-- Anything asked about one clinic; the composite index above also begins with org_id.
CREATE INDEX IF NOT EXISTS idx_appointments_org_id ON appointments (org_id);

-- A patient's appointments by patient alone, and the foreign key's check when a contact is deleted.
CREATE INDEX IF NOT EXISTS idx_appointments_contact_id ON appointments (contact_id);

-- Everything in a span of time, such as a clinic's day.
CREATE INDEX IF NOT EXISTS idx_appointments_scheduled_at ON appointments (scheduled_at);

-- "Does this contact belong to this clinic?", which the primary key on contacts answers nearly as well.
CREATE INDEX IF NOT EXISTS idx_contacts_org_id_id ON contacts (org_id, id);

-- The same column as the primary key of organizations: proposed, and kept to see what it changes.
CREATE INDEX IF NOT EXISTS idx_organizations_id ON organizations (id);

-- Status counts of one clinic, from the index alone once the table is vacuumed.
CREATE INDEX IF NOT EXISTS idx_appointments_org_status ON appointments (org_id, status);

-- New indexes need no new statistics, but the tables' own may be old.
ANALYZE appointments;
ANALYZE contacts;
ANALYZE organizations;
