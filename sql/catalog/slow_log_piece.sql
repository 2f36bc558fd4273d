-- A piece of one of the server's files.
SELECT pg_read_binary_file(%(file)s, %(start)s::bigint, %(length)s::bigint, true) AS piece;
