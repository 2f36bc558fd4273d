"""What one round sends, and when: batches of the closed model, arrivals of the open model, parameter rows.

Pure. A round is a sequence of batches; each starts when the one before it is complete. In the closed model a batch
releases its users at one instant, and each user sends its own requests one after the other. In the open model
requests arrive at instants that a rate over time and a seed alone decide: at the cumulative rate's own values.
Evenly spaced arrivals come where it passes 0.5, 1.5, 2.5 ...; those of a Poisson process where it passes sums of
exponential variates (time rescaling; Brown et al. 2002).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Literal, Required, TypedDict
from urllib.parse import quote

from perfkit.base.errors import UsageError

if TYPE_CHECKING:  # a load worker imports this module, and the configuration would double its start-up time
    from perfkit.config import Request, Scenario
    from perfkit.load.samples import Caps
    from perfkit.load.senders import Bound

Row = Mapping[str, object]
Segment = tuple[float, float, float]  # rate at its start and at its end, per second; seconds
MESSAGES = 2000  # different messages of each kind in a round of the open model, which repeats them in turn
MIN_TURNS = 2  # requests of an arm in a round in which arms take turns
SIMILAR = 4.0  # an arm that takes up to this many times as long as the fastest sends as many requests
_PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_.]*)\}")


class Message(TypedDict, total=False):
    """One request or statement, as the parent sends it to a worker; `check` of the worker's sender completes it."""

    item: Required[str]
    method: str
    path: str
    json: object
    headers: dict[str, str]
    expect: list[int]  # status codes that are not errors
    contains: list[str]  # texts that the body must contain
    sql: str
    params: Row | None
    arm: str  # of arms that take turns, whose database it is for
    wire: bytes  # the bytes of an HTTP request
    bound: Bound


class HttpOptions(TypedDict):
    """The options of `http.HttpSender`."""

    base: str
    timeout_s: float
    warm: str | None
    address: str


class SqlOptions(TypedDict):
    """The options of `senders.SqlSender`."""

    conninfo: str
    timeout_s: float
    session: dict[str, str]
    prepare: bool
    retries: int
    connections: int


class _Target(TypedDict):
    limits: Caps | None
    pinned: bool


class HttpTarget(_Target):
    """An HTTP service."""

    kind: Literal["http"]
    options: HttpOptions


class SqlTarget(_Target):
    """A database."""

    kind: Literal["sql"]
    options: SqlOptions


class AlternatingTarget(_Target):
    """Several databases, by arm, which take turns."""

    kind: Literal["alternating"]
    options: dict[str, SqlOptions]


Target = HttpTarget | SqlTarget | AlternatingTarget


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests by user, released at one instant.

    The requests of an uncounted batch are sent but not counted: the batch only brings the load up. With `full_only`,
    requests that start after the first user has finished do not count either.
    """

    queues: tuple[tuple[Message, ...], ...]
    counted: bool = True
    full_only: bool = False

    @property
    def users(self) -> int:
        """The number of users, each with a connection of its own."""
        return len(self.queues)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests of the open model: the messages in turn, at instants that the segments and the seed decide.

    At most `users` requests are in flight; a request that arrives beyond that is dropped.
    """

    messages: tuple[Message, ...]
    segments: tuple[Segment, ...]
    users: int
    seed: str | None  # of a Poisson process; None: evenly spaced
    counted: bool = True

    @property
    def lasts_s(self) -> float:
        """The time during which requests arrive, in s."""
        return sum(seconds for *_, seconds in self.segments)

    @property
    def expected(self) -> float:
        """The mean number of requests that arrive."""
        return sum((first + last) / 2 * seconds for first, last, seconds in self.segments)

    @property
    def peak(self) -> float:
        """The highest rate, per second."""
        return max(max(first, last) for first, last, _ in self.segments)


@dataclass(frozen=True)
class Hand:
    """One worker's part of a batch: the queues of its users, or the arrivals whose number modulo `parts` is `part`."""

    samples: int  # requests whose times are kept
    queues: Mapping[str, Sequence[Message]] = field(default_factory=dict)  # by the user's number
    messages: Sequence[Message] = ()
    segments: Sequence[Segment] = ()
    seed: str | None = None  # of a Poisson process; None: evenly spaced
    parts: int = 1
    part: int = 0
    in_flight: int = 0


def instants(segments: Sequence[Segment], seed: str | None) -> Iterator[int]:
    """Yield instants in ns from the start, never decreasing: Poisson with a seed, evenly spaced without.

    >>> [round(at / 1e6) for at in instants([(10, 10, 0.5)], None)]
    [50, 150, 250, 350, 450]
    >>> [round(at / 1e6) for at in instants([(0, 10, 1)], None)]
    [316, 548, 707, 837, 949]
    """
    draw = Random(seed) if seed is not None else None
    passed, start = (draw.expovariate(1.0) if draw else 0.5), 0.0
    before = 0.0  # arrivals expected up to the segment
    for first, last, seconds in segments:
        expected = (first + last) / 2 * seconds
        while passed < before + expected:
            yield int((start + _solved(first, last, seconds, passed - before)) * 1e9)
            passed += draw.expovariate(1.0) if draw else 1.0
        before, start = before + expected, start + seconds


def _solved(first: float, last: float, seconds: float, arrivals: float) -> float:
    """Return the time at which a rate that changes linearly from `first` to `last` has brought `arrivals`."""
    slope = (last - first) / seconds
    root = math.sqrt(max(first * first + 2 * slope * arrivals, 0.0))
    return min(2 * arrivals / (first + root), seconds) if first + root else 0.0


