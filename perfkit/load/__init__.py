"""Requests sent and timed: closed and open model, pgbench."""
