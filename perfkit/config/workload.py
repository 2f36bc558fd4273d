"""What is run: parameter sources, queries, requests, and the load levels at which they are sent."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from perfkit.config.fields import File, Json, Model, Name, Seconds
from perfkit.postgres.settings import require_harmless
from perfkit.text import require_header


class ParameterColumn(Model):
    """Values of one generated parameter: exactly one kind; ranges include both ends."""

    integer: tuple[int, int] | None = None
    """Whole numbers from the first to the second."""
    number: tuple[float, float] | None = None
    """Numbers from the first to the second."""
    choice: Annotated[tuple[Json, ...], Field(min_length=1)] | None = None
    """One of these."""
    date: tuple[datetime.date, datetime.date] | None = None
    """Days from the first to the second."""
    uuid: Literal[True] | None = None
    """Random UUIDs."""

    @model_validator(mode="after")
    def _one_kind(self) -> ParameterColumn:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"exactly one of {', '.join(type(self).model_fields)}")
        for name in ("integer", "number", "date"):
            if (span := getattr(self, name)) and span[1] < span[0]:
                raise ValueError(f"{name} from the smaller to the larger")
        return self


class Generator(Model):
    """Parameter rows drawn at random from the run's seed."""

    columns: Annotated[dict[str, ParameterColumn], Field(min_length=1)]
    """By parameter name, how its values are drawn."""
    rows: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """How many sets of values there are."""


Source = Annotated[
    Annotated[File, Tag("file")] | Annotated[Generator, Tag("generator")],
    Discriminator(lambda value: "generator" if isinstance(value, dict | Generator) else "file"),
]


class Query(Model):
    """A SQL statement of the workload."""

    name: Name
    """What reports call it."""
    file: File
    """The file that holds it, one statement; `%(name)s` stands for a parameter."""
    parameters: Name | None = None
    """The source of its parameters."""
    plan: bool = True
    """Whether its plan is captured, for which it is executed and rolled back."""


class Request(Model):
    """An HTTP request of the workload; `{column}` comes from the parameter row."""

    name: Name
    """What reports call it."""
    path: str
    """The path with its query string; `{column}` is filled in, escaped."""
    parameters: Name | None = None
    """The source of its parameters."""
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    """The HTTP method."""
    headers: dict[str, str] = {}
    """Headers; `{column}` is filled in, and `{env:NAME}` from the environment of perfkit, which keeps secrets out
    of files."""
    body: dict[str, Json] | None = None
    """A JSON body; `{column}` is filled in, alone with the value's own type."""
    expect: tuple[int, ...] = (200,)
    """Status codes that are no error."""
    contains: tuple[str, ...] = ()
    """Text that the body must hold; an answer without it counts as an error."""
    runs: tuple[Name, ...] = ()
    """Queries that it executes, so that the report can tell whether the plans shown are those in use."""

    @model_validator(mode="after")
    def _stays_at_its_target(self) -> Request:
        if not re.fullmatch(r"/(?![/\\])[^\s\\]*", self.path):
            raise ValueError(f"path {self.path!r} to begin with one '/'")
        for name, value in self.headers.items():
            require_header(name, value)
        return self


class LoadStage(Model):
    """A part of a round in which arrivals go evenly from the rate before it to its own."""

    rate: Annotated[float, Field(gt=0)]
    """Arrivals per second at its end; the same as before to hold them."""
    seconds: Seconds
    """How long it lasts."""


class RateSearch(Model):
    """Steps of a growing rate until a threshold breaks, then closer steps in between."""

    most: Annotated[float, Field(gt=0)]
    """The rate, per second, beyond which the search does not go."""
    growth: Annotated[float, Field(gt=1, le=10)] = 1.5
    """How many times the rate of one step that of the next is."""
    closer: Annotated[int, Field(ge=0, le=10)] = 2
    """Steps between the highest rate that held and the lowest that broke, each halving their distance."""


