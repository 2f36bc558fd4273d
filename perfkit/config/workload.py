"""What is run: parameter sources, queries, requests, and the load levels at which they are sent."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from perfkit.config.fields import File, Json, Model, Name, Seconds
from perfkit.text import require_header


class Column(Model):
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
    def _one_kind(self) -> Column:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"exactly one of {', '.join(type(self).model_fields)}")
        for name in ("integer", "number", "date"):
            if (span := getattr(self, name)) and span[1] < span[0]:
                raise ValueError(f"{name} from the smaller to the larger")
        return self


class Generator(Model):
    """Parameter rows drawn at random from the run's seed."""

    columns: Annotated[dict[str, Column], Field(min_length=1)]
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


class Scenario(Model):
    """How load is offered in a round: `batches` times, `users` released at once, each sending `requests`."""

    name: Name
    """What it is called."""
    label: str
    """What reports say it offers: "5 users, joining one by one"."""
    send: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Requests, or queries, that each user sends one after the other."""
    users: Annotated[int, Field(ge=1, le=500)] = 1
    """How many at once."""
    requests: Annotated[int, Field(ge=1, le=10_000)] = 1
    """How often each user sends all of them."""
    batches: Annotated[int, Field(ge=1, le=1_000)] = 1
    """How often all users are released."""
    ramp: bool = False
    """Users join one by one first; only full concurrency counts."""
    warm: Annotated[int, Field(ge=0, le=100)] = 0
    """Batches of one request each before what counts."""
    seconds: Seconds | None = None
    """Queries that take long are sent less often, so that a round takes no longer than about this."""
    arms: tuple[Name, ...] = ()
    """Only on these arms; empty: on all."""
    alternate: bool = False
    """One query at a time, the arms taking turns at every one, each on a connection of its own: for what takes so
    little that a machine's pace changes more from one second to the next."""

    @model_validator(mode="after")
    def _one_at_a_time(self) -> Scenario:
        if self.alternate and (self.users > 1 or self.batches > 1 or self.ramp):
            raise ValueError("alternate with one user and one batch")
        return self
