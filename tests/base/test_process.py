"""Tests of child processes: no parent leaves one behind, and `stop` always ends one."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from perfkit.base.process import spawn, stop

pytestmark = pytest.mark.process

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a killed parent's children")
SLEEP = ["sleep", "600"]
# Says when it is ready, then ignores requests to end.
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(1, flush=True)
time.sleep(600)
"""
PARENT = f"""
import time
from perfkit.base.process import spawn
print(spawn({SLEEP!r}).pid, flush=True)
time.sleep(600)
"""
UNBOUND = f"""
from perfkit.base.process import spawn
print(spawn({SLEEP!r}, stdout=-3, die_with_parent=False).pid)
"""


def runs(pid: int) -> bool:
    """Return whether the process runs and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not runs(pid)


@on_linux
def test_a_child_dies_with_a_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert runs(child)
        parent.kill()
    assert ends(child)


@on_linux
def test_a_child_outlives_the_thread_that_asked_for_it() -> None:
    children: list[subprocess.Popen[bytes]] = []

    def ask() -> None:
        child = spawn(["sh", "-c", "echo ready; exec sleep 600"], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        children.append(child)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    time.sleep(0.2)
    alive = children[0].poll() is None
    stop(children[0])
    assert alive


def test_a_child_has_its_own_session_and_the_environment_it_is_given() -> None:
    code = "import os; print(os.getsid(0) == os.getpid(), os.environ['GREETING'], 'HOME' in os.environ)"
    child = spawn([sys.executable, "-c", code], env={"GREETING": "hello"}, stdout=subprocess.PIPE)
    assert child.communicate(timeout=20)[0] == b"True hello False\n"


@on_linux
def test_a_child_ignores_no_signal_that_python_ignores() -> None:
    child = spawn(["cat", "/proc/self/status"], stdout=subprocess.PIPE)
    status = dict(line.split(b":", 1) for line in child.communicate(timeout=20)[0].splitlines())
    ignored = int(status[b"SigIgn"], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


def test_a_program_that_does_not_exist_is_an_error_here_and_not_in_the_child() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        spawn(["no-such-program"])


def test_stop_ends_a_child_that_ignores_it_and_may_be_called_again() -> None:
    child = spawn([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    stop(child, grace=0.1)
    assert child.returncode == -9
    assert child.stdout.closed
    stop(child)


def test_stop_ends_what_the_child_started() -> None:
    child = spawn(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    stop(child)
    assert ends(grandchild)


def test_a_child_that_is_to_outlive_us_is_not_bound() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", UNBOUND], stdout=subprocess.PIPE, timeout=20)
    child = int(done.stdout)
    assert runs(child)
    subprocess.run(["kill", str(child)], check=True)
    assert ends(child)
