"""PostgreSQL as a hosted one is: passwords, TLS, a plain owner, time limits, and PgBouncer in front of it."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import pq
from psycopg.conninfo import make_conninfo

VERSION = max((int(path.name) for path in Path("/usr/lib/postgresql").glob("[0-9]*")), default=0)
BINARIES, POOLER = Path(f"/usr/lib/postgresql/{VERSION}/bin"), Path("/usr/sbin/pgbouncer")
NEEDED = (BINARIES / "postgres", POOLER, Path(f"/usr/share/postgresql/{VERSION}/extension/hypopg.control"))
LIMITS = {"shop": 3000, "hasty": 200}
PASSWORDS = {"postgres": "Secret-1", "shop": "Secret-2", "clerk": "Secret-3", "hasty": "Secret-4"}
SETTINGS = {
    "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "30", "fsync": "off",
    "ssl": "on", "ssl_cert_file": "../server.crt", "ssl_key_file": "../server.key", "shared_buffers": "32MB",
    "shared_preload_libraries": "pg_stat_statements", "autovacuum": "off",
    "logging_collector": "on", "log_destination": "csvlog",
}  # fmt: skip
OPENSSL = "openssl req -x509 -newkey rsa -nodes -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
SHOP = """
    CREATE SCHEMA sales;
    CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL);
    CREATE TABLE sales.orders (id int PRIMARY KEY, customer_id int NOT NULL REFERENCES customers, total numeric);
    INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 200) n;
    INSERT INTO sales.orders SELECT n, n % 200 + 1, n % 97 FROM generate_series(1, 4000) n;
    GRANT USAGE ON SCHEMA sales TO clerk; GRANT SELECT ON customers TO clerk; ANALYZE;
"""


@dataclass(frozen=True)
class Hosted:
    """A server whose databases `shop` and `bare` belong to a plain role; `clerk` and `hasty` are others."""

    folder: Path
    port: int
    pooled: int
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """Where libpq finds the passwords; nothing else knows them."""
        return {"PGPASSFILE": str(self.folder / "passwords")}

    @property
    def certificate(self) -> Path:
        return self.folder / "server.crt"

    def db(self, user: str = "shop", dbname: str = "shop", port: int = 0, **more: str) -> str:
        """What a user would write after --db."""
        return make_conninfo("", host="127.0.0.1", port=port or self.port, dbname=dbname, user=user, **more)

    def name(self, dbname: str = "shop", port: int = 0) -> str:
        """What has to be confirmed."""
        return f"127.0.0.1:{port or self.port}/{dbname}"

    def connect(self, user: str = "postgres", dbname: str = "shop") -> psycopg.Connection:
        return psycopg.connect(self.db(user, dbname), autocommit=True, passfile=self.environment["PGPASSFILE"])

    def run(self, *statements: str, user: str = "postgres", dbname: str = "shop") -> list[tuple]:
        """Run statements; the rows of the last one."""
        with self.connect(user, dbname) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def leave_alone(self) -> None:
        """End every connection to the database, the pooler's too."""
        self.run("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'shop'", dbname="bare")


@contextmanager
def hosted() -> Iterator[Hosted]:
    """Start both servers; they and their folder are gone at the end, whatever happened."""
    if missing := [path.name for path in NEEDED if not path.exists()]:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs the system's {', '.join(missing)}")
    folder = Path(tempfile.mkdtemp(prefix="perfkit-hosted-"))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        port, pooled = free_port(), free_port()
        write_files(folder, port, pooled)
        settings = [part for name, value in {"port": port, **SETTINGS}.items() for part in ("-c", f"{name}={value}")]
        processes.append(as_server(BINARIES / "postgres", "-D", folder / "data", *settings))
        wait_for(port)
        server = Hosted(folder, port, pooled, processes[0])
        roles = [f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORDS[user]}'" for user in ("shop", "clerk", "hasty")]
        limits = [f"ALTER ROLE {user} SET statement_timeout = '{ms}ms'" for user, ms in LIMITS.items()]
        databases = [f"CREATE DATABASE {name} OWNER shop" for name in ("shop", "bare")]
        server.run(*roles, *limits, *databases, dbname="postgres")
        extensions = [f"CREATE EXTENSION {name} SCHEMA extensions" for name in ("pg_stat_statements", "hypopg")]
        server.run("CREATE SCHEMA extensions", *extensions, "ALTER SCHEMA public OWNER TO shop")
        server.run(SHOP, user="shop")
        processes.append(as_server(POOLER, "-q", folder / "pgbouncer.ini"))
        wait_for(pooled)
        yield server
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGQUIT if process is processes[0] else signal.SIGKILL)  # at once
            process.wait()
        shutil.rmtree(folder)


@contextmanager
def standby(server: Hosted) -> Iterator[int]:
    """Start a standby of a hosted server that answers queries; its port."""
    port, data = free_port(), server.folder / "standby"
    primary = make_conninfo("", host="127.0.0.1", port=server.port, user="postgres", password=PASSWORDS["postgres"])
    copying = as_server(BINARIES / "pg_basebackup", "-D", data, "-R", "-d", primary, "--checkpoint=fast", "--no-sync")
    assert copying.wait(60) == 0
    settings = [part for name, value in {"port": port, **SETTINGS}.items() for part in ("-c", f"{name}={value}")]
    process = as_server(BINARIES / "postgres", "-D", data, *settings)
    try:
        wait_for(port)
        yield port
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait()


def write_files(folder: Path, port: int, pooled: int) -> None:
    """A cluster, its certificate, the pooler's configuration, the passwords of those who connect."""
    folder.chmod(0o755)
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    (folder / "first").write_text(PASSWORDS["postgres"])
    how = ["-A", "scram-sha-256", "-U", "postgres", "--pwfile", folder / "first", "-E", "UTF8", "--locale", "C"]
    assert as_server(BINARIES / "initdb", "-D", folder / "data", *how, "--no-sync").wait(60) == 0
    assert as_server(*OPENSSL.split(), "-keyout", folder / "server.key", "-out", folder / "server.crt").wait(60) == 0
    (folder / "users").write_text("".join(f'"{user}" "{word}"\n' for user, word in PASSWORDS.items()))
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {pooled}\nunix_socket_dir =\npool_mode = transaction\n"
        f"auth_type = scram-sha-256\nauth_file = {folder}/users\ndefault_pool_size = 5\n"
    )
    (folder / "passwords").write_text("".join(f"127.0.0.1:*:*:{user}:{word}\n" for user, word in PASSWORDS.items()))
    (folder / "passwords").chmod(0o600)


def as_server(*command: str | Path) -> subprocess.Popen[bytes]:
    """Start a program as the servers' user, for they refuse to be root's; it dies with the tests."""
    user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    words, null = ["setpriv", *user, "--pdeathsig=KILL", "--", *map(str, command)], subprocess.DEVNULL
    return subprocess.Popen(words, cwd="/", stdin=null, stdout=null, stderr=null)


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while pq.PGconn.ping(f"host=127.0.0.1 port={port} connect_timeout=2".encode()) != pq.Ping.OK:
        assert time.monotonic() < deadline, "expected a server that starts"
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])