class Scenario(Model):
    """How load is offered in a round.

    Closed model: `batches` times, `users` released at once, each sending `requests`, the next one when the one
    before is answered. Open model, with a `rate`: requests arrive whether the ones before are answered or not.
    """

    name: Name
    """What it is called."""
    label: str
    """What reports say it offers: "5 users, joining one by one"."""
    send: tuple[Name, ...] = ()
    """Requests, or queries, that each user sends one after the other."""
    users: Annotated[int, Field(ge=1, le=500)] = 1
    """How many at once; with a `rate`, the most in flight: what arrives beyond that is dropped, and counted; with
    pgbench it waits, and is skipped after the timeout."""
    requests: Annotated[int, Field(ge=1, le=10_000)] = 1
    """How often each user sends all of them."""
    batches: Annotated[int, Field(ge=1, le=1_000)] = 1
    """How often all users are released."""
    ramp: bool = False
    """Users join one by one first; only full concurrency counts."""
    warm: Annotated[int, Field(ge=0, le=100)] = 0
    """Batches of one request each before what counts; with pgbench, each client's first transactions."""
    seconds: Seconds | None = None
    """Queries that take long are sent less often, so that a round takes no longer than about this. With a `rate` or
    pgbench, how long it lasts."""
    rate: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Arrivals per second: the open model."""
    arrivals: Literal["poisson", "constant"] = "poisson"
    """Whether arrivals are independent of each other or evenly spaced."""
    stage: tuple[LoadStage, ...] = ()
    """After the first `seconds`, further parts with rates of their own."""
    search: RateSearch | None = None
    """Find the highest rate, from `rate` on, at which the thresholds hold; every step lasts `seconds`."""
    connections: Annotated[int, Field(ge=1, le=500)] | None = None
    """With a `rate` of queries, connections that they wait for; without it, as many as may be in flight."""
    retries: Annotated[int, Field(ge=0, le=100)] = 0
    """How often a query that met a serialization failure or a deadlock is tried again; its latency includes that."""
    engine: Literal["asyncio", "pgbench"] = "asyncio"
    """Who sends queries: perfkit's own workers, or pgbench, whose client costs less."""
    script: tuple[File, ...] = ()
    """Scripts for pgbench, in place of `send`; each client runs one after the other, chosen at random. Commands that
    run programs (`\\shell`, `\\setshell`) are refused."""
    arms: tuple[Name, ...] = ()
    """Only on these arms; empty: on all."""
    alternate: bool = False
    """One query at a time, the arms taking turns at every one, each on a connection of its own: for what takes so
    little that a machine's pace changes more from one second to the next."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Scenario:
        if self.alternate and (self.users > 1 or self.batches > 1 or self.ramp or self.rate or self.pgbench):
            raise ValueError("alternate with one user and one batch, closed model")
        if bool(self.send) == bool(self.script):
            raise ValueError("either send or script")
        for path in self.script:
            _require_harmless(path)
        if self.script and not self.pgbench:
            raise ValueError("script with engine = 'pgbench'")
        if (self.rate or self.pgbench) and not self.seconds:
            raise ValueError("seconds, for a rate or pgbench goes on until they are over")
        if (self.rate or self.pgbench) and (self.batches > 1 or self.ramp or self.requests > 1):
            raise ValueError("no batches, requests or ramp with a rate or pgbench")
        if (self.stage or self.search or self.connections) and not self.rate:
            raise ValueError("stage, search and connections with a rate")
        if self.search and (self.stage or self.pgbench or self.search.most <= (self.rate or 0)):
            raise ValueError("search from a rate to a higher one, without stages, by asyncio")
        if self.pgbench and self.stage:
            raise ValueError("no stages by pgbench, which has one rate")
        return self

    @property
    def pgbench(self) -> bool:
        """Whether pgbench sends its queries."""
        return self.engine == "pgbench"

    @property
    def items(self) -> tuple[str, ...]:
        """What its samples are called: what it sends, or its scripts."""
        return self.send or tuple(path.stem for path in self.script)

    @property
    def lasts_s(self) -> float | None:
        """How long arrivals last in all, in s; None in the closed model."""
        return None if not self.rate else (self.seconds or 0.0) + sum(stage.seconds for stage in self.stage)


def _require_harmless(path: Path) -> None:
    """Raise ValueError for a script that pgbench could harm something with, or that is no text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"{path} to be a text in UTF-8") from None
    require_harmless(text, path)
