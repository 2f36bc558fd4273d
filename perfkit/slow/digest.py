"""Log entries added up by statement, in bounded memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from math import exp, log
from typing import Any, Self

from perfkit.base.bundle import loads
from perfkit.base.stats import MIN_SAMPLES
from perfkit.postgres.sqltext import Normals, digest
from perfkit.slow.statements import Example, SlowQueries, SlowStatement

MESSAGE = re.compile(
    r"duration: (\d{1,15}(?:\.\d{1,9})?) ms"
    r"(?:  (statement|execute fetch from|execute|parse|bind|plan)\b(?:.*?):(?:\s+|$))?"
)
BEGUN = re.compile(r"(?:statement|execute fetch from|execute)\b.*?:(?:\s+|$)")
_VALUE = re.compile(r"\$(\d+) = (?:NULL|'((?:[^']|'')*)')(?:, |$)")
_ZONES = {"UTC": 0, "GMT": 0, "WET": 0, "WEST": 1, "BST": 1, "CET": 1, "CEST": 2, "EET": 2, "EEST": 3, "MSK": 3,
          "JST": 9, "EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7}  # fmt: skip


def statement(message: str) -> str:
    """Return the statement in a message on a duration."""
    match = MESSAGE.match(message)
    return message[match.end() :] if match else ""


def parameters(detail: str) -> tuple[str | None, ...]:
    """Return the values in a DETAIL of any version, `$1` first; none if one of them is missing or truncated.

    >>> parameters("parameters: $1 = '7', $2 = NULL, $3 = 'it''s'")
    ('7', None, "it's")
    """
    _, colon, listed = detail.partition("arameters: ")
    values: list[str | None] = []
    position = 0
    while colon and position < len(listed):
        match = _VALUE.match(listed, position)
        if not match or int(match[1]) != len(values) + 1 or (match[2] or "").endswith("..."):  # truncated by the server
            return ()
        values.append(None if match[2] is None else match[2].replace("''", "'"))
        position = match.end()
    return tuple(values)


def time_of(text: str) -> datetime | None:
    """Return a time of the log in UTC; None if it is not a time."""
    day, _, zone = text.rpartition(" ")
    try:
        if not day:  # %n: seconds since 1970
            return datetime.fromtimestamp(float(text), UTC) if text else None
        return datetime.fromisoformat(day).replace(tzinfo=timezone(offset_of(zone) or timedelta())).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None


def offset_of(zone: str) -> timedelta | None:
    """Return the offset of a time zone from UTC; None if its name is unknown or ambiguous."""
    if zone in _ZONES:
        return timedelta(hours=_ZONES[zone])
    if number := re.fullmatch(r"([-+])(\d\d?):?(\d\d)?(?::?\d\d)?", zone):
        return timedelta(hours=int(number[2]), minutes=int(number[3] or 0)) * (-1 if number[1] == "-" else 1)
    return None


STATEMENTS = 2_000  # statements in a result; up to twice as many while reading
BACKENDS = 1_024  # backends whose last entry is remembered
TEXT = 10_000  # characters to keep of a statement
LONGEST = 100_000  # characters to read of a statement
PLAN = 1_000_000  # characters of a plan
HELD = 48_000_000  # characters of all examples and plans together
WIDTH = 0.04  # relative width of a histogram bucket: a percentile is off by at most half of that
UNPAIRED = "durations had no statement (parse, bind, or log_duration alone)"
NOT_JSON_PLAN = "auto_explain plans were not JSON (set auto_explain.log_format = json)"
BROKEN_PLAN = "auto_explain plans were truncated"
NO_STATEMENT = "entries were durations of something other than a statement"


@dataclass(slots=True)
class _Group:
    """The executions of one statement so far."""

    text: str
    known: bool = False  # whether the key is the server's query id
    calls: int = 0
    total: float = 0.0
    first: str = ""  # as the log writes times
    last: str = ""
    slowest: float = -1.0
    example: str = ""
    detail: str = ""
    planned: float = -1.0  # time of the execution with the plan below
    plan: str = ""
    times: dict[int, int] = field(default_factory=dict)  # executions by bucket of time, each 4 % above the one before

    def add(self, other: _Group) -> None:
        """Add the executions of another group; the slower example and plan stay."""
        self.calls += other.calls
        self.total += other.total
        self.first = min(filter(None, (self.first, other.first)), default="")
        self.last = max(self.last, other.last)
        if other.slowest > self.slowest:
            self.slowest, self.example, self.detail = other.slowest, other.example, other.detail
        if other.planned > self.planned:
            self.planned, self.plan = other.planned, other.plan
        for bucket, count in other.times.items():
            self.times[bucket] = self.times.get(bucket, 0) + count


@dataclass(slots=True)
class _Planned:
    """A logged plan, which may belong to an execution that has an entry of its own."""

    ms: float
    text: str
    detail: str
    plan: str  # "" if it was too large
    when: str
    id: str


_Before = tuple[int, str] | tuple[bytes, str] | _Planned  # an execution: the hash of its text or its entry, and its key


@dataclass(slots=True)
class Digest:
    """The statements so far; `take` adds an entry of any log format."""

    unread: Counter[str] = field(default_factory=Counter)
    limit: int = STATEMENTS
    text_of: Callable[[bytes], str] = bytes.decode  # returns the statement of an entry that `count` was given
    since: str = ""  # times of the first and the last entry
    until: str = ""
    _groups: dict[str, _Group] = field(default_factory=dict)
    _others: _Group = field(default_factory=lambda: _Group("others"))
    _folded: int = 0
    _held: int = 0
    _dropped: int = 0  # examples and plans that did not fit
    _fastest: float = float("inf")
    _prepared: tuple[int, float] = (0, 0.0)
    _begun: dict[int, tuple[str, str]] = field(default_factory=dict)  # by backend, a statement without its duration yet
    _before: dict[int, _Before] = field(default_factory=dict)  # by backend, its last entry
    _normals: Normals = field(default_factory=Normals)

    def take(self, message: str, detail: str, backend: int, when: str, query_id: int = 0) -> None:
        """Add one entry: its message, its DETAIL, and its time as the log writes it."""
        match = MESSAGE.match(message)
        if not match:
            if begun := BEGUN.match(message):
                _remember(self._begun, backend, (message[begun.end() :][:LONGEST], detail[:LONGEST]))
            return
        ms, kind, text = float(match[1]), match[2], message[match.end() :]
        if kind == "plan":
            self._take_plan(ms, text, backend, when)
        elif kind in ("parse", "bind"):
            self._prepared = (self._prepared[0] + 1, self._prepared[1] + ms)
        elif kind:
            self._begun.pop(backend, None)
            self._take_execution(ms, text, detail, backend, when, query_id, kind)
        elif text.strip():
            self.unread[NO_STATEMENT] += 1
        elif begun_before := self._begun.pop(backend, None):
            self._take_execution(ms, *begun_before, backend, when, query_id, "")
        else:
            self.unread[UNPAIRED] += 1

    def count(self, query_id: str, ms: float, backend: int, when: str, record: bytes) -> bool:
        """Count an execution by its query id alone; return False if its text is needed as well."""
        group, before = self._groups.get(query_id), self._before.get(backend)
        if group is None or not group.known or ms > group.slowest or type(before) is _Planned or self._begun:
            return False
        if before is None:
            _remember(self._before, backend, (record, query_id), self._settle)
        else:
            self._before[backend] = (record, query_id)
        self._add(group, ms, when)
        return True

    def _take_execution(
        self, ms: float, text: str, detail: str, backend: int, when: str, query_id: int, kind: str
    ) -> None:
        """Count an execution, with its plan if that was logged just before."""
        key = str(query_id) if query_id else ""
        if ";" in text and ";" in self._normals.of(text):
            key = ""  # for several statements in one text, the server logs the id of the last one
        if key not in self._groups:
            key = self._grouped(text, key)
        self._count(self._groups[key], ms, text, detail, when, called=not kind.startswith("execute fetch"))
        before = self._before.pop(backend, None)
        whole = hash(text.strip())
        if isinstance(before, _Planned):
            if hash(before.text) == whole:
                self._keep_plan(key, before)
                return
            self._count_planned(before)
        _remember(self._before, backend, (whole, key), self._settle)

    def _take_plan(self, ms: float, plan: str, backend: int, when: str) -> None:
        """Add a plan of auto_explain, which PostgreSQL logs before or after the entry of the execution."""
        if not plan.startswith("{"):
            self.unread[NOT_JSON_PLAN] += 1
            return
        try:
            document = loads(plan)
        except ValueError:
            self.unread[BROKEN_PLAN] += 1
            return
        text, values = document.get("Query Text"), document.get("Query Parameters", "")
        if not isinstance(text, str) or not isinstance(document.get("Plan"), dict):
            self.unread[BROKEN_PLAN] += 1
            return
        if len(plan) > PLAN or self._held + len(plan) > HELD:
            self._dropped += 1
            plan = ""
        self._held += len(plan)
        # For a statement inside a function, the entry's query id is that of the calling statement.
        query_id = str(document.get("Query Identifier") or "")
        planned = _Planned(ms, text.strip(), f"Parameters: {values}" if values else "", plan, when, query_id)
        before = self._before.pop(backend, None)
        if isinstance(before, tuple):
            whole = before[0] if isinstance(before[0], int) else hash(self.text_of(before[0]).strip())
            if whole == hash(planned.text):
                self._keep_plan(before[1], planned)
                return
        self._settle(before)
        _remember(self._before, backend, planned, self._settle)

    def _settle(self, before: _Before | None) -> None:
        """Count a plan whose execution has no entry of its own."""
        if isinstance(before, _Planned):
            self._count_planned(before)

    def _count_planned(self, planned: _Planned) -> None:
        """Count an execution that only its plan tells of."""
        key = planned.id if planned.id in self._groups else self._grouped(planned.text, planned.id)
        self._count(self._groups[key], planned.ms, planned.text, planned.detail, planned.when)
        self._keep_plan(key, planned)

    def _grouped(self, text: str, query_id: str) -> str:
        """Return the key of a statement's group, which is created if necessary."""
        text = self._normals.of(text) or "-- nothing"
        key = query_id or digest(text)
        if key not in self._groups:
            if len(self._groups) >= 2 * self.limit:
                self._fold()
            self._groups[key] = _Group(text if len(text) <= TEXT else f"{text[:TEXT]}…", bool(query_id))
        return key

    def _fold(self) -> None:
        """Unite the groups with the smallest totals."""
        ranked = sorted(self._groups.items(), key=lambda item: -item[1].total)
        for _, group in ranked[self.limit :]:
            self._held -= len(group.example) + len(group.detail) + len(group.plan)
            group.example = group.detail = group.plan = ""
            self._others.add(group)
        self._folded += len(ranked) - self.limit
        self._groups = dict(ranked[: self.limit])

    def _count(self, group: _Group, ms: float, text: str, detail: str, when: str, *, called: bool = True) -> None:
        if called:
            self._add(group, ms, when)
        else:
            group.total += ms
        if ms > group.slowest and called:
            more = len(text) + len(detail) - len(group.example) - len(group.detail)
            if len(text) > TEXT or len(detail) > TEXT or self._held + more > HELD:
                self._dropped += 1
            else:
                self._held += more
                group.slowest, group.example, group.detail = ms, text, detail

    def _add(self, group: _Group, ms: float, when: str) -> None:
        group.calls += 1
        group.total += ms
        bucket = int(log(ms * 1000 + 0.001) / WIDTH)
        group.times[bucket] = group.times.get(bucket, 0) + 1
        if when > group.last:
            group.last = when
        if not group.first or when < group.first:
            group.first = when
        if ms < self._fastest:
            self._fastest = ms

    def _keep_plan(self, key: str, planned: _Planned) -> None:
        """Keep the plan of the slowest execution, in place of the plan before."""
        self._held -= len(planned.plan)
        group = self._groups.get(key)
        if group and planned.plan and planned.ms > group.planned:
            self._held += len(planned.plan) - len(group.plan)
            group.planned, group.plan = planned.ms, planned.plan

    def copy(self) -> Self:
        """Return a copy, to look at before the log is complete."""
        groups = {key: replace(group, times=dict(group.times)) for key, group in self._groups.items()}
        others = replace(self._others, times=dict(self._others.times))
        unread, begun, before = Counter(self.unread), dict(self._begun), dict(self._before)
        return replace(self, unread=unread, _groups=groups, _others=others, _begun=begun, _before=before)

    def result(self, source: str) -> SlowQueries:
        """Return the statements so far; entries added later do not change the result."""
        whole = self.copy()
        for before in self._before.values():
            whole._settle(before)
        statements = sorted(whole._statements(), key=lambda statement: (-statement.total_ms, statement.id))
        since, until = (time_of(text) for text in (whole.since, whole.until))
        unread = dict(sorted(whole.unread.items(), key=lambda item: -item[1]))
        return SlowQueries(source, tuple(statements), since, until, unread, tuple(whole._notes()))

    def _statements(self) -> Iterator[SlowStatement]:
        by_text: dict[str, _Group] = {}
        for group in self._groups.values():
            if group.known:
                by_text.setdefault(group.text, group)
        # A statement of which only plans were logged has no query id: unite it with the group of the same text.
        for key, group in list(self._groups.items()):
            same = by_text.get(group.text)
            if same is not None and not group.known:
                same.add(group)
                del self._groups[key]
        ranked = sorted(self._groups.items(), key=lambda item: -item[1].total)
        for _, group in ranked[self.limit :]:
            self._others.add(group)
        self._folded += max(len(ranked) - self.limit, 0)
        for key, group in ranked[: self.limit]:
            yield _statement(key, group)
        if self._others.total:
            yield _statement("others", replace(self._others, example="", plan=""))

    def _notes(self) -> Iterator[str]:
        if not self._groups:
            yield (
                "the log has no durations of statements; set log_min_duration_statement or load auto_explain, and log "
                "in English"
            )
            return
        fastest = f" (fastest: {self._fastest:g} ms)" if self._fastest < float("inf") else ""
        yield (
            f"only logged statements{fastest}; log_min_duration_statement and log_statement_sample_rate may leave out "
            "others"
        )
        if self._prepared[0]:
            count, ms = self._prepared
            yield f"excludes {ms:,.0f} ms of parse and bind time ({count:,} entries)"
        if self._folded:
            yield f"more than {self.limit:,} statements: those with the smallest totals are one line, others"
        if self._dropped:
            yield f"{self._dropped:,} examples or plans were too large to keep"
        if (zone := self.until.rpartition(" ")[2]) and offset_of(zone) is None:
            yield f"the log's time zone ({zone}) has an unknown offset; times are shown as if they were UTC"


def _statement(key: str, group: _Group) -> SlowStatement:
    example = Example(group.example, parameters(group.detail), group.slowest) if group.example else None
    return SlowStatement(
        key, group.text, group.calls, group.total, _p95(group), first=time_of(group.first), last=time_of(group.last),
        example=example, plan=loads(group.plan) if group.plan else None,
    )  # fmt: skip


def _p95(group: _Group) -> float | None:
    """Return the 95th percentile, within 2 %; None if there are too few executions."""
    if group.calls < MIN_SAMPLES[95]:
        return None
    left = group.calls * 0.95
    for bucket in sorted(group.times):
        left -= group.times[bucket]
        if left <= 0:
            return exp((bucket + 0.5) * WIDTH) / 1000
    return None


def _remember(last: dict[int, Any], backend: int, entry: Any, evict: Callable[[Any], None] | None = None) -> None:
    """Remember a backend's last entry; with too many backends, forget the one that was silent longest."""
    last.pop(backend, None)
    if len(last) >= BACKENDS:
        oldest = last.pop(next(iter(last)))
        if evict:
            evict(oldest)
    last[backend] = entry
