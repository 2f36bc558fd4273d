"""Functional checks through HTTP: requests in steps, what was expected, what came."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from perfkit.config import Check, CheckStep, Config
from perfkit.errors import UsageError
from perfkit.load.crew import Load, Target, WorkerPool
from perfkit.load.plan import Batch, Draw, Message, Row, fill, http_message


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check: whether it passed, what it expected and what came, and its slowest request in ms."""

    name: str
    group: str
    passed: bool
    expected: str
    got: str
    ms: float

    def as_dict(self) -> dict[str, Any]:
        """For the bundle."""
        return asdict(self)


def run_checks(config: Config, target: Target, crew: WorkerPool, draw: Draw) -> list[CheckResult]:
    """Run every check of the configuration against one service.

    Raises UsageError for a check that names a column or a saved value that nothing gives.
    """
    results = []
    for check in config.check:
        try:
            results.append(_run(config, check, target, crew, draw))
        except KeyError as error:
            raise UsageError(
                f"check '{check.name}': {error.args[0]!r} has no value; expected a column of its rows or a "
                "value that an earlier step saves"
            ) from None
    return results


def _run(config: Config, check: Check, target: Target, crew: WorkerPool, draw: Draw) -> CheckResult:
    rows = _rows(check, draw)
    context: dict[str, Any] = {f"{name}.{key}": value for name, row in rows.items() for key, value in row.items()}
    expected, got, slowest = [], [], 0.0
    passed = True
    for step in check.step:
        load = crew.run(target, [Batch(tuple((m,) for m in _messages(config, step, rows, context)))], keep_bodies=True)
        slowest = max(slowest, *(_latencies(load)))
        wanted, came, good = _judge(step, load, context)
        expected.append(wanted)
        got.append(came)
        passed = passed and good
        saved = _saved(step, load)
        if lacking := step.save.keys() - saved.keys():
            got.append(f"no {', '.join(sorted(step.save[name] for name in lacking))} in the answer")
            good = passed = False
        context |= saved
        if not good:
            break
    return CheckResult(check.name, check.group, passed, "; ".join(expected), "; ".join(got), round(slowest, 1))


def _rows(check: Check, draw: Draw) -> dict[str, Row]:
    """A fresh parameter row for each name, with all different values in the `distinct` column."""
    rows: dict[str, Row] = {}
    for name in check.rows:
        row = draw(check.parameters)
        for _ in range(10_000):
            if check.distinct is None or row[check.distinct] not in {r[check.distinct] for r in rows.values()}:
                break
            row = draw(check.parameters)
        rows[name] = row
    return rows


def _messages(config: Config, step: CheckStep, rows: Mapping[str, Row], context: Row) -> list[Message]:
    request = next(request for request in config.request if request.name == step.request)
    chosen = list(rows.values()) if step.row == "*" else [rows[step.row]] * step.times
    messages = []
    for row in chosen:
        values = {**row, **context, **{key: fill(value, context) for key, value in step.values.items()}}
        messages.append(http_message(request, values) | {"expect": list(step.expect)})
    return messages


def _judge(step: CheckStep, load: Load, context: Row) -> tuple[str, str, bool]:
    """What the step wanted, what came, and whether they agree."""
    statuses = Counter(map(_status, load.columns["outcome"], load.columns["detail"]))
    expected = Counter({str(status): count for status, count in step.expect.items()})
    wanted, came, good = _tally(expected), _tally(statuses), statuses == expected
    for word, needles, must in (("with", step.contains, True), ("without", step.lacks, False)):
        for needle in needles:
            having = [str(fill(needle, context)) in body for body in load.bodies]
            found = all(having) if must else any(having)
            wanted += f" {word} {needle}"
            good = good and found is must
            came += "" if found is must else f" {'with' if found else 'without'} {needle}"
    if step.max_ms is not None:
        slowest = max(_latencies(load))
        wanted += f" within {step.max_ms:g} ms"
        came += f" in {slowest:.0f} ms"
        good = good and slowest <= step.max_ms
    return f"{step.request}: {wanted}", f"{step.request}: {came}", good


def _status(outcome: str, detail: str) -> str:
    """The HTTP status where one came, else what went wrong."""
    return detail if outcome == "ok" else outcome.removeprefix("http_")


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(counts.items()))


def _latencies(load: Load) -> Sequence[float]:
    return [(d - s) / 1e6 for d, s in zip(load.columns["done"], load.columns["scheduled"], strict=True)]


def _saved(step: CheckStep, load: Load) -> dict[str, Any]:
    """Values that later steps refer to, from the first body that holds them."""
    saved: dict[str, Any] = {}
    for name, key in step.save.items():
        for body in load.bodies:
            try:
                saved.setdefault(name, json.loads(body)[key])
            except (ValueError, KeyError, TypeError):
                continue
    return saved
