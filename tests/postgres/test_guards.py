"""Every way round the guards that someone would try: refused, and nothing reaches what was not meant."""

import asyncio
import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from perfkit import config
from perfkit.base.errors import BundleError, LoadError, PerfkitError, ServerError, TargetRefused, UsageError
from perfkit.load.http import HttpSender
from perfkit.load.pool import WorkerPool, http_target, sql_target
from perfkit.load.samples import Caps, RateGate
from perfkit.load.schedule import Batch, http_message
from perfkit.postgres import cluster as binaries
from perfkit.postgres import embedded, servers
from perfkit.postgres import guards as guarded
from perfkit.postgres.guards import (
    Address,
    Audit,
    Permission,
    admit,
    canonical,
    looks_like_production,
    normal,
    resolve,
    resolve_origin,
)
from perfkit.postgres.servers import External, open_external
from perfkit.runs.targets import admitted, caps

GET = {"item": "get", "method": "GET", "path": "/", "json": None, "headers": {}, "expect": [200]}


class Door:
    """A listening socket that counts who comes, and passes them on to where it leads."""

    def __init__(self, leads: str | tuple[str, int] | None = None, host: str = "127.0.0.1", port: int = 0) -> None:
        self.leads, self.came = leads, 0
        self._listener = socket.create_server((host, port))
        self._listener.settimeout(0.05)
        self.port = int(self._listener.getsockname()[1])
        self._open, self._threads = True, [threading.Thread(target=self._accept)]

    def __enter__(self) -> "Door":
        self._threads[0].start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._open = False
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while self._open:
            with contextlib.suppress(TimeoutError):
                near, _ = self._listener.accept()
                self.came += 1
                self._threads.append(threading.Thread(target=self._carry, args=(near,)))
                self._threads[-1].start()

    def _carry(self, near: socket.socket) -> None:
        family = socket.AF_UNIX if isinstance(self.leads, str) else socket.AF_INET
        with near, socket.socket(family) as far, contextlib.suppress(OSError):
            if self.leads is None:
                return
            far.connect(self.leads)
            while self._open:
                for ready in select.select([near, far], [], [], 0.05)[0]:
                    if not (data := ready.recv(65536)):
                        return
                    (far if ready is near else near).sendall(data)


class Cluster:
    """A second PostgreSQL that perfkit did not start: on 127.0.0.1, ::1 and a socket; user `app` owns `app`."""

    def __init__(self, bin_dir: Path, folder: Path) -> None:
        self.folder, self.port, user = folder, free_port(), binaries.server_user()
        # Unlike the tests it must not be root; the kernel ends it with them.
        given = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"] if user else []
        self._as_server = ["setpriv", *given, "--pdeathsig=KILL", "--"]
        if user:
            os.chown(folder, user.pw_uid, user.pw_gid)
        self._run(
            [
                bin_dir / "initdb",
                "-D",
                folder / "data",
                "-U",
                "app",
                "-A",
                "trust",
                "--no-sync",
                "--locale=C",
                "-E",
                "UTF8",
            ]
        )
        settings = {
            "port": self.port, "listen_addresses": "127.0.0.1,::1", "unix_socket_directories": folder, "fsync": "off",
            "shared_buffers": "32MB", "dynamic_shared_memory_type": "mmap",
        }  # fmt: skip
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self.process = self._start([bin_dir / "postgres", "-D", folder / "data", *options])
        for _ in range(400):
            with contextlib.suppress(psycopg.OperationalError), self.connect("postgres") as connection:
                connection.execute("CREATE DATABASE app")
                connection.execute("CREATE ROLE plain LOGIN")
                break
            assert self.process.poll() is None
            time.sleep(0.05)

    def _start(self, command: list[Any]) -> subprocess.Popen[bytes]:
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([*self._as_server, *map(str, command)], cwd="/", **quiet)

    def _run(self, command: list[Any]) -> None:
        assert self._start(command).wait(60) == 0

    def db(self, host: str = "127.0.0.1", **more: Any) -> str:
        return make_conninfo("", **{"host": host, "port": self.port, "dbname": "app", "user": "app", **more})

    def name(self, host: str = "127.0.0.1", dbname: str = "app") -> str:
        return f"{host}:{self.port}/{dbname}"

    def connect(self, dbname: str = "app") -> psycopg.Connection:
        return psycopg.connect(self.db(dbname=dbname), autocommit=True, connect_timeout=5)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)


@pytest.fixture(scope="module")
def cluster(server: embedded.EmbeddedServer) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="perfkit-guards-"))
    folder.chmod(0o755)
    found = Cluster(server.bin_dir, folder)
    yield found
    found.stop()
    shutil.rmtree(folder)


@pytest.fixture
def door() -> Iterator[Door]:
    """The target that nobody named: whoever comes here was not stopped."""
    with Door() as found:
        yield found


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No PG* of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PGSYSCONFDIR", str(tmp_path))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))


@pytest.fixture(scope="module")
def crew(processes: None) -> Iterator[WorkerPool]:
    with WorkerPool(2) as found:
        yield found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: str, canonical_name: str = "") -> None:
    """Names resolve to these addresses: one answer after the other, the last from then on."""
    left = list(answers)

    def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        found = left.pop(0) if len(left) > 1 else left[0]
        family = socket.AF_INET6 if ":" in found else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, canonical_name, (found, int(port or 0)))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def use(db: str, *confirm: str, tls: bool = True, **permission: Any) -> External:
    """As every command does: resolve, admit, connect, look."""
    return open_external(resolve(db, tls), Permission(confirm=confirm, **permission), Audit(None))


@contextmanager
def stopped_by_a_guard(match: str = ".") -> Iterator[pytest.ExceptionInfo[PerfkitError]]:
    """Refused with the exit code of a guard, or of a usage error, in one line."""
    with pytest.raises((TargetRefused, UsageError), match=match) as caught:
        yield caught
    assert caught.value.exit_code in (97, 2)
    assert "\n" not in str(caught.value)


def services(tmp_path: Path, **found: str) -> None:
    text = "".join(f"[{name}]\n{lines}\n" for name, lines in found.items())
    (tmp_path / "services").write_text(text.replace(" ", "\n"))


LOOPBACK = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f.1", "0x7F000001", "017700000001", "0177.0.0.01", "127.0.0.1.",
    "::ffff:127.0.0.1", "::FFFF:7f00:1", "0:0:0:0:0:ffff:127.0.0.1", "[127.0.0.1]",
]  # fmt: skip
OTHERWISE = [
    "localhost", "LOCALHOST", "localhost.", "LocalHost..", "::1", "[::1]", "0:0:0:0:0:0:0:1", "::1%lo", "127.0.0.2",
    "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "0", "0.0.0.0", "00.0.0.0x0", "::", "0.0.0.1", "127.0.0.1 x",
    "127.0.0.1%lo", "１２７.0.0.1", "127。0。0。1", "ｌocalhost", "ⓛocalhost", "localhost\t", "255.255.255.255",
    "224.0.0.1", "ff02::1", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "0xa9fea9fe", "2852039166",
    "64:ff9b::a9fe:a9fe",
]  # fmt: skip


