-- Takes the seven indexes of performance_indexes.sql away again; no row changes.

DROP INDEX IF EXISTS idx_appointments_org_contact_date;
DROP INDEX IF EXISTS idx_appointments_org_id;
DROP INDEX IF EXISTS idx_appointments_contact_id;
DROP INDEX IF EXISTS idx_appointments_scheduled_at;
DROP INDEX IF EXISTS idx_contacts_org_id_id;
DROP INDEX IF EXISTS idx_organizations_id;
DROP INDEX IF EXISTS idx_appointments_org_status;