class Draw:
    """Draws parameter rows without replacement, in an order that the seed alone decides.

    A source that runs out starts over: its rows have then been used equally often. `last_first` takes the
    same order from its end, so that two draws with one seed meet only when a source runs out.
    """

    def __init__(self, rows: Mapping[str, Sequence[Row]], seed: str, *, last_first: bool = False) -> None:
        self._rows, self._seed, self._last_first = rows, seed, last_first
        self._streams: dict[str, Iterator[Row]] = {}

    def __call__(self, source: str) -> Row:
        """Return the next row of a source."""
        if source not in self._streams:
            self._streams[source] = self._stream(source)
        return next(self._streams[source])

    def _stream(self, source: str) -> Iterator[Row]:
        order = list(self._rows[source])
        Random(f"{self._seed}/{source}").shuffle(order)
        if self._last_first:
            order.reverse()
        while True:
            yield from order


def batches(scenario: Scenario, message: Callable[[str], Message], seed: str = "") -> list[Batch | Arrivals]:
    """Return the batches of one round. `message(name)` makes the next request or query with that name.

    The seed decides when requests of the open model arrive.
    """

    def queue(length: int) -> tuple[Message, ...]:
        return tuple(message(name) for _ in range(length) for name in scenario.send)

    sizes = range(1, scenario.users) if scenario.ramp else [scenario.users] * scenario.warm
    lead: list[Batch | Arrivals] = [Batch(tuple(queue(1) for _ in range(users)), counted=False) for users in sizes]
    if scenario.rate:
        return [*lead, _arrivals(scenario, scenario.rate, message, seed)]
    full = [
        Batch(tuple(queue(scenario.requests) for _ in range(scenario.users)), full_only=scenario.ramp)
        for _ in range(scenario.batches)
    ]
    return lead + full


def _arrivals(scenario: Scenario, rate: float, message: Callable[[str], Message], seed: str) -> Arrivals:
    segments, last = [], rate
    for target, seconds in [
        (rate, scenario.seconds or 0.0),
        *((stage.rate, stage.seconds) for stage in scenario.stage),
    ]:
        segments.append((last, target, seconds))
        last = target
    arrivals = Arrivals((), tuple(segments), scenario.users, seed if scenario.arrivals == "poisson" else None)
    count = max(1, min(MESSAGES, math.ceil(arrivals.expected / len(scenario.send))))
    return replace(arrivals, messages=tuple(message(name) for _ in range(count) for name in scenario.send))


def turns(scenario: Scenario, took_ms: Mapping[str, float], draw: Random) -> list[tuple[str, int]]:
    """Return the order in which arms take turns: (arm, request number) pairs, arms in random order for each number.

    If a round would outlast `scenario.seconds`, arms sit out evenly, down to `MIN_TURNS` requests. Arms that take
    about as long as the fastest send the same number of requests, so that they are compared on the same requests.
    """
    most, limit = scenario.requests, 1000 * (scenario.seconds or math.inf)
    fastest = min([ms for ms in took_ms.values() if ms], default=0.0)
    counts: dict[str, int] = {}
    for name, ms in took_ms.items():
        alike = fastest if ms <= SIMILAR * fastest else ms
        counts[name] = min(most, max(MIN_TURNS, int(min(most, limit / alike)))) if alike else most
    order: list[tuple[str, int]] = []
    for number in range(-scenario.warm, most):
        taking = [n for n, count in counts.items() if (number + 1) * count // most > number * count // most]
        if number < 0:  # slow arms need no warm-up: their time hardly depends on whether a request comes first
            taking = [n for n, count in counts.items() if count > MIN_TURNS]
        order += [(name, number + scenario.warm) for name in draw.sample(taking, len(taking))]
    return order


def http_message(request: Request, row: Row) -> Message:
    """Return an HTTP request with its placeholders filled from a parameter row.

    Raises UsageError if the row lacks the column of a placeholder.
    """
    try:
        path, body = str(fill(request.path, row, encode=True)), fill(request.body, row)
        headers = {name: str(fill(value, row)) for name, value in request.headers.items()}
    except KeyError as error:
        raise UsageError(
            f"request '{request.name}': {{{error.args[0]}}} is not a column of its parameters; "
            f"expected one of: {', '.join(row)}"
        ) from None
    if any(value.count("{env:") != request.headers[name].count("{env:") for name, value in headers.items()):
        raise UsageError(f"request '{request.name}': a parameter value names an environment variable; expected data")
    return {
        "item": request.name,
        "method": request.method,
        "path": path,
        "json": body,
        "headers": headers,
        "expect": list(request.expect),
        "contains": list(request.contains),
    }


def fill(template: object, row: Row, *, encode: bool = False) -> object:
    """Replace `{column}` in a template; a text that is a single placeholder keeps the value's type.

    Raises KeyError with the name of the column that the row lacks.
    """
    if isinstance(template, dict):
        return {key: fill(value, row) for key, value in template.items()}
    if isinstance(template, list):
        return [fill(value, row) for value in template]
    if not isinstance(template, str):
        return template
    if (whole := _PLACEHOLDER.fullmatch(template)) and not encode:
        return row[whole[1]]
    return _PLACEHOLDER.sub(lambda m: quote(str(row[m[1]]), safe="") if encode else str(row[m[1]]), template)
