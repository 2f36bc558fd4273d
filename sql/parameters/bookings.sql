-- New bookings that nothing seeded stands against; patients as often as they really come, 1,500 slots in turn.
WITH visit AS (
    SELECT org_id, contact_id, row_number() OVER (ORDER BY id)::integer AS n FROM appointments ORDER BY id LIMIT :rows
), wanted AS (
    -- Among the seeded days, not after them: the planner must see a window that holds other patients' rows.
    SELECT n,
           org_id,
           contact_id,
           date_trunc('day', now(), 'UTC') + make_interval(days => 2 + n % 150, hours => 8 + n / 150 % 10) AS starts,
           (ARRAY[15, 30, 45, 60])[1 + n % 4] AS minutes
    FROM visit
)
SELECT org_id,
       contact_id,
       to_char(starts AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS scheduled_at,
       minutes AS duration_minutes
FROM wanted
WHERE NOT EXISTS (
    SELECT FROM appointments AS other
    WHERE other.org_id = wanted.org_id
      AND other.contact_id = wanted.contact_id
      AND other.scheduled_at < starts + make_interval(mins => minutes)
      AND other.scheduled_at + make_interval(mins => other.duration_minutes) > starts
)
ORDER BY n
