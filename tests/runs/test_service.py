"""The service of an arm as a process: ready when it says so, reset, gone after stop, or one line."""

import contextlib
import json
import os
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from perfkit import config
from perfkit.base.errors import ServiceError
from perfkit.base.resources import CHECKOUT
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.runs.service import Service

# Answers its health path with its process id, its database and how often it was reset; a reset takes a while.
SLOW_TO_RESET = """
import http.server, os, signal, sys, threading, time
resets = 0
def reset(*_):
    def later():
        global resets
        time.sleep(0.3)
        resets += 1
    threading.Thread(target=later).start()
signal.signal(signal.SIGHUP, reset)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()
        self.wfile.write(f'{{"pid": {os.getpid()}, "resets": {resets}, "db": "{os.environ["PERFKIT_DATABASE"]}"}}'.encode())
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""  # noqa: E501


def service(*command: str, **options: Any) -> Service:
    spec = config.ServiceConfig(command=command, **{"start_timeout_s": 10, **options})
    return Service("after", spec, {"handler": "pooled"}, "dbname=mine")


def python(code: str, **options: Any) -> Service:
    return service("{python}", "-c", code.replace("{", "{{").replace("}", "}}"), "{port}", **options)


def answer(running: Service, path: str = "/health") -> Any:
    with urllib.request.urlopen(running.base + path, timeout=5) as response:
        return json.load(response)


def gone(pid: int) -> None:
    """Wait for the end of a process that is no child of this one."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(5)


def failure(broken: Service) -> str:
    """Why it cannot start; nothing of it stays."""
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(ServiceError) as caught, broken:
        pass
    assert set(psutil.Process().children(recursive=True)) <= before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def busy() -> Iterator[int]:
    """A port that someone listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def booking(server: EmbeddedServer) -> Iterator[str]:
    """A small booking database, as a connection string."""
    folder = CHECKOUT / "sql/booking"
    databases.create(server, "service_test")
    files = [folder / f"{name}.sql" for name in ("schema", "data", "constraints")]
    sizes = {"organizations": 2, "contacts": 20, "appointments": 50}
    databases.prepare(server, "service_test", files, sizes)
    yield server.conninfo("service_test")
    databases.drop(server, "service_test")


@pytest.mark.process
def test_it_answers_once_entered_with_its_database_and_is_gone_once_left() -> None:
    with python(SLOW_TO_RESET) as running:
        found = answer(running)
        assert found["db"] == "dbname=mine"
        assert psutil.pid_exists(found["pid"])
    assert not psutil.pid_exists(found["pid"])
    with pytest.raises(OSError):
        answer(running)


@pytest.mark.process
def test_stop_ends_what_the_service_started_and_may_be_called_again() -> None:
    family = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]])"
    running = service("{python}", "-c", family, SLOW_TO_RESET.replace("{", "{{").replace("}", "}}"), "{port}")
    with running:
        child = answer(running)["pid"]
        running.stop()
        gone(child)
        running.stop()


@pytest.mark.process
def test_reset_by_restart_is_another_process() -> None:
    with python(SLOW_TO_RESET, reset="restart") as running:
        first = answer(running)["pid"]
        running.reset()
        running.wait()
        assert answer(running)["pid"] != first
        assert not psutil.pid_exists(first)


@pytest.mark.process
def test_reset_by_hup_is_the_same_process_and_waits_for_its_new_answer() -> None:
    with python(SLOW_TO_RESET, reset="hup") as running:
        first = answer(running)
        for resets in (1, 2):
            running.reset()
            running.wait()
            assert answer(running) == {**first, "resets": resets}


@pytest.mark.process
def test_reset_by_hup_starts_a_service_that_has_died() -> None:
    with python(SLOW_TO_RESET, reset="hup") as running:
        process = psutil.Process(answer(running)["pid"])
        process.kill()
        process.wait(5)
        running.reset()
        running.wait()
        assert answer(running)["pid"] != process.pid


@pytest.mark.parametrize("handler", ["baseline", "pooled"])
def test_the_booking_service_is_launched_reset_and_stopped(booking: str, handler: str) -> None:
    spec = config.load().service
    assert spec is not None
    with Service("after", spec, {"handler": handler}, booking) as running:
        assert answer(running) == {"status": "ok", "resets": 0}
        running.reset()
        running.wait()
        assert answer(running) == {"status": "ok", "resets": 1}
        own = [p for p in psutil.Process().children() if "perfkit.booking.service" in p.cmdline()]
        assert len(own) == 1
    assert not own[0].is_running()


def test_a_port_in_use_is_one_line(busy: int) -> None:
    said = failure(python(SLOW_TO_RESET, port=busy))
    assert said == f"after: port {busy} is in use; expected a free one (0 finds one)"


@pytest.mark.parametrize("program", ["no-such-program", "/etc/passwd", "/no/such/program"])
def test_a_command_that_cannot_be_run_is_one_line(program: str) -> None:
    assert failure(service(program)) == (f"after: {program} cannot be run (no program {program!r}); expected a command")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("{database}", "after: service.command uses {database}; expected a value for it"),
        ("{python", "after: service.command: expected '}' before end of string; expected literal braces to be doubled"),
    ],
)
def test_a_placeholder_without_a_value_is_one_line(argument: str, said: str) -> None:
    assert failure(service("true", argument)) == said


@pytest.mark.process
def test_the_arms_own_values_fill_placeholders(tmp_path: Path) -> None:
    code = f"import sys; open({str(tmp_path / 'seen')!r}, 'w').write(' '.join(sys.argv[1:]))"
    failure(service("{python}", "-c", code, "{handler}", "{{literal}}"))
    assert (tmp_path / "seen").read_text() == "pooled {literal}"


@pytest.mark.process
def test_a_service_that_dies_while_starting_shows_its_last_words() -> None:
    said = failure(python("import sys; sys.exit('starting\\nno database to be found')"))
    assert said == "after: the service ended while starting: no database to be found"
    assert failure(python("")) == "after: the service ended while starting: it left no message"


@pytest.mark.process
def test_a_service_that_never_becomes_healthy_is_one_line_and_stopped() -> None:
    said = failure(python(SLOW_TO_RESET, health="/ready", start_timeout_s=0.5))
    assert said == "after: /ready did not answer 200 within 0.5 s"
    assert failure(service(sys.executable, "-c", "import time; time.sleep(60)", start_timeout_s=0.2)) == (
        "after: /health did not answer 200 within 0.2 s"
    )


@pytest.mark.process
def test_a_service_that_says_much_is_not_blocked() -> None:
    chatty = "import sys\nfor _ in range(20000): print('x' * 100); print('y' * 100, file=sys.stderr)\n"
    with python(chatty + SLOW_TO_RESET) as running:
        assert answer(running)["pid"] != os.getpid()
