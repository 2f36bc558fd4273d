"""Time limits on a server that perfkit did not start: no command waits for a lock, directly or through a pooler."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import perfkit
from hosted import Hosted, hosted

from perfkit.base.errors import ServerError
from perfkit.postgres import databases
from perfkit.postgres.catalog import LOCK_S
from perfkit.postgres.guards import Audit, Permission, resolve
from perfkit.postgres.servers import External, open_external

pytestmark = [pytest.mark.system, pytest.mark.slow]

QUERY = "SELECT * FROM customers WHERE id = 7"
BOTH = "SELECT current_setting('statement_timeout') AS statement, current_setting('lock_timeout') AS lock"
# Until a command has started, seen the lock's limit more than once perhaps, and said so.
SOON_S = 5 * LOCK_S + 15


@pytest.fixture(scope="module")
def server() -> Iterator[Hosted]:
    with hosted() as running:
        yield running


@pytest.fixture(params=["directly", "through the pooler"])
def port(server: Hosted, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server.pooled if request.param == "through the pooler" else server.port


def external(server: Hosted, port: int, user: str = "shop") -> External:
    confirmed = (server.name(port=port), server.name())
    return open_external(resolve(server.db(user, port=port)), Permission(confirm=confirmed), Audit(None))


@contextmanager
def locked(server: Hosted, table: str) -> Iterator[int]:
    """Nobody can read the table meanwhile; the process that sees to it."""
    with server.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield connection.info.backend_pid


def test_every_transaction_has_both_limits_and_another_client_of_the_pooler_has_none(server: Hosted, port: int) -> None:
    found = external(server, port, "clerk")
    with found.connect() as connection:
        assert connection.execute(BOTH).fetchone() == {"statement": "1min", "lock": "3s"}
        with connection.transaction():
            assert connection.execute(BOTH).fetchone() == {"statement": "1min", "lock": "3s"}
        connection.autocommit = False
        connection.execute("SELECT 1")
        connection.rollback()
        assert connection.execute(BOTH).fetchone() == {"statement": "1min", "lock": "3s"}
    for _ in range(5):
        assert server.run(BOTH, user="clerk") == [("0", "0")]


def test_a_limit_of_the_role_that_is_stricter_stays(server: Hosted, port: int) -> None:
    if port == server.port:
        with external(server, port, "hasty").connect() as connection:
            assert connection.execute(BOTH).fetchone() == {"statement": "200ms", "lock": "3s"}


@pytest.mark.parametrize("options", [(), ("--analyze",), ("--generic",)], ids=["plan", "analyze", "generic"])
def test_explain_says_in_one_line_who_holds_the_lock(server: Hosted, port: int, options: tuple[str, ...]) -> None:
    confirm = ("--confirm", server.name(port=port), "--confirm", server.name())
    with locked(server, "customers") as holder:
        begun = time.monotonic()
        done = perfkit("explain", QUERY, *options, "--db", server.db("postgres", port=port), *confirm)
    assert time.monotonic() - begun < SOON_S
    assert (done.exit_code, done.stdout) == (1, "")
    assert "canceling statement due to lock timeout" in done.stderr and done.stderr.count("\n") == 1
    assert f"(locked: customers by process {holder} for " in done.stderr


def commands(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Those that ask for the table, or for the catalogue's facts about it."""
    (folder / "set.sql").write_text("CREATE INDEX customers_name ON customers (name);\n")
    (folder / "q.sql").write_text(QUERY)
    return {
        "doctor": ("doctor",),
        "use": ("indexes", "use"),
        "apply": ("indexes", "apply", folder / "set.sql", "--dry-run"),
        "init": ("init", folder / "new"),
        "top": ("slow", "top"),
        "compare": ("compare", "--query", folder / "q.sql", "--set", "work_mem=8MB", "--way", "in-place",
                    "--profile", "quick", "--reports", folder / "reports"),
    }  # fmt: skip


@pytest.mark.parametrize("table", ["customers", "pg_constraint"])
@pytest.mark.parametrize("name", ["doctor", "use", "apply", "init", "top", "compare"])
def test_no_command_waits_for_a_lock(server: Hosted, port: int, tmp_path: Path, table: str, name: str) -> None:
    confirm = ("--confirm", server.name(port=port), "--confirm", server.name())
    with locked(server, table):
        begun = time.monotonic()
        done = perfkit(*commands(tmp_path)[name], "--db", server.db(port=port), *confirm)
        took = time.monotonic() - begun
    assert took < SOON_S, done.stderr
    assert isinstance(done.exception, SystemExit | None), done.exception
    assert "Traceback" not in done.stderr
    if done.exit_code:
        assert done.stderr.splitlines()[-1].startswith("perfkit: ")


def test_a_query_of_the_catalogue_says_who_holds_the_lock(server: Hosted, port: int) -> None:
    found = external(server, port, "postgres")
    with locked(server, "customers") as holder, pytest.raises(ServerError) as caught:
        databases.sizes(found, "shop", exact=False)
    assert f"canceling statement due to lock timeout (locked: customers by process {holder}" in str(caught.value)


def test_a_setting_that_the_server_does_not_take_in_place_is_one_line_before_anything_is_measured(
    server: Hosted, port: int, tmp_path: Path
) -> None:
    if port != server.port:
        return  # settings are refused there
    for given, words in (
        ("work_men=1", "unrecognized configuration parameter"),
        ("work_mem=a lot", "invalid value"),
        ("shared_buffers=1GB", "cannot be changed without restarting the server"),
        ("autovacuum=off", "cannot be changed now"),
        ("zero_damaged_pages=on", "expected a setting other than"),
        ("track_functions=all", "permission denied to set parameter"),
    ):
        done = perfkit(
            "compare", "--query", QUERY, "--set", given, "--way", "in-place", "--db", server.db(),
            "--confirm", server.name(), "--reports", tmp_path / "reports", "--profile", "quick",
        )  # fmt: skip
        assert done.exit_code == 2, (given, done.stderr, done.exception)
        assert words in done.stderr.splitlines()[-1]