class TestAlternateNames:
    @pytest.mark.parametrize("host", [*LOOPBACK, *OTHERWISE])
    def test_of_a_host_that_nobody_named_are_refused(self, host: str, door: Door) -> None:
        db = make_conninfo("", host=host, port=door.port, dbname="app", connect_timeout=2)
        named = f"db.staging.example:{door.port}/app"
        with pytest.raises((TargetRefused, UsageError, ServerError)) as caught:
            use(db, named, allow=(named,))
        # A ServerError says that there is no such host; every other one is a guard's.
        assert caught.value.exit_code in (97, 2) or "cannot be resolved" in str(caught.value)
        assert door.came == 0

    @pytest.mark.parametrize("host", LOOPBACK)
    def test_of_one_address_are_one_name(self, host: str) -> None:
        assert resolve(make_conninfo("", host=host, dbname="app")).name == "127.0.0.1:5432/app"
        if ":" not in host:
            assert normal(f"{host}:5432/app") == "127.0.0.1:5432/app"

    @pytest.mark.parametrize("url", [f"http://{h}:80" for h in ("127.1", "0x7f.1", "[::ffff:7f00:1]", "127.0.0.1.")])
    def test_of_an_origin_are_one_name(self, url: str) -> None:
        assert resolve_origin(url).name == normal(url) == "http://127.0.0.1:80"

    @pytest.mark.parametrize(
        "address",
        ["127.0.0.1", "127.0.1.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "fe80::1%2", "0.0.0.0", "::",
         "224.0.0.1", "ff02::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "240.0.0.1"],
    )  # fmt: skip
    def test_that_resolve_to_this_machine_or_to_nobodys_address_are_refused_though_confirmed(
        self, address: str, door: Door, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resolving(monkeypatch, address)
        with stopped_by_a_guard(r"^db\.staging\.example"):
            use(f"host=db.staging.example port={door.port} dbname=app", f"db.staging.example:{door.port}/app")
        with stopped_by_a_guard(r"^db\.staging\.example"):
            resolve_origin(f"https://db.staging.example:{door.port}")
        assert door.came == 0

    def test_localhost_is_this_machine_or_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        resolving(monkeypatch, "192.0.2.7")
        with stopped_by_a_guard("not this machine"):
            resolve("host=localhost dbname=app")

    def test_localhost_prefers_the_address_that_everybody_listens_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        both = [(socket.AF_INET6, 1, 6, "", ("::1", 0, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", 0))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: list(both))
        assert resolve("host=localhost dbname=app").address == "127.0.0.1"

    def test_an_international_name_is_given_in_ascii(self) -> None:
        with stopped_by_a_guard("in ASCII"):
            resolve("host=dаtabase.example dbname=app")  # a Cyrillic letter
        with stopped_by_a_guard("and nothing more"):
            resolve_origin("https://dаtabase.example")


class TestPinning:
    def test_a_name_that_resolves_to_another_server_later_still_leads_to_the_first(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Door(host="127.0.0.2", port=cluster.port) as other:
            resolving(monkeypatch, "127.0.0.1", "127.0.0.2")
            found = use(cluster.db("localhost"), cluster.name("localhost"))
            assert socket.getaddrinfo("localhost", 0)[0][4][0] == "127.0.0.2"
            for _ in range(3):
                with found.connect() as connection:
                    row = connection.execute("SELECT host(inet_server_addr()) AS at").fetchone()
                    assert row == {"at": "127.0.0.1"}
            assert other.came == 0

    def test_load_workers_go_to_the_address_and_ask_no_resolver(self, cluster: Cluster, crew: WorkerPool) -> None:
        here = resolve(cluster.db())
        named = replace(here, host="no-such-host.example")  # which only the pinned address can reach
        message = {"item": "q", "sql": "SELECT host(inet_server_addr())", "params": None}
        load = crew.run(sql_target(named.conninfo(), 5, 5), [Batch(((message,),))])
        assert load.columns.outcome == ["ok"]

    def test_requests_go_to_the_address_and_ask_no_resolver(self, crew: WorkerPool) -> None:
        with service() as meant:
            base = f"http://no-such-host.example:{meant.port}"
            load = crew.run(http_target(base, 5, "/", address="127.0.0.1"), [Batch(((GET,),))])
        assert load.columns.outcome == ["ok"]
        assert meant.hosts == {f"no-such-host.example:{meant.port}"}

    def test_arms_of_one_name_with_two_addresses_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = two_databases(
            tmp_path, "host=db.example dbname=app", "host=db.example dbname=app user=x", "db.example:5432/app"
        )
        resolving(monkeypatch, "192.0.2.1", "192.0.2.2")
        with stopped_by_a_guard("192.0.2.1 and 192.0.2.2; expected one address"):
            admitted(settings, settings.arm, Permission(confirm=("db.example:5432/app",)))

    def test_a_configuration_names_what_it_may_use_and_confirming_is_not_enough(self, tmp_path: Path) -> None:
        settings = two_databases(tmp_path, "host=127.0.0.1 dbname=app", "host=127.0.0.1 dbname=app")
        with stopped_by_a_guard(r"""127.0.0.1:5432/app is not in 'allow'; expected allow = \["127.0.0.1:5432/app"\]"""):
            admitted(settings, settings.arm, Permission(confirm=("127.0.0.1:5432/app",)))

    def test_arms_of_one_name_with_two_users_keep_their_own(self, cluster: Cluster, tmp_path: Path) -> None:
        settings = two_databases(tmp_path, cluster.db(), cluster.db(user="plain"), cluster.name())
        targets = admitted(settings, settings.arm, Permission(confirm=(cluster.name(),)))
        users = {}
        for arm, server in targets.open(Audit(None)).items():
            with server.connect() as connection:
                users[arm] = connection.info.user
        assert users == {"before": "app", "control": "app", "after": "plain"}

    def test_a_server_that_takes_the_place_of_the_admitted_one_is_not_used(
        self, cluster: Cluster, server: embedded.EmbeddedServer
    ) -> None:
        behind = {"confirm": (f"127.0.0.1:{cluster.port}/postgres",), "production": ()}
        with Door(("127.0.0.1", cluster.port)) as swapped:
            name = f"127.0.0.1:{swapped.port}/postgres"
            db = f"host=127.0.0.1 port={swapped.port} dbname=postgres user=postgres"
            with cluster.connect() as connection, contextlib.suppress(psycopg.errors.DuplicateObject):
                connection.execute("CREATE ROLE postgres LOGIN SUPERUSER")
            permission = Permission((), (name, *behind["confirm"]))
            found = open_external(resolve(db), permission, Audit(None))
            with found.connect() as connection:
                assert connection.info.dbname == "postgres"
            swapped.leads = str(server.socket_dir / ".s.PGSQL.5432")
            with stopped_by_a_guard("a different server answers than before"):
                found.connect()

    def test_a_server_that_hides_its_identity_is_used_but_carries_no_permission(self, cluster: Cluster) -> None:
        with cluster.connect() as connection:
            connection.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
            try:
                found = use(cluster.db(user="plain"), cluster.name())
                with found.connect() as plain, stopped_by_a_guard("cannot be told from a copy"):
                    servers.grant(plain, ["ddl"], 1)
            finally:
                connection.execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")


def two_databases(tmp_path: Path, before: str, after: str, *allow: str) -> config.Config:
    """A configuration with two databases of the user's."""
    (tmp_path / "q.sql").write_text("SELECT 1")
    arms = [("before", "before", before), ("control", "control", before), ("after", "after", after)]
    text = f'title = "t"\nallow = {json.dumps(allow)}\n[database]\ntarget = "{before}"\nway = "in-place"\n'
    text += '[[query]]\nname = "q"\nfile = "q.sql"\n'
    text += '[[scenario]]\nname = "s"\nlabel = "s"\nsend = ["q"]\n'
    text += "".join(f'[[arm]]\nname = "{n}"\nrole = "{r}"\ndatabase = "{d}"\n' for n, r, d in arms)
    (tmp_path / "perfkit.toml").write_text(text)
    return config.load(tmp_path / "perfkit.toml")


class TestLibpq:
    """What libpq reads besides what it is given: the environment, service files, lists, options."""

    @pytest.mark.parametrize(
        "environment",
        [{"PGHOST": "127.0.0.1"}, {"PGHOSTADDR": "127.0.0.1"}, {"PGHOST": "localhost", "PGHOSTADDR": "127.0.0.1"}],
        ids=str,
    )
    def test_a_target_from_the_environment_must_be_named_as_any_other(
        self, environment: dict[str, str], door: Door, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in {**environment, "PGPORT": str(door.port), "PGDATABASE": "app"}.items():
            monkeypatch.setenv(name, value)
        with stopped_by_a_guard(rf":{door.port}/app .*was not started by perfkit"):
            use("", f"db.staging.example:{door.port}/app")
        assert door.came == 0

    @pytest.mark.parametrize("name", ["PGHOSTADDR", "PGSERVICE", "PGOPTIONS", "PGPORT", "PGHOST", "PGDATABASE"])
    def test_an_environment_that_changes_after_admission_changes_nothing(
        self, name: str, server: embedded.EmbeddedServer, door: Door, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        services(tmp_path, astray=f"host=127.0.0.1 hostaddr=127.0.0.1 port={door.port} options=-cwork_mem=77MB")
        found = use(server.conninfo("postgres"), f"{server.socket_dir}:5432/postgres")
        values = {
            "PGHOSTADDR": "127.0.0.1", "PGSERVICE": "astray", "PGOPTIONS": "-c work_mem=77MB", "PGHOST": "127.0.0.1",
            "PGPORT": str(door.port), "PGDATABASE": "elsewhere",
        }  # fmt: skip
        monkeypatch.setenv(name, values[name])
        for connect in (found.connect, server.connect):  # nor where the embedded server is, which nobody confirms
            with connect() as connection:
                row = connection.execute("SELECT inet_server_addr() AS a, current_setting('work_mem') AS m").fetchone()
                assert row == {"a": None, "m": "4MB"}
        with WorkerPool(1) as crew:
            message = {"item": "q", "sql": "SELECT 1", "params": None}
            load = crew.run(sql_target(found.conninfo(), 5, 5), [Batch(((message,),))])
        assert load.columns.outcome == ["ok"]
        assert door.came == 0

    @pytest.mark.parametrize(
        ("lines", "refusal"),
        [
            ("host=127.0.0.1", "was not started by perfkit"),
            ("host=localhost hostaddr=127.0.0.2", "expected one of these"),
            ("host=localhost,db.example", "expected one host"),
            ("host=localhost dbname=other", "/other .*was not started by perfkit"),
            ("host=localhost options=-crole=owner", "expected no options"),
            ("host=localhost dbname=app_prod", "looks like production"),
            ("host=localhost user=live", "looks like production"),
        ],
        ids=lambda text: text,
    )
    def test_a_service_file_leads_nowhere_else(self, lines: str, refusal: str, door: Door, tmp_path: Path) -> None:
        services(tmp_path, mine=f"{'' if 'dbname' in lines else 'dbname=app '}{lines} port={door.port}")
        named = [f"localhost:{door.port}/{name}" for name in ("app", "app_prod")]
        with stopped_by_a_guard(refusal):
            use("service=mine", *named)
        assert door.came == 0

    def test_a_service_from_the_environment_is_read_like_one_that_is_given(
        self, door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        services(tmp_path, mine=f"host=127.0.0.1 port={door.port} dbname=app")
        monkeypatch.setenv("PGSERVICE", "mine")
        with stopped_by_a_guard(f"127.0.0.1:{door.port}/app was not started by perfkit"):
            use("host=127.0.0.1", f"localhost:{door.port}/app")
        assert door.came == 0

    def test_a_service_file_that_changes_after_admission_changes_nothing(
        self, cluster: Cluster, door: Door, tmp_path: Path
    ) -> None:
        services(tmp_path, mine=f"host=127.0.0.1 port={cluster.port} dbname=app user=app")
        found = use("service=mine", cluster.name())
        services(tmp_path, mine=f"host=localhost hostaddr=127.0.0.1 port={door.port} dbname=x options=-cwork_mem=9MB")
        with found.connect() as connection:
            row = connection.execute("SELECT current_database() AS d, current_setting('work_mem') AS m").fetchone()
        assert row == {"d": "app", "m": "4MB"}
        assert door.came == 0

    def test_a_service_that_is_not_there_is_not_taken_for_an_empty_one(self) -> None:
        with stopped_by_a_guard("not defined"):
            resolve("service=nowhere dbname=app")

    @pytest.mark.parametrize(
        "db",
        [
            "host=localhost,127.0.0.1 dbname=app", "host=localhost port=5432,5433 dbname=app",
            "hostaddr=127.0.0.1,127.0.0.2 dbname=app", "postgresql://localhost:1,127.0.0.1:2/app",
            "postgresql://localhost,127.0.0.1/app?target_session_attrs=primary", "host=localhost, dbname=app",
        ],
    )  # fmt: skip
    def test_several_hosts_are_refused(self, db: str) -> None:
        with stopped_by_a_guard("expected one host"):
            resolve(db)

    @pytest.mark.parametrize(
        ("db", "refusal"),
        [
            ("host=localhost hostaddr=127.0.0.2 dbname=app", "expected one of these"),
            ("host=127.0.0.1 hostaddr=192.0.2.1 dbname=app", "expected one of these"),
            ("hostaddr=no-address.example dbname=app", "cannot be resolved|expected one of these"),
            ("host=/tmp hostaddr=127.0.0.1 dbname=app", "expected only one of them"),
            ("host=@abstract dbname=app", "abstract socket"),
            ("host=localhost options='-c session_authorization=x' dbname=app", "expected no options"),
            ("postgresql://localhost/app?options=-csearch_path%3Dx", "expected no options"),
            ("host=localhost dbname=app replication=database", "expected no replication"),
            ("host=localhost dbname=app port=0", "from 1 to 65535"),
            ("host=localhost dbname=app port=5432x", "from 1 to 65535"),
            ("host=localhost dbname=''", "db names no database"),
        ],
    )
    def test_what_could_lead_astray_is_refused(self, db: str, refusal: str) -> None:
        with pytest.raises((TargetRefused, UsageError, ServerError), match=refusal):
            resolve(db)

    @pytest.mark.parametrize(
        "db",
        [
            "host=localhost dbname=app password=hunter2", "postgresql://app:hunter2@localhost/app",
            "postgresql://localhost/app?password=hunter2", "host=localhost sslpassword=hunter2 dbname=app",
            "app:hunter2@localhost/app", "dbname=postgresql://app:hunter2@localhost/app", "host=app:hunter2@localhost",
            "service=postgresql://app:hunter2@localhost/app", "host=localhost scram_client_key=hunter2 dbname=app",
            "dbname='host=localhost password=hunter2'", "host=localhost oauth_client_secret=hunter2 dbname=app",
        ],
    )  # fmt: skip
    def test_a_password_is_refused_and_never_repeated(self, db: str) -> None:
        with stopped_by_a_guard() as caught:
            resolve(db)
        assert "hunter2" not in str(caught.value)
        assert caught.value.exit_code == 2

    def test_a_connection_string_in_the_environment_is_not_repeated_either(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PGDATABASE", "postgresql://app:hunter2@localhost/app")
        with stopped_by_a_guard("dbname contains") as caught:
            resolve("host=localhost")
        assert "hunter2" not in str(caught.value)

    def test_a_password_of_a_service_stays_in_its_file(self, tmp_path: Path) -> None:
        services(tmp_path, mine="host=localhost dbname=app user=app password=hunter2")
        found = resolve("service=mine")
        assert "hunter2" not in repr(found) + found.conninfo()
        assert "service=mine" in found.conninfo()

    def test_the_user_is_known_from_the_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert resolve("host=localhost dbname=app").user != ""
        monkeypatch.setenv("PGUSER", "someone")
        assert "user=someone" in resolve("host=localhost dbname=app").conninfo()

    @pytest.mark.parametrize("mode", ["disable", "allow", "prefer"])
    def test_less_than_tls_beyond_this_machine_is_refused(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with stopped_by_a_guard(f"sslmode = '{mode}'"):
            resolve(f"host=192.0.2.1 dbname=app sslmode={mode}")
        if mode != "prefer":  # which is what libpq does without being told
            monkeypatch.setenv("PGSSLMODE", mode)
            with stopped_by_a_guard(f"sslmode = '{mode}'"):
                resolve("host=192.0.2.1 dbname=app")

    @pytest.mark.parametrize(
        ("given", "mode"),
        [("", "require"), ("sslrootcert=system", "verify-full"), ("sslmode=verify-ca", "verify-ca")],
    )
    def test_tls_is_insisted_on_beyond_this_machine(
        self, given: str, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = resolve(f"host=192.0.2.1 dbname=app {given}")
        monkeypatch.setenv("PGSSLMODE", "disable")  # afterwards
        assert f"sslmode={mode}" in found.conninfo()

    def test_a_server_that_speaks_no_tls_gets_no_password(self, door: Door) -> None:
        here = resolve(f"host=127.0.0.1 port={door.port} dbname=app")
        beyond = replace(here, parameters={"sslmode": "require"})
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(beyond.conninfo(), connect_timeout=2)


class TestPermission:
    ADDRESS = Address("db.staging.example", "192.0.2.1", 5432, "app", "app", "", (), {})
    NAME = "db.staging.example:5432/app"

    def refuse(self, match: str, address: Address = ADDRESS, **permission: Any) -> None:
        with stopped_by_a_guard(match):
            admit(address, Permission(**permission))

    def test_unnamed_is_refused_and_says_how_to_confirm(self) -> None:
        self.refuse(rf"{self.NAME} \(192.0.2.1\) was not started by perfkit; .*--confirm {self.NAME}")

    @pytest.mark.parametrize(
        "said",
        ["db.staging.example:5433/app", "db.staging.example:5432/App", "db.staging.example:5432", "staging:5432/app",
         "db.staging.example/app", "*", "", "192.0.2.1:5432/app", "db.staging.example:5432/app2"],
    )  # fmt: skip
    def test_another_name_confirms_nothing(self, said: str) -> None:
        self.refuse("was not started by perfkit", confirm=(said,))

    def test_allowed_alone_is_not_confirmed(self) -> None:
        self.refuse("--confirm", allow=(self.NAME,))

    def test_confirmed_but_not_in_allow_is_refused(self) -> None:
        self.refuse("is not in 'allow'", allow=("localhost:5432/app",), confirm=(self.NAME,))

    @pytest.mark.parametrize("typed", ["y", "yes", "", "db.staging.example", "db.staging.example:5432/ap"])
    def test_something_else_typed_is_refused(self, typed: str) -> None:
        self.refuse("the typed name differs", ask=lambda _: typed)

    @pytest.mark.parametrize("typed", [NAME, f" {NAME.replace('db.', 'DB.')} "])
    def test_its_name_typed_is_enough(self, typed: str) -> None:
        admit(self.ADDRESS, Permission(ask=lambda _: typed))

    @pytest.mark.parametrize(
        "change",
        [{"host": "db-prod.example"}, {"host": "eu1prod.example"}, {"dbname": "app_production"}, {"user": "live"},
         {"service": "prod1"}, {"aliases": ("eu1.primary.example",)}, {"dbname": "AppProd"}, {"dbname": "proddb"},
         {"host": "ourproduction.example"}, {"dbname": "app-prd-2"}, {"host": "master"}],
        ids=str,
    )  # fmt: skip
    def test_what_looks_like_production_needs_its_own_word(self, change: dict[str, Any]) -> None:
        address = replace(self.ADDRESS, **change)
        self.refuse("looks like production", address, confirm=(address.name,), allow=(address.name,))
        self.refuse("looks like production", address, ask=lambda _: address.name)
        self.refuse("looks like production", address, confirm=(address.name,), production=(self.NAME.upper(),))
        admit(address, Permission(confirm=(address.name,), production=(address.name,)))

    @pytest.mark.parametrize("name", ["products", "reproduce", "preprod", "nonprod", "olive", "delivery", "mastery"])
    def test_words_that_only_resemble_it_do_not(self, name: str) -> None:
        assert looks_like_production([name]) == ""

    def test_a_canonical_name_of_production_is_seen_behind_an_alias(self, monkeypatch: pytest.MonkeyPatch) -> None:
        resolving(monkeypatch, "192.0.2.1", canonical_name="db-prod.example.")
        found = resolve("host=db.staging.example dbname=app")
        self.refuse("looks like production", found, confirm=(found.name,))

    def test_plain_http_beyond_this_machine_must_be_allowed_as_such(self, monkeypatch: pytest.MonkeyPatch) -> None:
        resolving(monkeypatch, "192.0.2.1")
        origin = resolve_origin("http://shop.staging.example")
        with stopped_by_a_guard("not encrypted"):
            admit(origin, Permission(confirm=(origin.name,)))
        with stopped_by_a_guard("is not in 'allow'"):
            admit(origin, Permission(("https://shop.staging.example",), (origin.name,)))
        admit(origin, Permission((origin.name,), (origin.name,)))

    @pytest.mark.parametrize(
        "url",
        [
            "http://me:hunter2@localhost", "http://localhost/path", "ftp://localhost", "http://localhost#@evil.example",
            "http://localhost?token=hunter2", "http://localhost\\@evil.example", "//localhost", "http://",
            "http://local host", "http://localhost:99999", "http://me:hunter2/x@localhost", "http://[::1%25lo]",
        ],
    )  # fmt: skip
    def test_more_than_an_origin_is_refused_and_its_secrets_not_repeated(self, url: str) -> None:
        with stopped_by_a_guard("expected http") as caught:
            resolve_origin(url)
        assert "hunter2" not in str(caught.value)


class TestTunnels:
    """Something on this machine that leads to a real server somewhere else."""

    def test_a_direct_way_needs_nothing_more(self, cluster: Cluster) -> None:
        for host in ("127.0.0.1", "localhost", "[::1]", str(cluster.folder)):
            assert use(cluster.db(canonical(host)), cluster.name(host)).version == 18

    def test_a_forwarder_to_a_server_is_refused_unless_that_is_named(self, cluster: Cluster) -> None:
        with Door(("127.0.0.1", cluster.port)) as tunnel:
            name = f"127.0.0.1:{tunnel.port}/app"
            db = cluster.db(port=tunnel.port)
            with stopped_by_a_guard(rf"leads to {cluster.name()} \(a tunnel, a proxy, a pooler\?\)"):
                use(db, name)
            assert use(db, name, cluster.name()).name == name

    def test_a_forwarder_to_a_socket_is_refused_unless_that_is_named(self, server: embedded.EmbeddedServer) -> None:
        with Door(str(server.socket_dir / ".s.PGSQL.5432")) as tunnel:
            db, name = f"host=127.0.0.1 port={tunnel.port} user=perfkit dbname=postgres", f"127.0.0.1:{tunnel.port}"
            with stopped_by_a_guard("leads to unix:5432/postgres"):
                use(db, f"{name}/postgres")
            use(db, f"{name}/postgres", "unix:5432/postgres")

    def test_a_forwarder_on_another_address_of_this_machine_is_one_too(self, cluster: Cluster) -> None:
        address = own_address()
        tunnel = Door(("127.0.0.1", cluster.port), host=address)
        with tunnel, stopped_by_a_guard(f"leads to {cluster.name()}"):
            use(cluster.db(address, port=tunnel.port), f"{address}:{tunnel.port}/app", tls=False)

    def test_a_socket_that_no_server_listens_at_is_refused(self, cluster: Cluster, tmp_path: Path) -> None:
        script = (
            "import asyncio, sys\n"
            "async def serve(r, w):\n"
            "    fr, fw = await asyncio.open_unix_connection(sys.argv[2])\n"
            "    async def carry(a, b):\n"
            "        while data := await a.read(65536):\n"
            "            b.write(data)\n"
            "        b.close()\n"
            "    await asyncio.gather(carry(r, fw), carry(fr, w), return_exceptions=True)\n"
            "async def main():\n"
            "    async with await asyncio.start_unix_server(serve, sys.argv[1]) as server:\n"
            "        print('ready', flush=True)\n"
            "        await server.serve_forever()\n"
            "asyncio.run(main())\n"
        )
        # A folder of its own, short enough for a socket's path.
        with tempfile.TemporaryDirectory(prefix="pk-") as folder:
            ends = [f"{folder}/.s.PGSQL.{cluster.port}", f"{cluster.folder}/.s.PGSQL.{cluster.port}"]
            with subprocess.Popen([sys.executable, "-c", script, *ends], stdout=subprocess.PIPE) as tunnel:
                try:
                    assert tunnel.stdout
                    tunnel.stdout.readline()
                    with stopped_by_a_guard(f"leads to tunnel:unix:{cluster.port}/app"):
                        use(cluster.db(folder), f"{folder}:{cluster.port}/app")
                finally:
                    tunnel.kill()

    @pytest.mark.parametrize("answers", ["127.0.0.1", "::1", None])
    def test_a_tunnel_to_another_machines_loopback_has_a_name_that_no_target_has(self, answers: str | None) -> None:
        there = {"database": "app", "address": answers, "port": answers and 5432, "listens": 5432}
        target = Address("127.0.0.1", "127.0.0.1", 5432, "app", "app", "", (), {})
        with stopped_by_a_guard("leads to tunnel:"):
            servers._require_same(target, there, False, Permission((), (target.name, "[::1]:5432/app")))

    def test_a_database_without_an_encoding_is_read_all_the_same(self, cluster: Cluster) -> None:
        with cluster.connect() as connection:
            connection.execute("CREATE DATABASE bytes ENCODING 'SQL_ASCII' TEMPLATE template0")
        assert use(cluster.db(dbname="bytes"), cluster.name(dbname="bytes")).name == cluster.name(dbname="bytes")

    def test_a_pooler_that_leads_to_a_database_of_another_name_is_refused(self) -> None:
        there = {"database": "app_prod", "address": "10.0.0.5", "port": 5432, "listens": 5432}
        target = Address("db.example", "192.0.2.1", 6432, "app", "app", "", (), {})
        named = "db.example:6432/app_prod"
        with stopped_by_a_guard(f"leads to {named} "):
            servers._require_same(target, there, False, Permission((), (target.name,)))
        with stopped_by_a_guard(f"leads to {named}, which looks like production"):
            servers._require_same(target, there, False, Permission((), (target.name, named)))
        servers._require_same(target, there, False, Permission((), (target.name, named), (named,)))

    def test_nothing_is_written_before_the_way_is_known(self, cluster: Cluster, tmp_path: Path) -> None:
        audit = Audit(tmp_path / "audit.jsonl")
        with Door(("127.0.0.1", cluster.port)) as tunnel:
            address = resolve(cluster.db(port=tunnel.port))
            with stopped_by_a_guard("leads to"):
                open_external(address, Permission((), (address.name,)), audit)
        question, limits = (entry["statement"] for entry in read(tmp_path) if "statement" in entry)
        assert re.fullmatch(r"(SET LOCAL \w+_timeout = \d+(; )?)+", limits)
        assert "inet_server_addr()" in question


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.200", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has loopback only")
        return str(probe.getsockname()[0])


class Service:
    """What a real service saw."""

    def __init__(self, port: int) -> None:
        self.port, self.requests, self.most, self.busy = port, 0, 0, 0
        self.hosts: set[str] = set()
        self.times: list[float] = []


@contextmanager
def service(status: int = 200, seconds: float = 0.0, headers: dict[str, str] | None = None) -> Iterator[Service]:
    """A real aiohttp service that counts requests and how many are with it at once."""
    ready, done = threading.Event(), threading.Event()
    seen = Service(0)

    async def answer(request: web.Request) -> web.Response:
        seen.requests, seen.busy = seen.requests + 1, seen.busy + 1
        seen.most = max(seen.most, seen.busy)
        seen.hosts.add(request.headers["Host"])
        seen.times.append(time.monotonic())
        await asyncio.sleep(seconds)
        seen.busy -= 1
        return web.Response(status=status, headers=headers)

    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        seen.port = runner.addresses[0][1]
        ready.set()
        await asyncio.to_thread(done.wait)
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    ready.wait()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


class TestRequests:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_is_not_followed(self, status: int, crew: WorkerPool) -> None:
        with service() as other, service(status, headers={"Location": f"http://127.0.0.1:{other.port}/"}) as meant:
            load = crew.run(http_target(f"http://127.0.0.1:{meant.port}", 5, "/"), [Batch(((GET,),))])
        assert load.columns.outcome == [f"http_{status}"]
        assert (meant.requests, other.requests) == (2, 0)

    @pytest.mark.parametrize(
        "path",
        ["http://127.0.0.1:{other}/", "//127.0.0.1:{other}/", "/\\127.0.0.1:{other}/", "\\\\127.0.0.1:{other}\\",
         "@127.0.0.1:{other}/", ":x@127.0.0.1:{other}/", "0/", "", ".evil.example/", "/ HTTP/1.1\r\nX: y", "/a b"],
    )  # fmt: skip
    def test_a_path_that_leaves_the_target_is_refused(self, path: str, door: Door) -> None:
        sender = HttpSender("http://127.0.0.1:80", 5)
        with pytest.raises(ValueError, match=r"leaves http://127.0.0.1:80; expected a path"):
            sender.check({**GET, "path": path.format(other=door.port)})

    @pytest.mark.process
    @pytest.mark.parametrize("change", ["path", "warm", "headers"])
    def test_no_worker_sends_what_is_refused(self, change: str) -> None:
        with service() as other, service() as meant, WorkerPool(1) as crew:
            astray = f"@127.0.0.1:{other.port}/"
            target = http_target(f"http://127.0.0.1:{meant.port}", 5, astray if change == "warm" else None)
            changes = {"path": astray, "headers": {"Host": f"127.0.0.1:{other.port}"}}
            message = {**GET, change: changes[change]} if change in changes else GET
            with pytest.raises(LoadError, match=f"request {'warm' if change == 'warm' else 'get'}: "):
                crew.run(target, [Batch(((message,),))])
        assert (meant.requests, other.requests) == (0, 0)

    @pytest.mark.parametrize(
        "headers",
        [{"Host": "other.example"}, {"HOST": "other.example"}, {"Connection": "Upgrade"}, {"Upgrade": "h2c"},
         {"Transfer-Encoding": "chunked"}, {"Content-Length": "0"}, {"Proxy-Authorization": "x"},
         {"X-Forwarded-Host": "other.example"}, {"X-A": "1\r\nHost: other.example"}, {"X-A\r\nHost": "other"},
         {"X-A": "{env:TWO_LINES}"}, {"Host ": "other.example"}, {":authority": "other.example"}],
        ids=str,
    )  # fmt: skip
    def test_a_header_that_could_lead_elsewhere_is_refused(
        self, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TWO_LINES", "hunter2\r\nHost: other.example")
        with pytest.raises(ValueError, match=r"request get: expected .*header") as caught:
            HttpSender("http://127.0.0.1:80", 5).check({**GET, "headers": headers})
        assert "hunter2" not in str(caught.value)

    def test_a_value_of_the_data_cannot_ask_for_the_environment(self) -> None:
        request = config.Request(name="r", path="/", headers={"X-Name": "{name}", "Authorization": "{env:TOKEN}"})
        assert http_message(request, {"name": "a"})["headers"] == {"X-Name": "a", "Authorization": "{env:TOKEN}"}
        with stopped_by_a_guard("names an environment variable"):
            http_message(request, {"name": "{env:PGPASSWORD}"})

    @pytest.mark.process
    def test_a_proxy_of_the_environment_is_not_used(self, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{door.port}")
        with service() as meant, WorkerPool(1) as crew:
            load = crew.run(http_target(f"http://127.0.0.1:{meant.port}", 5, "/"), [Batch(((GET,),))])
        assert load.columns.outcome == ["ok"]
        assert (meant.requests, door.came) == (2, 0)

    def test_a_request_that_may_change_something_needs_the_users_word(self, tmp_path: Path) -> None:
        with service() as meant:
            url = f"http://127.0.0.1:{meant.port}"
            text = f'title = "t"\nallow = ["{url}"]\n[service]\nurl = "{url}"\n'
            text += '[[request]]\nname = "r"\npath = "/"\nmethod = "POST"\n'
            text += '[[scenario]]\nname = "s"\nlabel = "s"\nsend = ["r"]\n'
            text += "".join(f'[[arm]]\nname = "{role}"\nrole = "{role}"\n' for role in ("before", "control", "after"))
            (tmp_path / "perfkit.toml").write_text(text)
            settings = config.load(tmp_path / "perfkit.toml")
            with stopped_by_a_guard("was not started by perfkit"):
                admitted(settings, settings.arm, Permission())
            with stopped_by_a_guard("expected 'writes = true'"):
                admitted(settings, settings.arm, Permission(confirm=(url,)))
            targets = admitted(
                settings.model_copy(update={"service": config.ServiceConfig(url=url, writes=True)}),
                settings.arm, Permission(confirm=(url,)),
            )  # fmt: skip
            assert set(caps(settings, targets)) == {"before", "control", "after"}
        assert meant.requests == 0


class TestMarker:
    def allowed(self, cluster: Cluster, dbname: str, user: str = "app") -> frozenset[str]:
        return use(cluster.db(dbname=dbname, user=user), cluster.name(dbname=dbname)).permissions

    @pytest.fixture
    def marked(self, cluster: Cluster) -> Iterator[str]:
        """A database of the plain user's, whose owner allowed both."""
        with cluster.connect() as connection:
            connection.execute("CREATE DATABASE marked OWNER plain")
        with psycopg.connect(cluster.db(dbname="marked", user="plain"), autocommit=True) as connection:
            connection.row_factory = psycopg.rows.dict_row
            servers.grant(connection, ["ddl", "writes"], 1)
        yield "marked"
        with cluster.connect() as connection:
            for name in ("marked", "cloned"):
                connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            connection.execute("DROP ROLE IF EXISTS other")

    def test_nothing_is_allowed_that_the_owner_did_not_allow(self, cluster: Cluster) -> None:
        assert self.allowed(cluster, "app") == frozenset()

    def test_the_owners_word_counts_and_can_be_taken_back(self, cluster: Cluster, marked: str) -> None:
        assert self.allowed(cluster, marked) == {"ddl", "writes"}
        found = use(cluster.db(dbname=marked, user="plain"), cluster.name(dbname=marked))
        with found.connect() as connection:
            servers.grant(connection, ["ddl"], 1)
            assert self.allowed(cluster, marked) == {"ddl"}
            servers.revoke(connection)
        assert self.allowed(cluster, marked) == frozenset()

    def test_a_clone_carries_no_permission(self, cluster: Cluster, marked: str) -> None:
        with cluster.connect() as connection:
            connection.execute(f"CREATE DATABASE cloned TEMPLATE {marked}")
        assert self.allowed(cluster, "cloned") == frozenset()

    def test_a_dump_restored_on_another_cluster_carries_none(
        self, cluster: Cluster, marked: str, server: embedded.EmbeddedServer
    ) -> None:
        dump = subprocess.run(
            [server.bin_dir / "pg_dump", "--no-owner", "--schema=perfkit_allowed", "-d", cluster.db(dbname=marked)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        statements = [line for line in dump.splitlines() if line.startswith(("CREATE SCHEMA", "COMMENT ON SCHEMA"))]
        assert len(statements) == 2
        with server.connect("postgres", "postgres") as connection:
            for statement in statements:
                connection.execute(statement)
            try:
                assert servers.permissions(connection) == frozenset()
                # Not even where the database happens to have the same number.
                row = connection.execute("SELECT oid::int AS o FROM pg_database WHERE datname = 'postgres'").fetchone()
                said = json.loads(statements[1].partition("'")[2].rpartition("'")[0])
                comment = json.dumps({**said, "database": (row or {})["o"]})
                connection.execute(f"COMMENT ON SCHEMA perfkit_allowed IS '{comment}'")
                assert servers.permissions(connection) == frozenset()
            finally:
                servers.revoke(connection)

    def test_an_expired_permission_is_none(self, cluster: Cluster, marked: str) -> None:
        with psycopg.connect(cluster.db(dbname=marked), autocommit=True) as connection:
            (comment,) = connection.execute("SELECT obj_description('perfkit_allowed'::regnamespace)").fetchone() or ()
            for until, allowed in (("2020-01-01", set()), ("2999-01-01", {"ddl", "writes"})):
                said = json.dumps({**json.loads(comment), "until": until})
                connection.execute(f"COMMENT ON SCHEMA perfkit_allowed IS '{said}'")
                assert self.allowed(cluster, marked) == allowed

    def test_a_permission_that_has_expired_cannot_be_given(self, cluster: Cluster, marked: str) -> None:
        found = use(cluster.db(dbname=marked, user="plain"), cluster.name(dbname=marked))
        with found.connect() as connection, stopped_by_a_guard("days = -1"):
            servers.grant(connection, ["ddl"], -1)
        assert self.allowed(cluster, marked) == {"ddl", "writes"}

    def test_who_may_make_schemas_but_owns_nothing_allows_nothing(self, cluster: Cluster, marked: str) -> None:
        with psycopg.connect(cluster.db(dbname=marked), autocommit=True) as connection:
            comment = connection.execute("SELECT obj_description('perfkit_allowed'::regnamespace)").fetchone()
            connection.execute("DROP SCHEMA perfkit_allowed")
            connection.execute("CREATE ROLE other LOGIN")
            connection.execute(f"GRANT CREATE ON DATABASE {marked} TO other")
        with psycopg.connect(cluster.db(dbname=marked, user="other"), autocommit=True) as connection:
            connection.execute("CREATE SCHEMA perfkit_allowed")
            connection.execute(f"COMMENT ON SCHEMA perfkit_allowed IS '{(comment or ('',))[0]}'")
        assert self.allowed(cluster, marked) == frozenset()
        found = use(cluster.db(dbname=marked, user="other"), cluster.name(dbname=marked))
        with found.connect() as connection, stopped_by_a_guard("expected the database's owner to run"):
            servers.grant(connection, ["ddl"], 1)

    @pytest.mark.parametrize(
        "comment", ["", "yes", "[]", "{}", '{"permissions": "ddl"}', '{"permissions": ["all"]}', "null"]
    )
    def test_a_comment_that_says_something_else_allows_nothing(
        self, comment: str, cluster: Cluster, marked: str
    ) -> None:
        with psycopg.connect(cluster.db(dbname=marked), autocommit=True) as connection:
            connection.execute(f"COMMENT ON SCHEMA perfkit_allowed IS '{comment}'")
        assert self.allowed(cluster, marked) == frozenset()

    def test_an_owner_with_an_odd_name_can_give_it(self, cluster: Cluster, marked: str) -> None:
        with cluster.connect() as connection:
            connection.execute("""CREATE ROLE "a; b 'c" LOGIN""")
            connection.execute(f"""ALTER DATABASE {marked} OWNER TO "a; b 'c" """)
        with psycopg.connect(cluster.db(dbname=marked), autocommit=True, row_factory=psycopg.rows.dict_row) as found:
            found.execute("DROP SCHEMA perfkit_allowed")
            servers.grant(found, ["writes"], 1)
            assert servers.permissions(found) == {"writes"}
            found.execute("ALTER DATABASE marked OWNER TO plain")
            found.execute("DROP SCHEMA perfkit_allowed")
            found.execute("""DROP ROLE "a; b 'c" """)


OUTCOMES = st.lists(st.tuples(st.booleans(), st.floats(0, 200)), max_size=120)


class TestGate:
    """Pure, on a clock of its own."""

    @given(total=st.integers(1, 50), asked=st.integers(0, 120))
    def test_no_more_than_the_total_gets_through(self, total: int, asked: int) -> None:
        gate = RateGate(Caps(total=total))
        assert sum(gate.admit(now) is not None for now in range(asked)) == min(total, asked)
        assert bool(gate.reason) == (asked > total)

    @given(rate=st.floats(0.5, 1000), steps=st.lists(st.integers(0, 10**9), min_size=2, max_size=60))
    def test_two_requests_are_never_closer_than_the_rate_allows(self, rate: float, steps: list[int]) -> None:
        gate, now, due = RateGate(Caps(rate=rate)), 0, []
        for step in steps:
            now += step
            due.append(gate.admit(now))
        assert all(later - earlier >= int(1e9 / rate) for earlier, later in pairwise(due))

    @given(deadline=st.integers(1, 1000), now=st.integers(0, 2000), rate=st.sampled_from([0.0, 1e7]))
    def test_nothing_is_due_after_the_deadline_even_if_it_was_asked_for_before(
        self, deadline: int, now: int, rate: float
    ) -> None:
        gate = RateGate(Caps(deadline_ns=deadline, rate=rate))
        due = [at for _ in range(20) if (at := gate.admit(now)) is not None]
        assert all(at < deadline for at in due)
        assert bool(due) == (now < deadline)

    @given(outcomes=OUTCOMES, window=st.integers(5, 30), grace=st.integers(0, 40), share=st.floats(0.05, 1))
    def test_the_breaker_opens_exactly_when_enough_of_the_last_failed_after_the_grace(
        self, outcomes: list[tuple[bool, float]], window: int, grace: int, share: float
    ) -> None:
        gate = RateGate(Caps(breaker_errors=share, breaker_window=window, grace=grace))
        opened = False
        for n, (ok, _) in enumerate(outcomes, 1):
            gate.note("ok" if ok else "timeout", 1.0)
            failed = sum(not good for good, _ in outcomes[max(0, n - window) : n])
            opened = opened or (n >= max(window, grace) and failed >= share * window)
            assert bool(gate.reason) == opened
            assert (gate.admit(n) is None) == opened

    @given(outcomes=OUTCOMES, window=st.integers(5, 30), grace=st.integers(0, 40))
    def test_the_breaker_opens_exactly_when_more_than_half_of_the_last_were_slow(
        self, outcomes: list[tuple[bool, float]], window: int, grace: int
    ) -> None:
        gate = RateGate(Caps(breaker_ms=100, breaker_window=window, grace=grace))
        opened = False
        for n, (_, ms) in enumerate(outcomes, 1):
            gate.note("ok", ms)
            slow = sum(took > 100 for _, took in outcomes[max(0, n - window) : n])
            opened = opened or (n >= max(window, grace) and slow > window / 2)
            assert bool(gate.reason) == opened

    @given(
        rate=st.floats(0, 1000), in_flight=st.integers(0, 20), total=st.integers(0, 200), users=st.integers(1, 16),
        sent=st.integers(0, 300),
    )  # fmt: skip
    def test_the_shares_of_workers_are_never_more_than_what_is_left(
        self, rate: float, in_flight: int, total: int, users: int, sent: int
    ) -> None:
        left = Caps(rate=rate, in_flight=in_flight, total=total).left(sent)
        workers = left.workers(users)
        shares = [left.share(number, workers) for number in range(workers)]
        assert 1 <= workers <= users
        assert sum(share.rate for share in shares) <= rate * (1 + 1e-9)
        if in_flight:
            assert all(share.in_flight >= 1 for share in shares)
            assert sum(share.in_flight for share in shares) <= in_flight
        through = [RateGate(share) for share in shares]
        passed = sum(gate.admit(0) is not None for gate in through for _ in range(250))
        assert passed == (max(0, total - sent) if total else 250 * workers)

    @given(in_flight=st.integers(1, 10), total=st.integers(1, 30), workers=st.integers(1, 16))
    def test_more_workers_than_there_is_to_share_get_nothing_rather_than_one_each(
        self, in_flight: int, total: int, workers: int
    ) -> None:
        shares = [Caps(in_flight=in_flight, total=total).share(number, workers) for number in range(workers)]
        sending = [share for share in shares if RateGate(share).admit(0) is not None]
        assert sum(share.in_flight for share in sending) <= in_flight

    def test_another_round_goes_on_with_pace_and_breaker(self) -> None:
        gate = RateGate(Caps(rate=1, breaker_errors=0.5, breaker_window=6, grace=0))
        gate.admit(0)
        for _ in range(3):
            gate.note("timeout", 1)
        gate.renew(Caps(rate=1, breaker_errors=0.5, breaker_window=6, grace=0))
        assert gate.admit(1) == 10**9
        for _ in range(3):
            gate.note("timeout", 1)
        assert gate.reason.startswith("circuit breaker: 6 of the last 6 requests failed (timeout)")


class TestLoad:
    """Through the real workers, against a service that counts."""

    def stopped(self, seen: Service, limits: Caps, users: int, each: int, warm: str | None = None) -> str:
        target = http_target(f"http://127.0.0.1:{seen.port}", 5, warm, limits=limits)
        with WorkerPool(2) as crew, pytest.raises(TargetRefused) as caught:
            crew.run(target, [Batch(((GET,) * each,) * users)])
        return str(caught.value)

    @pytest.mark.process
    def test_the_total_stops_the_run(self) -> None:
        with service() as seen:
            assert "limit on requests" in self.stopped(seen, Caps(total=25), users=6, each=20)
        assert seen.requests == 25

    @pytest.mark.process
    def test_warming_up_is_within_the_bounds(self) -> None:
        with service(seconds=0.02) as seen:
            assert "limit on requests" in self.stopped(seen, Caps(total=9, in_flight=2), users=6, each=20, warm="/")
        assert seen.requests == 9
        assert seen.most <= 2

    @pytest.mark.process
    @pytest.mark.parametrize("in_flight", [1, 2, 3])
    def test_no_more_are_in_flight_than_allowed(self, in_flight: int) -> None:
        with service(seconds=0.02) as seen, WorkerPool(2) as crew:
            target = http_target(f"http://127.0.0.1:{seen.port}", 5, "/", limits=Caps(in_flight=in_flight))
            load = crew.run(target, [Batch(((GET,) * 3,) * 8)])
        assert set(load.columns.outcome) == {"ok"}
        assert seen.requests == 24 + 8
        assert seen.most == in_flight

    @pytest.mark.process
    def test_rounds_of_one_run_share_its_total_however_many_workers_each_uses(self) -> None:
        with service() as seen, WorkerPool(2) as crew:
            target = http_target(f"http://127.0.0.1:{seen.port}", 5, limits=Caps("run", total=20))
            crew.run(target, [Batch(((GET,) * 6,))])
            crew.run(target, [Batch(((GET,) * 2,) * 4)])
            with pytest.raises(TargetRefused, match="limit on requests"):
                crew.run(target, [Batch(((GET,) * 10,) * 2)])
        assert 14 < seen.requests <= 20

    @pytest.mark.process
    def test_the_deadline_stops_the_run_and_those_who_wait_for_their_turn(self) -> None:
        with service() as seen:
            deadline = time.monotonic_ns() + 4_000_000_000  # enough for the workers to start on a busy machine
            limits = Caps(rate=20, deadline_ns=deadline)
            assert "time for load" in self.stopped(seen, limits, users=10, each=100)
        assert seen.requests >= 1
        assert max(seen.times) <= deadline / 1e9 + 0.5  # a request may be on its way
        assert seen.requests <= 20 * 4 + 2

    @pytest.mark.process
    def test_the_breaker_stops_the_run_on_errors_and_those_who_wait_for_their_turn(self) -> None:
        with service(500) as seen:
            limits = Caps(rate=200, breaker_errors=0.5, breaker_window=5, grace=10)
            said = self.stopped(seen, limits, users=20, each=50)
            assert "circuit breaker: 5 of the last 5 requests failed (http_500); nothing more was sent" in said
        assert 10 <= seen.requests <= 2 * (10 + 4)  # each worker's own, and what was on its way

    @pytest.mark.process
    def test_the_breaker_stops_the_run_on_slow_answers(self) -> None:
        with service(seconds=0.05) as seen:
            limits = Caps(in_flight=4, breaker_ms=10, breaker_window=5, grace=0)
            assert "took longer than 10 ms" in self.stopped(seen, limits, users=4, each=50)
        assert seen.requests <= 2 * (5 + 2)

    @pytest.mark.process
    def test_the_rate_is_kept(self) -> None:
        with service() as seen, WorkerPool(2) as crew:
            target = http_target(f"http://127.0.0.1:{seen.port}", 5, limits=Caps(rate=50))
            crew.run(target, [Batch(((GET,) * 10,) * 4)])
        assert seen.requests == 40
        assert max(seen.times) - min(seen.times) >= (40 / 2 - 1) * (2 / 50) * 0.9


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


class TestAudit:
    @pytest.fixture
    def found(self, cluster: Cluster, tmp_path: Path) -> External:
        audit = Audit(tmp_path / "audit.jsonl")
        return open_external(resolve(cluster.db()), Permission((), (cluster.name(),)), audit)

    def statements(self, folder: Path) -> list[str]:
        return [entry["statement"] for entry in read(folder) if "statement" in entry]

    def test_every_statement_is_there_and_no_value_of_a_parameter(self, found: External, tmp_path: Path) -> None:
        with found.connect() as connection:
            connection.execute("CREATE TEMP TABLE t (v text)")
            connection.execute("INSERT INTO t VALUES (%s)", ["hunter2"])
            with connection.cursor() as cursor:
                cursor.executemany("INSERT INTO t VALUES (%(v)s)", [{"v": "hunter2"}, {"v": "hunter2"}])
                assert [row["v"] for row in cursor.stream("SELECT v FROM t WHERE v = %s", ["hunter2"])] == [
                    "hunter2"
                ] * 3
                with cursor.copy("COPY t FROM STDIN") as copy:
                    copy.write_row(["hunter2"])
        sent = self.statements(tmp_path)[-5:]
        assert sent == [
            "CREATE TEMP TABLE t (v text)", "INSERT INTO t VALUES (%s)", "INSERT INTO t VALUES (%(v)s)",
            "SELECT v FROM t WHERE v = %s", "COPY t FROM STDIN",
        ]  # fmt: skip
        assert "hunter2" not in (tmp_path / "audit.jsonl").read_text()

    def test_a_statement_that_fails_is_there_with_its_sqlstate_only(self, found: External, tmp_path: Path) -> None:
        with found.connect() as connection, pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("CREATE TEMP TABLE u (v text PRIMARY KEY)")
            for _ in range(2):
                connection.execute("INSERT INTO u VALUES (%s)", ["hunter2"])
        last, end = read(tmp_path)[-2:]
        assert last["statement"] == "INSERT INTO u VALUES (%s)"
        assert (end["done"], end["error"]) == (last["n"], "23505")
        assert "hunter2" not in (tmp_path / "audit.jsonl").read_text()

    def test_a_statement_is_written_before_it_is_done(self, found: External, tmp_path: Path) -> None:
        with found.connect() as connection:
            thread = threading.Thread(target=connection.execute, args=("SELECT pg_sleep(1)",))
            thread.start()
            deadline = time.monotonic() + 5
            while self.statements(tmp_path)[-1] != "SELECT pg_sleep(1)":
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert thread.is_alive()
            assert "done" not in read(tmp_path)[-1]
            thread.join()
        assert read(tmp_path)[-1]["seconds"] >= 1

    def test_what_cannot_be_recorded_is_not_sent(self, found: External, cluster: Cluster, tmp_path: Path) -> None:
        with found.connect() as connection:
            (tmp_path / "audit.jsonl").unlink()
            (tmp_path / "audit.jsonl").mkdir()
            with pytest.raises(BundleError, match="the run stops here"):
                connection.execute("CREATE TABLE must_not_be (n int)")
        with cluster.connect() as connection:
            assert connection.execute("SELECT to_regclass('must_not_be')").fetchone() == (None,)

    def test_load_is_there_with_its_statements_and_counts(self, tmp_path: Path) -> None:
        Audit(tmp_path / "audit.jsonl").load("db:5432/app", "burst", "after", ["SELECT %(id)s"], 30, 1.5)
        (entry,) = read(tmp_path)
        assert entry["load"] == {
            "scenario": "burst", "arm": "after", "statements": ["SELECT %(id)s"], "requests": 30
        }  # fmt: skip
        assert (entry["target"], entry["seconds"]) == ("db:5432/app", 1.5)


def test_an_address_of_this_machine_is_known_as_one() -> None:
    assert guarded.here("127.0.0.1")
    assert guarded.here(own_address())
    assert not guarded.here("192.0.2.199")
