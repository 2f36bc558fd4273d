-- The file that the server logs to now, and its size in bytes.
SELECT file,
       (SELECT l.size FROM pg_ls_logdir() l WHERE l.name = regexp_replace(file, '^.*/', '')) AS size
FROM pg_current_logfile(%(form)s) file;
