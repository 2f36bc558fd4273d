-- Without it every fetch sorts all jobs that wait.
DROP INDEX procrastinate_jobs_priority_idx_v1;
