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
from psycopg.conninfo import make_conninfo

BINARIES = next((path / "bin" for path in sorted(Path("/usr/lib/postgresql").glob("*"), reverse=True)), Path())
TOOLS = (*(BINARIES / name for name in ("initdb", "postgres")), Path("/usr/sbin/pgbouncer"))
PASSWORDS = {
    "postgres": "super-Secret-1",
    "shop": "shop-Secret-2",
    "clerk": "clerk-Secret-3",
    "hasty": "hasty-Secret-4",
}

SHOP = """
    CREATE SCHEMA sales;
    CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL);
    CREATE TABLE sales.orders (id int PRIMARY KEY, customer_id int NOT NULL REFERENCES customers, total numeric);
    INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 200) n;
    INSERT INTO sales.orders SELECT n, n % 200 + 1, n % 97 FROM generate_series(1, 4000) n;
    GRANT USAGE ON SCHEMA sales TO clerk;
    GRANT SELECT ON customers TO clerk;
    ANALYZE;
"""


@dataclass(frozen=True)
class Hosted:
    """A server whose database `shop` belongs to a plain role of that name; `clerk` reads half of it, `hasty` has no time."""

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

    @property
    def log(self) -> Path:
        return next((self.folder / "data" / "log").glob("*.csv"))

    def db(self, user: str = "shop", dbname: str = "shop", port: int = 0, **more: str) -> str:
        """What a user would write after --db."""
        return make_conninfo("", host="127.0.0.1", port=port or self.port, dbname=dbname, user=user, **more)

    def name(self, dbname: str = "shop", port: int = 0) -> str:
        """What has to be confirmed."""
        return f"127.0.0.1:{port or self.port}/{dbname}"

    def connect(self, user: str = "postgres", dbname: str = "shop") -> psycopg.Connection:
        passfile = self.environment["PGPASSFILE"]
        return psycopg.connect(self.db(user, dbname), autocommit=True, passfile=passfile, connect_timeout=5)

    def run(self, *statements: str, user: str = "postgres", dbname: str = "shop") -> list[tuple]:
        """Run statements; the rows of the last one."""
        with self.connect(user, dbname) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def reconnect(self) -> None:
        """Make the pooler's connections new ones, for what a role is given when it connects."""
        self.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'shop'"
        )

    def leave_alone(self) -> None:
        """End every connection to the database, the pooler's too."""
        query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'shop'"
        self.run(query, dbname="postgres")


@contextmanager
def hosted() -> Iterator[Hosted]:
    """Start both servers; they and their folder are gone at the end, whatever happened."""
    if missing := [tool.name for tool in TOOLS if not tool.exists()]:
        wanted = f"needs a system's {', '.join(missing)}"
        pytest.fail(wanted) if os.environ.get("CI") else pytest.skip(wanted)
    folder = Path(tempfile.mkdtemp(prefix="perfkit-hosted-"))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        folder.chmod(0o755)
        port, pooled = free_port(), free_port()
        write_files(folder, port, pooled)
        processes.append(start_postgres(folder, port))
        server = Hosted(folder, port, pooled, processes[0])
        wait_for(port, processes[0])
        server.run(
            *(f"CREATE ROLE {user} LOGIN PASSWORD '{word}'" for user, word in PASSWORDS.items() if user != "postgres"),
            "ALTER ROLE shop SET statement_timeout = '3s'",
            "ALTER ROLE hasty SET statement_timeout = '200ms'",
            "CREATE DATABASE shop OWNER shop",
            "CREATE DATABASE bare OWNER shop",
            dbname="postgres",
        )
        server.run(
            "CREATE SCHEMA extensions",
            "CREATE EXTENSION pg_stat_statements SCHEMA extensions",
            "CREATE EXTENSION hypopg SCHEMA extensions",
            "ALTER SCHEMA public OWNER TO shop",
        )
        server.run(SHOP, user="shop")
        processes.append(as_server(["/usr/sbin/pgbouncer", "-q", str(folder / "pgbouncer.ini")]))
        wait_for(pooled, processes[1])
        yield server
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGINT if process is processes[0] else signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder)


def write_files(folder: Path, port: int, pooled: int) -> None:
    """A cluster, its certificate, the pooler's configuration, the passwords of those who connect."""
    (folder / "first").write_text(PASSWORDS["postgres"])
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    made = [BINARIES / "initdb", "-D", folder / "data", "-U", "postgres", "--pwfile", folder / "first"]
    finish(as_server([*map(str, made), "-A", "scram-sha-256", "-E", "UTF8", "--locale", "C", "--no-sync"]))
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    files = ["-keyout", str(folder / "server.key"), "-out", str(folder / "server.crt")]
    finish(as_server([*make.split(), names, *files]))
    (folder / "users").write_text("".join(f'"{user}" "{word}"\n' for user, word in PASSWORDS.items()))
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {pooled}\nunix_socket_dir =\npool_mode = transaction\n"
        f"auth_type = scram-sha-256\nauth_file = {folder}/users\ndefault_pool_size = 5\n"
    )
    passwords = folder / "passwords"
    passwords.write_text("".join(f"127.0.0.1:*:*:{user}:{word}\n" for user, word in PASSWORDS.items()))
    passwords.chmod(0o600)


def start_postgres(folder: Path, port: int) -> subprocess.Popen[bytes]:
    settings = {
        "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": 30,
        "ssl": "on", "ssl_cert_file": folder / "server.crt", "ssl_key_file": folder / "server.key",
        "shared_preload_libraries": "pg_stat_statements", "fsync": "off", "shared_buffers": "32MB",
        "logging_collector": "on", "log_destination": "csvlog", "autovacuum": "off",
    }  # fmt: skip
    given = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    return as_server([str(BINARIES / "postgres"), "-D", str(folder / "data"), *given])


def as_server(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a program as the servers' user, which must not be root; it dies with the tests."""
    user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(["setpriv", *user, "--pdeathsig=KILL", "--", *command], cwd="/", **quiet)


def finish(process: subprocess.Popen[bytes]) -> None:
    assert process.wait(60) == 0, process.args


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until the server takes connections; scram's own answer is enough."""
    for _ in range(400):
        assert process.poll() is None, process.args
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="postgres", password="wrong", connect_timeout=2).close()
        except psycopg.OperationalError as error:
            if "password" in str(error) or "SASL" in str(error):
                return
        time.sleep(0.05)
    raise TimeoutError(port)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
