"""What is watched in tests: a PostgreSQL server and an HTTP service that can be killed, stopped and started again."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import psycopg
from hosted import free_port, wait_for
from psycopg.conninfo import make_conninfo

from perfkit.postgres import cluster
from perfkit.postgres.guards import Permission

SETTINGS = {
    "fsync": "off",
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "unix_socket_directories": "",
    "timezone": "UTC",
}
BEGIN = """
title = "A shop"
allow = ["http://127.0.0.1:{http}", "127.0.0.1:{sql}/{dbname}"]
[database]
target = "host=127.0.0.1 port={sql} dbname={dbname} user={user}"
way = "in-place"
[service]
url = "http://127.0.0.1:{http}"
[[scenario]]
name = "all"
label = "all"
send = ["{first}"]
[[arm]]
name = "live"
role = "before"
"""


def until(what: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "expected it in time"
        time.sleep(0.01)


@dataclass
class Postgres:
    """A server on a port of 127.0.0.1, which trusts everybody."""

    folder: Path
    bin_dir: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def db(self, dbname: str = "postgres", user: str = "postgres") -> str:
        return make_conninfo("", host="127.0.0.1", port=self.port, dbname=dbname, user=user)

    def run(self, *statements: str, dbname: str = "postgres") -> None:
        with psycopg.connect(self.db(dbname), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def start(self) -> None:
        settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        own = ["-D", str(self.folder / "data"), "-p", str(self.port), "-c", "listen_addresses=127.0.0.1", *settings]
        self.process = as_server([str(self.bin_dir / "postgres"), *own])
        wait_for(self.port)

    def stop(self, how: int = signal.SIGQUIT) -> None:
        if self.process:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None

    def freeze(self, number: int = signal.SIGSTOP) -> None:
        """Stop every process of the server where it is, or let it go on with SIGCONT."""
        assert self.process
        self.process.send_signal(number)  # first, so that no process comes after those that are listed
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout
        for pid in map(int, children.split()):
            with suppress(ProcessLookupError):  # a session that ended meanwhile
                os.kill(pid, number)


@contextmanager
def postgres(version: int, home: Path) -> Iterator[Postgres]:
    """A server of the embedded binaries; gone at the end, whatever happened."""
    bin_dir = Path(f"/usr/lib/postgresql/{version}/bin")
    bin_dir = bin_dir if bin_dir.exists() else cluster.locate(version, home)
    folder = Path(tempfile.mkdtemp(prefix="perfkit-watched-"))
    folder.chmod(0o755)
    server = Postgres(folder, bin_dir, free_port())
    try:
        if user := cluster.server_user():
            os.chown(folder, user.pw_uid, user.pw_gid)
        how = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale", "C", "--no-sync"]
        assert as_server([str(bin_dir / "initdb"), "-D", str(folder / "data"), *how]).wait(60) == 0
        server.start()
        yield server
    finally:
        if server.process:
            server.freeze(signal.SIGCONT)
        server.stop()
        shutil.rmtree(folder)


def as_server(command: list[str]) -> subprocess.Popen[bytes]:
    user, null = cluster.server_user(), subprocess.DEVNULL
    words = ["setpriv", "--pdeathsig=KILL", "--", *command]
    if user:
        words[1:1] = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return subprocess.Popen(words, cwd="/", stdin=null, stdout=null, stderr=null)


@dataclass
class Web:
    """A service on a port of 127.0.0.1: what it answers, after how long, and every path that it was asked for."""

    port: int = field(default_factory=free_port)
    status: int = 200
    after_s: float = 0.0
    asked: list[str] = field(default_factory=list)
    go_on: Event = field(default_factory=Event)
    _server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web.asked.append(self.path)
                web.go_on.wait(web.after_s)
                try:
                    self.send_response(web.status)
                    self.send_header("Content-Length", "2")
                    self.end_headers()
                    self.wfile.write(b"ok")
                except OSError:
                    self.close_connection = True

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            allow_reuse_address = daemon_threads = True

            def process_request(self, request: object, client_address: object) -> None:
                web._open.append(request)
                super().process_request(request, client_address)

        self._open: list = []
        self._server = Server(("127.0.0.1", self.port), Handler)
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """As if it were killed: every connection is cut."""
        self.go_on.set()
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            for own in self._open:
                try:
                    own.shutdown(2)
                    own.close()
                except OSError:
                    pass
            self._server = None
        self.go_on.clear()


@contextmanager
def web() -> Iterator[Web]:
    own = Web()
    own.start()
    try:
        yield own
    finally:
        own.stop()


def written(
    folder: Path, more: str, *, http: int, sql: int, first: str, dbname: str = "shop", user: str = "postgres"
) -> Path:
    """A perfkit.toml about them."""
    path = folder / "perfkit.toml"
    path.write_text(BEGIN.format(http=http, sql=sql, first=first, dbname=dbname, user=user) + more)
    return path


def permission(http: int, sql: int, dbname: str = "shop") -> Permission:
    return Permission(confirm=(f"http://127.0.0.1:{http}", f"127.0.0.1:{sql}/{dbname}"))
