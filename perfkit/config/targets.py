"""Where the data and the service come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from perfkit.config.fields import Conninfo, Count, File, Model, Name, Seconds, Settings, Url, folder_of

Way = Literal["made", "whole", "sample", "generated", "clone", "in-place"]
COPIES = ("whole", "sample", "generated")


class DatabaseConfig(Model):
    """Where the data comes from: SQL files run in a server that perfkit starts, or a database of yours."""

    prepare: tuple[File, ...] = ()
    """SQL files that make tables and rows in a new database of perfkit's own; `:name` stands for a number of the
    scale."""
    target: Conninfo = ""
    """A database of yours: `service=NAME`, a libpq string or a `postgresql://` URI, without a password."""
    way: Way = "made"
    """How a target is used. `whole`, `sample` and `generated` bring a private copy into a server that perfkit
    starts; `clone` makes databases beside it on its own server; `in-place` measures it as it stands."""
    pooler: bool = False
    """The target is reached through a pooler in transaction mode. PgBouncer is found out without this."""
    sample_rows: Count = 100_000
    """Rows of the largest table in a `sample` or `generated` copy; other tables in proportion."""
    copy_limit_mb: Count = 2_000
    """The largest database that is copied `whole`, in MB with its indexes."""
    tls: bool = True
    """Insist on TLS beyond this machine."""
    volatile: tuple[str, ...] = ()
    """Volatile functions that statements may call on a server that perfkit did not start."""
    postgres: Literal[16, 18] = 18
    """The version of PostgreSQL that perfkit starts."""
    scale: str = "standard"
    """Which of the scales is used where the command line names none."""
    scales: dict[Name, dict[str, Count]] = {}
    """By name, the numbers that `prepare` files are filled with."""
    settings: Settings = {}
    """Server settings of the PostgreSQL that perfkit starts, for all arms; the same are refused as in an arm."""

    @model_validator(mode="after")
    def _one_origin(self) -> DatabaseConfig:
        if bool(self.prepare) == bool(self.target):
            raise ValueError("either 'prepare' (SQL files) or 'target' (a database of yours)")
        if bool(self.target) == (self.way == "made"):
            ways = ", ".join(("'made' without a target", *COPIES, "clone or in-place with one"))
            raise ValueError(f"way '{self.way}' to fit: {ways}")
        if self.scales and not self.prepare:
            raise ValueError("no 'scales' without 'prepare' files to fill them in")
        if self.settings and self.way in ("clone", "in-place"):
            raise ValueError("no 'settings' for a server that perfkit does not start: they belong to the arms")
        return self


class ServiceConfig(Model):
    """The HTTP service: launched by `command` for every arm, or one of yours at `url`."""

    command: tuple[str, ...] = ()
    """Program and arguments. `{python}`, `{port}`, `{folder}` (of the perfkit.toml) and the arm's own values are
    filled in; the database is in the environment as `PERFKIT_DATABASE`."""
    url: Url = ""
    """The origin of a service of yours: `https://host:port`, without a path."""
    writes: bool = False
    """Whether requests other than GET may be sent to the service at `url`."""
    health: str = "/health"
    """A path that answers 200 when the service is ready."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """The port of the launched service; 0 finds a free one."""
    reset: Literal["restart", "hup"] = "restart"
    """How the launched service forgets its connections between blocks: a new process, or SIGHUP."""
    start_timeout_s: Seconds = 10.0
    """How long it may take until it is ready."""

    @field_validator("command")
    @classmethod
    def _in_folder(cls, command: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        folder = str(folder_of(info)).replace("{", "{{").replace("}", "}}")
        return tuple(part.replace("{folder}", folder) for part in command)
