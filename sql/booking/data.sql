-- Generated rows, relative to today in UTC. They come from hashes instead of random(), so that every run on the same
-- day creates the same rows.

SET LOCAL work_mem = '256MB';  -- keeps the sort below in memory, up to the standard scale

INSERT INTO organizations (id, name, created_at)
SELECT md5('organization ' || n)::uuid, 'Clinic ' || n, date_trunc('day', now(), 'UTC') - interval '800 days'
FROM generate_series(1, :organizations) AS n;

-- Clinic n has the weight 1 / (n + 5): with 200 clinics, the largest has nearly 5 % of the patients, the smallest 0.1 %.
INSERT INTO contacts (id, org_id, name, phone, created_at)
SELECT md5('contact ' || c)::uuid,
       md5('organization ' || clinic.n)::uuid,
       'Patient ' || c,
       '+1555' || lpad(c::text, 8, '0'),
       date_trunc('day', now(), 'UTC') - make_interval(days => 700 + c % 90)
FROM (
    SELECT n,
           round(coalesce(lag(upto) OVER (ORDER BY n), 0) * :contacts)::integer + 1 AS first,
           round(upto * :contacts)::integer AS last
    FROM (
        SELECT n, sum(1 / (n + 5)::float8) OVER (ORDER BY n) / sum(1 / (n + 5)::float8) OVER () AS upto
        FROM generate_series(1, :organizations) AS n
    ) AS share
) AS clinic,
generate_series(clinic.first, clinic.last) AS c;

-- Rows are inserted in the order of their days, as in a table that grows over time: 70 % in the past, one day's worth
-- today, the rest in the future.
INSERT INTO appointments (id, org_id, contact_id, scheduled_at, duration_minutes, status, notes, created_at)
SELECT md5('appointment ' || n)::uuid,
       contact.org_id,
       contact.id,
       scheduled_at,
       (ARRAY[15, 30, 30, 30, 45, 60, 60, 90])[1 + (hash >> 8 & 7)],
       (CASE
           WHEN (hash >> 11 & 63) < 6 THEN 'cancelled'
           WHEN scheduled_at >= today THEN CASE WHEN (hash >> 17 & 3) = 0 THEN 'confirmed' ELSE 'booked' END
           WHEN (hash >> 17 & 15) = 0 THEN 'no_show'
           ELSE 'completed'
       END)::appointment_status,
       (ARRAY[
           'First visit, earlier records were requested',
           'Follow-up to discuss the laboratory results',
           'Routine check-up, was booked by telephone',
           'Asked for the earliest free slot of the day'
       ])[1 + (hash >> 21 & 3)],
       least(scheduled_at - make_interval(hours => (hash >> 23 & 511)::integer), today)
FROM (
    SELECT n,
           hash,
           today,
           -- Seven of eight appointments on a weekend move to a weekday of the week before.
           day + make_interval(
               days => CASE WHEN extract(isodow FROM day AT TIME ZONE 'UTC') < 6 OR (hash & 7) = 0 THEN 0
                       ELSE 5 - extract(isodow FROM day AT TIME ZONE 'UTC')::integer - (hash >> 3 & 31)::integer % 5
                       END,
               mins => 480 + 15 * ((hash >> 32 & 1023)::integer % 40)  -- 08:00 to 17:45
           ) AS scheduled_at,
           -- The power makes a few patients come often and most of them seldom.
           floor(:contacts * ((hash >> 42 & 1048575) / 1048576::float8) ^ 1.25)::bigint + 1 AS contact_number
    FROM (
        SELECT n,
               hashint8extended(n, 0) AS hash,
               today,
               today + make_interval(days => CASE
                   WHEN share < 0.700 THEN floor((share / 0.700 - 1) * 450)::integer
                   WHEN share < 0.702 THEN 0
                   ELSE 1 + floor((share - 0.702) / 0.298 * 180)::integer
               END) AS day
        FROM generate_series(1, :appointments::bigint) AS n,
             LATERAL (SELECT (n - 1) / :appointments::float8, date_trunc('day', now(), 'UTC')) AS at (share, today)
    ) AS placed
) AS appointment
JOIN (
    -- Identifiers are hashes, so ordering by them shuffles the patients of all clinics.
    SELECT id, org_id, row_number() OVER (ORDER BY id) AS number FROM contacts
) AS contact ON contact.number = appointment.contact_number
ORDER BY n;
