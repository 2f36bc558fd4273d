"""What is sent in a round, decided before it starts: the same requests in every arm.

Pure. A round is a sequence of batches. In the closed model a batch releases its users at one instant, and each
user sends its own requests one after the other; in the open model requests arrive at instants of their own. The
next batch starts when the last one is complete.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any
from urllib.parse import quote

from perfkit.config import Request, Scenario
from perfkit.errors import UsageError
from perfkit.load.arrivals import Segment

Row = Mapping[str, Any]
Message = dict[str, Any]  # one request as the workers take it
MESSAGES = 2000  # of each kind that a round in the open model goes round in
LEAST = 2  # requests of an arm's round where arms take turns
ALIKE = 4.0  # times as long as the fastest arm
_PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_.]*)\}")


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests by user, released at one instant.

    An uncounted batch only brings the load up; with `full_only`, requests that start after the first user has
    nothing more to send do not count either.
    """

    queues: tuple[tuple[Message, ...], ...]
    counted: bool = True
    full_only: bool = False

    @property
    def users(self) -> int:
        """Connections that it needs."""
        return len(self.queues)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests of the open model: the messages in turn, at instants that segments and seed decide.

    Of `users` requests at most in flight; what arrives beyond that is dropped.
    """

    messages: tuple[Message, ...]
    segments: tuple[Segment, ...]
    users: int
    seed: str | None  # of a Poisson process; None: evenly spaced
    counted: bool = True

    @property
    def lasts_s(self) -> float:
        """How long requests arrive, in s."""
        return sum(seconds for *_, seconds in self.segments)

    @property
    def expected(self) -> float:
        """How many requests arrive, on average."""
        return sum((first + last) / 2 * seconds for first, last, seconds in self.segments)

    @property
    def peak(self) -> float:
        """The highest rate, per second."""
        return max(max(first, last) for first, last, _ in self.segments)


class Draw:
    """Parameter rows without replacement, in an order that the seed alone decides.

    A source that runs out starts over: its rows have then been used equally often. `last_first` takes the
    same order from its end, so that two draws of one seed meet only when a source runs out.
    """

    def __init__(self, rows: Mapping[str, Sequence[Row]], seed: str, *, last_first: bool = False) -> None:
        self._rows, self._seed, self._last_first = rows, seed, last_first
        self._streams: dict[str, Iterator[Row]] = {}

    def __call__(self, source: str) -> Row:
        """The next row of a source."""
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
    """The batches of one round. `message(name)` makes the next request or query of that name.

    The seed decides when requests of the open model arrive.
    """

    def queue(length: int) -> tuple[Message, ...]:
        return tuple(message(name) for _ in range(length) for name in scenario.send)

    sizes = range(1, scenario.users) if scenario.ramp else [scenario.users] * scenario.warm
    lead: list[Batch | Arrivals] = [Batch(tuple(queue(1) for _ in range(users)), counted=False) for users in sizes]
    if scenario.rate:
        return [*lead, arriving(scenario, message, seed)]
    full = [
        Batch(tuple(queue(scenario.requests) for _ in range(scenario.users)), full_only=scenario.ramp)
        for _ in range(scenario.batches)
    ]
    return lead + full


def arriving(scenario: Scenario, message: Callable[[str], Message], seed: str, rate: float | None = None) -> Arrivals:
    """The arrivals of one round, or of one step of a search at its `rate`."""
    segments, last = [], rate or scenario.rate or 0.0
    for own, seconds in [(last, scenario.seconds or 0.0), *((stage.rate, stage.seconds) for stage in scenario.stage)]:
        segments.append((last, own, seconds))
        last = own
    found = Arrivals((), tuple(segments), scenario.users, seed if scenario.arrivals == "poisson" else None)
    count = max(1, min(MESSAGES, math.ceil(found.expected / len(scenario.send))))
    return replace(found, messages=tuple(message(name) for _ in range(count) for name in scenario.send))


def turns(scenario: Scenario, took_ms: Mapping[str, float], draw: Random) -> list[tuple[str, int]]:
    """Which arm sends the request of which number, one after the other: each once for every number, in random order.

    Where a round would outlast `scenario.seconds`, arms sit out evenly, down to a few requests: those that take about
    as long as the fastest the same number of times, so that they are compared on the same requests.
    """
    most, limit = scenario.requests, 1000 * (scenario.seconds or math.inf)
    fastest = min([ms for ms in took_ms.values() if ms], default=0.0)
    own: dict[str, int] = {}
    for name, ms in took_ms.items():
        alike = fastest if ms <= ALIKE * fastest else ms
        own[name] = min(most, max(LEAST, int(min(most, limit / alike)))) if alike else most
    found: list[tuple[str, int]] = []
    for number in range(-scenario.warm, most):
        taking = [n for n, count in own.items() if (number + 1) * count // most > number * count // most]
        if number < 0:  # what takes long is long whether it comes first or not
            taking = [n for n, count in own.items() if count > LEAST]
        found += [(name, number + scenario.warm) for name in draw.sample(taking, len(taking))]
    return found


def http_message(request: Request, row: Row) -> Message:
    """One HTTP request with its placeholders filled from a parameter row.

    Raises UsageError naming a placeholder that the row has no column for.
    """
    try:
        path, body = fill(request.path, row, encode=True), fill(request.body, row)
        headers = {name: str(fill(value, row)) for name, value in request.headers.items()}
    except KeyError as error:
        raise UsageError(
            f"request '{request.name}': {{{error.args[0]}}} is no column of its parameters; "
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


def fill(template: Any, row: Row, *, encode: bool = False) -> Any:
    """Replace `{column}` in a template; text that is nothing but one placeholder keeps the value's type.

    Raises KeyError with the column that the row lacks.
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
