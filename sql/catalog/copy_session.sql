-- Settings for reading a source: text that any server reads back the same, names with their schema, all rows or an
-- error, a short wait for locks, no other time limit, no writes.
SELECT set_config(name, value, false)
FROM (VALUES ('client_encoding', 'UTF8'), ('DateStyle', 'ISO'), ('IntervalStyle', 'postgres'),
             ('extra_float_digits', '3'), ('search_path', ''), ('row_security', 'off'), ('statement_timeout', '0'),
             ('lock_timeout', '5s'), ('idle_in_transaction_session_timeout', '0'),
             ('default_transaction_read_only', 'on')) setting (name, value);
