-- Which job of a queue is next? The search inside procrastinate's fetch function, but for its locks.
SELECT id
FROM procrastinate_jobs
WHERE status = 'todo' AND queue_name = %(queue)s AND (scheduled_at IS NULL OR scheduled_at <= now())
ORDER BY priority DESC, id
LIMIT 1
FOR UPDATE SKIP LOCKED
