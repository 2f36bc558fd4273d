"""The relay: a database that is one chosen round trip away, and otherwise the same."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import monotonic, sleep

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from perfkit.postgres.embedded import EmbeddedServer

RTT = 0.03  # seconds


@contextmanager
def relay(
    server: EmbeddedServer, listen: Path, rtt: float = RTT, connect_rtts: int = 6
) -> Iterator[subprocess.Popen[str]]:
    where = conninfo_to_dict(server.conninfo())
    options = {
        "--listen": listen,
        "--server": where["host"],
        "--port": where.get("port", 5432),
        "--rtt-ms": rtt * 1000,
        "--connect-rtts": connect_rtts,
    }
    args = [str(part) for option in options.items() for part in option]
    with subprocess.Popen(
        [sys.executable, "-m", "perfkit.postgres.relay", *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            assert Path(json.loads(process.stdout.readline())["socket"]).is_socket()
            yield process
        finally:
            process.kill()


@pytest.fixture
def through(server: EmbeddedServer, tmp_path: Path) -> Iterator[str]:
    """A conninfo that leads through a relay."""
    with relay(server, tmp_path):
        yield make_conninfo(server.conninfo("postgres", "postgres"), host=str(tmp_path))


def took(work: Callable[[], object]) -> float:
    start = monotonic()
    work()
    return monotonic() - start


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + 10
    while not condition():
        assert monotonic() < deadline
        sleep(0.01)


def test_a_statement_takes_one_round_trip_more(through: str) -> None:
    with psycopg.connect(through, autocommit=True) as connection:
        times = [took(lambda: connection.execute("SELECT 1")) for _ in range(15)]
    assert min(times) >= RTT
    assert median(times) < 2 * RTT


def test_connecting_costs_its_round_trips(server: EmbeddedServer, tmp_path: Path) -> None:
    conninfo = make_conninfo(server.conninfo(), host=str(tmp_path))
    with relay(server, tmp_path, connect_rtts=6):
        six = min(took(lambda: psycopg.connect(conninfo).close()) for _ in range(5))
    with relay(server, tmp_path, connect_rtts=1):
        one = min(took(lambda: psycopg.connect(conninfo).close()) for _ in range(5))
    assert six >= 6 * RTT
    assert RTT <= one < 3 * RTT


def test_pipelined_statements_share_the_round_trip(through: str) -> None:
    with psycopg.connect(through, autocommit=True) as connection:

        def fifty() -> None:
            with connection.pipeline():
                for number in range(50):
                    connection.execute("SELECT %s::int", [number])

        assert RTT <= took(fifty) < 25 * RTT


def test_large_data_keeps_its_order_and_does_not_wait_chunk_by_chunk(through: str) -> None:
    count = 2_000_000
    expected = ",".join(map(str, range(count)))
    with psycopg.connect(through, autocommit=True) as connection:
        numbers = f"generate_series(0, {count - 1}) AS n"
        connection.execute(f"CREATE TEMP TABLE long AS SELECT string_agg(n::text, ',') FROM {numbers}")
        start = monotonic()
        assert connection.execute("TABLE long").fetchone() == (expected,)
        down = monotonic() - start
        start = monotonic()
        assert connection.execute("SELECT %s = string_agg FROM long", [expected]).fetchone() == (True,)
        up = monotonic() - start
    # Waiting for each chunk in turn would take this long at the least, each way.
    assert max(down, up) < len(expected) / 65536 * RTT / 2


def test_a_cancel_request_reaches_the_server(through: str) -> None:
    with psycopg.connect(through, autocommit=True) as connection:
        timer = threading.Timer(0.2, connection.cancel_safe)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(60)")
        timer.join()


def test_either_side_may_end_the_connection(server: EmbeddedServer, through: str) -> None:
    with psycopg.connect(server.conninfo("postgres", "postgres"), autocommit=True) as admin:
        alive = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)"
        leaving, killed = (psycopg.connect(through, autocommit=True) for _ in range(2))
        pids = [leaving.info.backend_pid, killed.info.backend_pid]
        leaving.close()
        admin.execute("SELECT pg_terminate_backend(%s)", [pids[1]])
        with pytest.raises(psycopg.OperationalError):
            killed.execute("SELECT 1")
        killed.close()
        wait_until(lambda: admin.execute(alive, [pids]).fetchone() == (0,))


def test_a_killed_clients_connection_ends_in_the_server(server: EmbeddedServer, through: str) -> None:
    program = (
        "import psycopg, sys; connection = psycopg.connect(sys.argv[1]);"
        "print(connection.info.backend_pid, flush=True); input()"
    )
    with psycopg.connect(server.conninfo("postgres", "postgres"), autocommit=True) as admin:
        with subprocess.Popen(
            [sys.executable, "-c", program, through], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as client:
            assert client.stdout
            pid = int(client.stdout.readline())
            client.kill()
        alive = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        wait_until(lambda: admin.execute(alive, [pid]).fetchone() == (0,))


def test_without_a_server_the_client_is_told_at_once(server: EmbeddedServer, tmp_path: Path) -> None:
    nowhere = tmp_path / "empty"
    nowhere.mkdir()
    command = [sys.executable, "-m", "perfkit.postgres.relay", "--rtt-ms", "1"]
    with subprocess.Popen(
        [*command, "--listen", tmp_path, "--server", nowhere], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(host=str(tmp_path), user="perfkit", dbname="postgres")
        process.stdin.close()
        assert process.wait(timeout=5) == 0


@pytest.mark.parametrize("how", ["stdin", "signal"])
def test_it_ends_with_its_parent_or_on_a_signal(server: EmbeddedServer, tmp_path: Path, how: str) -> None:
    conninfo = make_conninfo(server.conninfo(), host=str(tmp_path))
    with relay(server, tmp_path) as process, psycopg.connect(conninfo, autocommit=True) as connection:
        assert process.stdin
        if how == "stdin":
            process.stdin.close()
        else:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0
        assert not list(tmp_path.iterdir())
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--listen", "/nowhere/at/all", "--rtt-ms", "1"], 1, "/nowhere/at/all"),
        (["--listen", "/tmp", "--rtt-ms", "-1"], 2, "--rtt-ms"),
        (["--listen", "/tmp", "--rtt-ms", "1", "--connect-rtts", "0"], 2, "--connect-rtts"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments: list[str], code: int, word: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "perfkit.postgres.relay", "--server", "/tmp", *arguments],
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert result.returncode == code
    assert word in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
