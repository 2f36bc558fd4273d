"""One libpq connection of a load worker: what it says when the server ends its session."""

import asyncio

import psycopg
import pytest

from perfkit.load.senders import Failure, LibpqConnection, bound
from perfkit.postgres.embedded import EmbeddedServer

REASON = "terminating connection due to administrator command"


async def ended(server: EmbeddedServer, while_it_runs: bool) -> tuple[LibpqConnection, Exception]:
    """End a connection's session from another one; return it with the error of its statement."""
    connection = await LibpqConnection.open(server.conninfo("postgres"), timeout_s=5, prepare=False)
    try:
        running = asyncio.ensure_future(connection.run(bound("SELECT pg_sleep(30)", None))) if while_it_runs else None
        await asyncio.sleep(0.2)
        with server.connect("postgres") as other:
            other.execute(f"SELECT pg_terminate_backend({connection.pid}, 5000)")  # returns when the session is gone
        with pytest.raises((Failure, psycopg.OperationalError)) as raised:
            await (running or connection.run(bound("SELECT 1", None)))
        return connection, raised.value
    finally:
        await connection.close()


@pytest.mark.parametrize("while_it_runs", [True, False], ids=["running", "idle"])
def test_the_reason_of_a_server_that_ends_a_session_is_the_error(server: EmbeddedServer, while_it_runs: bool) -> None:
    connection, error = asyncio.run(ended(server, while_it_runs))
    assert str(error) == REASON
    assert connection.broken
