-- A queue that has run for months and was never cleaned: nearly every job is finished, and what waits is new.
-- Waiting jobs have priorities; every tenth belongs to a customer whose jobs must not run at the same time (a
-- lock); every fifth is for later.
INSERT INTO procrastinate_jobs (queue_name, task_name, priority, lock, args, status, scheduled_at, attempts)
SELECT queue, queue || '.run', CASE WHEN h % 20 = 0 THEN 10 ELSE 0 END,
       CASE WHEN h % 10 = 3 THEN 'customer-' || h / 10 % 5000 END,
       jsonb_build_object('number', n),
       status::procrastinate_job_status,
       CASE WHEN status = 'todo' AND h % 5 = 0 THEN now() + (1 + h % 48) * interval '1 hour' END,
       CASE WHEN status IN ('todo', 'cancelled') THEN 0 ELSE 1 END
FROM generate_series(1, :jobs) n
CROSS JOIN LATERAL (SELECT abs(hashint4(n)::bigint) AS h) hash
CROSS JOIN LATERAL (
    SELECT CASE WHEN h % 100 < 60 THEN 'mail' WHEN h % 100 < 90 THEN 'images' ELSE 'reports' END AS queue,
           CASE WHEN n > :jobs - :waiting THEN 'todo' WHEN h % 97 = 0 THEN 'failed'
                WHEN h % 197 = 0 THEN 'cancelled' ELSE 'succeeded' END AS status
) job;

-- What the library's triggers would have noted while those jobs ran; of the waiting ones they have noted it.
INSERT INTO procrastinate_events (job_id, type, at)
SELECT id, type::procrastinate_job_event_type, now() - (:jobs - id) * interval '1 minute' + step * interval '2 seconds'
FROM procrastinate_jobs
CROSS JOIN LATERAL unnest(
    CASE status WHEN 'cancelled' THEN ARRAY['deferred', 'cancelled'] ELSE ARRAY['deferred', 'started', status::text] END
) WITH ORDINALITY event (type, step)
WHERE status <> 'todo';
