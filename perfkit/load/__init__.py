"""Requests sent and timed: closed and open model, pgbench.

The parent's side: `schedule` (what a round sends, and when), `pool` (the worker processes, and the search for the
highest rate), `pgbench` (its own client in place of the workers). The worker's side: `worker`, `senders` and `http`
(one request, sent and timed), `samples` (its outcome, recorded).

A request that times out: its sender in `senders` or `http` stops waiting after the configured timeout, closes the
connection and, for SQL, cancels the statement; the outcome is `samples.TIMEOUT`. `perfkit.runs.rounds` counts it as an
error; like every error, it has no part in the response times.
"""

# Modules that other rooms may import.
__all__ = ["http", "pgbench", "pool", "samples", "schedule", "senders"]
