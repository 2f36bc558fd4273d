"""Whether to ship: the items of a decision, judged from a run, people's answers and a watch.

NO-GO if an item is broken: a functional check failed, a threshold or a comparison is broken, an index is missing, the
database had trouble, a person said no. Otherwise NO BENEFIT if the change has none, INCONCLUSIVE if an item is unproven
or unanswered, and GO if all hold.
"""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perfkit.analysis.policy import BENEFIT, Rule
from perfkit.analysis.results import Analysis
from perfkit.base.errors import PerfkitError, PlanError, ServerError, visible
from perfkit.base.judgement import Outcome, worst
from perfkit.base.units import count, exact, exact_percent, number, percent, some
from perfkit.explain.capture import Capture, ExplainSpec, Parameters, capture, effects, named, require_harmless, single
from perfkit.explain.comparison import typical_parameters
from perfkit.explain.plan import Plan
from perfkit.monitor import store
from perfkit.monitor.model import METRICS, MISSED, Record
from perfkit.postgres.databases import Database
from perfkit.release.decision import Gate, GateItem, RecordedAnswer, readable_time
from perfkit.runs.records import Bundle, RunRecord
from perfkit.runs.targets import Text, is_file, sql_of

LOAD, ONCE, CATALOGUE = "measured under load", "measured once", "read from the catalogue"
CHECKED_NOW, SAID, RECORDED = "checked at the decision", "said by a person", "recorded by the run"


# The queries that a rollback checks: their text, their parameters, and whether they may be sent.


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """A query that a rollback checks; `known` is its name in the run from before the release."""

    name: str
    sql: str
    parameters: Parameters
    known: str = ""
    plan: Plan | None = None  # with the indexes
    unsent: str = ""  # why the query is planned but not sent

    @property
    def generic(self) -> bool:
        """Whether the query is planned without values, because none are known."""
        return self.parameters is None and bool(named(self.sql))


def capture_plan(database: Database, query: JudgedQuery) -> Capture:
    """Return a query's plan without executing the query. Raises PlanError."""
    try:
        return capture(database.session, query.sql, query.parameters, ExplainSpec(analyze=False, generic=query.generic))
    except PlanError as error:
        raise PlanError(f"{query.name}: {error}") from None


def query_texts(queries: Sequence[Text], against: Bundle | None) -> Iterator[tuple[str, str, str]]:
    """Yield name, SQL and name in the run `against` of each query; without queries, of those of the run."""
    known = against.run.queries if against else {}
    names = {_one_line(query.sql): name for name, query in known.items()}
    for position, text in enumerate(queries, 1):
        sql = sql_of(text)
        name = names.get(_one_line(sql), "")
        yield name or f"query {position}{f' ({Path(text).stem})' if is_file(text) else ''}", sql, name
    if not queries:
        yield from ((name, query.sql, name) for name, query in known.items())


def prepare_query(
    database: Database, name: str, sql: str, known: str, rows: Sequence[Mapping[str, Any]]
) -> JudgedQuery:
    """Plan a query with typical parameters, and find out whether it may be sent. Raises PlanError."""
    try:
        text, placeholders = single(sql), set(named(sql))
        usable = bool(rows) and bool(placeholders) and placeholders <= rows[0].keys()
        query = JudgedQuery(name, sql, typical_parameters(database.session, text, rows) if usable else None, known)
        query = replace(query, plan=capture_plan(database, query).plan)
        if query.generic:
            return replace(query, unsent="it needs values: --parameters")
        query_effects = effects(database.session, sql, query.parameters)
    except PlanError as error:
        raise PlanError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from None
    try:
        require_harmless(query_effects, writes_allowed=False, volatile_allowed=(), where=name)
    except PerfkitError:
        return replace(query, unsent="it writes, locks rows or calls a volatile function")
    return query


def _one_line(sql: str) -> str:
    return " ".join(sql.split()).rstrip("; ")


# Items from the run itself: whether it is complete, its checks, its rules in groups, its database.

SHOWN = 3  # sentences per item; the report has all rules

# SQLSTATE classes of server trouble: connections, resources, operator, system, internal.
_TROUBLE = ("08", "53", "57P", "58", "F0", "XX")
_DAMAGE = ("58", "F0", "XX")  # trouble that no accident explains: disk, configuration, data
_UNREACHED = ("refused", "reset")


def measured_items(run: RunRecord, analysis: Analysis, arms: Sequence[str]) -> Iterator[GateItem]:
    """Yield the items that a run gives for the arms to be shipped."""
    rules = [rule for rule in analysis.decision.rules if rule.arm in arms]
    yield _complete(run, arms)
    yield from _checks(run, arms)
    for name, group in _GROUPS.items():
        if named_rules := [rule for rule in rules if rule.name == name]:
            yield group(named_rules, analysis)
    yield _database(run, analysis, arms)


def _complete(run: RunRecord, arms: Sequence[str]) -> GateItem:
    done, planned = run.complete_blocks, run.parameters.blocks
    left = run.left_out.get("scenarios") or []
    problems = []
    if run.status != "complete":
        problems.append(f"The run is {run.status}: {run.message or 'it has not ended'}.")
    if left:
        problems.append(f"Not every load level was measured: {some(left)} left out.")
    if not arms:
        problems.append("The run has no arm to be shipped, so nothing was judged.")
    shipped = f" To be shipped: {', '.join(arms)}." if arms else ""
    text = " ".join(problems) or f"The run is complete: {done} of {planned} blocks, every load level.{shipped}"
    return GateItem(
        "the run",
        "Run complete",
        "every block and load level was measured",
        "",
        f"{done} of {planned} blocks",
        f"{planned} blocks",
        RECORDED,
        Outcome.UNPROVEN if problems else Outcome.HOLDS,
        text,
        "a complete run: perfkit report, with nothing left out." if problems else "",
    )


def _checks(run: RunRecord, arms: Sequence[str]) -> Iterator[GateItem]:
    """Yield one item for each group of functional checks that any arm ran."""
    groups = dict.fromkeys(check.group for checks in run.checks.values() for check in checks)
    for group in groups:
        by_arm = {arm: [c for c in run.checks.get(arm, ()) if c.group == group] for arm in arms}
        failed = [f"{c.name} on {arm}" for arm in arms for c in by_arm[arm] if not c.passed]
        missing = [arm for arm in arms if not by_arm[arm]]
        value = _each_arm({arm: f"{sum(c.passed for c in own)} of {len(own)}" for arm, own in by_arm.items()})
        outcome = Outcome.BROKEN if failed else Outcome.UNPROVEN if missing else Outcome.HOLDS
        text = f"{group} checks: {value} passed."
        text += f" Failed: {some(failed, 5)}." if failed else f" Not run on {', '.join(missing)}." if missing else ""
        most = max((len(checks) for checks in by_arm.values()), default=0)
        words = (f"all {most} pass", "one fails", value, f"{most} of {most}")
        needs = "a run of the checks on that arm." if outcome is Outcome.UNPROVEN else ""
        yield GateItem("functional checks", f"{group} checks", *words, ONCE, outcome, text, needs)


def _database(run: RunRecord, analysis: Analysis, arms: Sequence[str]) -> GateItem:
    """Judge errors of the server itself, a run that they ended, and plans that could not be captured."""
    queries = set(run.queries)
    direct = {level.scenario for level in analysis.levels if level.item in queries}
    trouble, damaged = Counter[str](), False
    for error in analysis.errors:
        code = error.outcome.removeprefix("sqlstate_") if error.outcome.startswith("sqlstate_") else ""
        unreached = error.outcome in _UNREACHED and error.scenario in direct
        if error.arm in arms and (code.startswith(_TROUBLE) or unreached):
            trouble[f"{error.outcome}: {error.message}" if error.message else error.outcome] += error.count
            damaged |= code.startswith(_DAMAGE)
    facts = [run.arm(arm) for arm in arms]
    expected = {(arm, query) for arm, known in zip(arms, facts, strict=True) for query in known.plans or ()}
    missing = sorted(f"{query} on {arm}" for arm, query in expected - {(use.arm, use.query) for use in analysis.plans})
    sentences = [f"The server answered {times} times with {what}." for what, times in trouble.most_common(SHOWN)]
    # A server error before the first block is a fault of the set-up, not of the arms.
    ended = run.error == ServerError.__name__ and run.blocks
    sentences += [f"A server error ended the run: {run.message}."] if ended else []
    sentences += [f"No plan of {some(missing)} could be captured."] if missing else []
    grave = damaged or ended or missing or (trouble and _too_many(analysis, arms))
    outcome = Outcome.BROKEN if grave else Outcome.UNPROVEN if trouble else Outcome.HOLDS
    captured = f"{len(expected) - len(missing)} of {len(expected)} plans captured" if expected else "no plan to capture"
    errors = trouble.total()
    return GateItem(
        "database",
        "Database trouble",
        "the server reported no trouble of its own",
        "server errors ended the run, damaged something, or broke the limit of errors",
        f"{errors} server error{'' if errors == 1 else 's'}, {captured}",
        "0",
        LOAD,
        outcome,
        " ".join(sentences) or f"The server reported no trouble of its own; {captured}.",
        "another run without the error, if it was an accident." if outcome is Outcome.UNPROVEN else "",
    )


def _too_many(analysis: Analysis, arms: Sequence[str]) -> bool:
    """Return whether errors break their limit or are significantly more frequent than before."""
    names = ("error rate", "not failing more")
    rules = (rule for rule in analysis.decision.rules if rule.arm in arms and rule.name in names)
    return any(rule.outcome is Outcome.BROKEN for rule in rules)


def _tail(rules: Sequence[Rule], _: Analysis) -> GateItem:
    """Judge a percentile by the load level with the highest value."""
    name, limit = rules[0].name, exact(rules[0].limit or 0)
    known = [rule for rule in rules if rule.value is not None]
    top = max(known, key=lambda rule: rule.value or 0.0, default=None)
    value = f"{number(top.value)} ms at most" if top and top.value is not None else "too few samples"
    share = {"p50": "half of the", "p95": "95 of 100", "p99": "99 of 100"}[name]
    go_if = f"{share} requests answered in under {limit} ms at every load level"
    held = f"{name}: all {len(rules)} load levels hold; the slowest: {top.text}" if top else ""
    return _item(
        "performance",
        f"{name} latency",
        go_if,
        "any load level exceeds the limit",
        value,
        f"{limit} ms",
        LOAD,
        rules,
        held,
    )


def _throughput(rules: Sequence[Rule], _: Analysis) -> GateItem:
    least = exact(rules[0].limit or 0)
    value = _each_arm({rule.arm: "not known" if rule.value is None else f"{number(rule.value)}/s" for rule in rules})
    words = (f"{least}/s or more at the best load level", "less", value, f"{least}/s")
    return _item("performance", "Throughput", *words, LOAD, rules)


def _benefit(rules: Sequence[Rule], _: Analysis) -> GateItem:
    """Judge the benefit: every arm to be shipped must have one."""
    have = sum(rule.outcome is Outcome.HOLDS for rule in rules)
    shown = [rule for rule in rules if rule.outcome is not Outcome.HOLDS] or rules
    value = f"{have} of {len(rules)} arms" if len(rules) > 1 else "yes" if have else "none proven"
    words = ("a comparison is faster, or a threshold that was broken holds", "", value, "every arm")
    needs = "; ".join(dict.fromkeys(rule.needs.rstrip(".") for rule in shown if rule.needs))
    text, outcome = " ".join(rule.text for rule in shown[:SHOWN]), worst(rule.outcome for rule in rules)
    if outcome is Outcome.ABSENT and len({rule.outcome for rule in rules}) > 1:  # decide on the other arms alone
        outcome = Outcome.UNPROVEN
    return GateItem("performance", "Benefit", *words, LOAD, outcome, text, f"{needs}." if needs else "")


def _errors(rules: Sequence[Rule], _: Analysis) -> GateItem:
    limit = exact_percent(rules[0].limit or 0)
    top = max(rules, key=lambda rule: rule.value or 0.0)
    value = "not known" if top.value is None else percent(top.value)
    return _item(
        "performance", "Error rate", f"under {limit}", f"{limit} or more by its lower bound", value, limit, LOAD, rules
    )


def _capacity(rules: Sequence[Rule], _: Analysis) -> GateItem:
    rounds = int(rules[0].limit or 0)
    value = f"{min(int(rule.value or 0) for rule in rules)} of {rounds} rounds"
    words = ("the rate that a search begins with held in every round", "it held in no round", value, f"{rounds} rounds")
    return _item("performance", "Capacity", *words, LOAD, rules)


def _slower(rules: Sequence[Rule], analysis: Analysis) -> GateItem:
    arms = {rule.arm for rule in rules}
    verdicts = Counter(str(c.verdict) for c in analysis.comparisons if c.after in arms)
    value = ", ".join(f"{times} {verdict}" for verdict, times in verdicts.most_common())
    held = f"{len(rules)} comparisons with before: {value}; inconclusive comparisons do not block a GO."
    words = ("no comparison with before is slower", "any comparison is slower", value, "0 slower")
    return _item("performance", "Not slower than before", *words, LOAD, rules, held)


def _failing(rules: Sequence[Rule], _: Analysis) -> GateItem:
    more = sum(rule.outcome is Outcome.BROKEN for rule in rules)
    held = f"{len(rules)} load levels with failures were compared with before; no level fails more often."
    words = ("no load level fails more often than before", "any load level does", f"{more} of {len(rules)}", "0")
    return _item("performance", "Not failing more", *words, LOAD, rules, held)


def _client(rules: Sequence[Rule], _: Analysis) -> GateItem:
    words = ("the client kept up", "", f"{len(rules)} load levels where the client did not", "0")
    return _item("performance", "Client kept up", *words, LOAD, rules)


def _indexes(rules: Sequence[Rule], _: Analysis) -> GateItem:
    value = _each_arm({rule.arm: f"{count(rule.value or 0)} of {count(rule.limit or 0)}" for rule in rules})
    most = count(max(rule.limit or 0 for rule in rules))
    words = (f"all {most} exist and are valid", "any index is missing or invalid", value, f"{most} of {most}")
    return _item("database", "Indexes valid", *words, CATALOGUE, rules)


def _agreement(rules: Sequence[Rule], _: Analysis) -> GateItem:
    value = f"{count(max(rule.value or 0 for rule in rules))} differences"
    words = ("before at the end agrees with before at the start", "", value, "0")
    return _item("performance", "Befores agree", *words, LOAD, rules)


def _item(
    group: str,
    name: str,
    go_if: str,
    no_go_if: str,
    value: str,
    limit: str,
    evidence: str,
    rules: Sequence[Rule],
    held: str = "",
) -> GateItem:
    """Make an item of several rules; those with the worst outcome decide and give its text."""
    outcome = worst(rule.outcome for rule in rules)
    deciding = [rule for rule in rules if rule.outcome is outcome]
    rest = len(deciding) - SHOWN
    text = " ".join(rule.text for rule in deciding[:SHOWN]) + (f" And {rest} more." if rest > 0 else "")
    needs = "; ".join(dict.fromkeys(rule.needs.rstrip(".") for rule in deciding[:SHOWN] if rule.needs))
    text = held if held and outcome is Outcome.HOLDS and len(rules) > 1 else text
    return GateItem(group, name, go_if, no_go_if, value, limit, evidence, outcome, text, f"{needs}." if needs else "")


def _each_arm(by_arm: Mapping[str, str]) -> str:
    """Return the value once if all arms share it, otherwise each arm's value."""
    if len(set(by_arm.values())) == 1:
        return next(iter(by_arm.values())) + (f" on each of {len(by_arm)} arms" if len(by_arm) > 1 else "")
    return ", ".join(f"{value} on {arm}" for arm, value in by_arm.items())


_GROUPS: Mapping[str, Callable[[Sequence[Rule], Analysis], GateItem]] = {
    BENEFIT: _benefit,
    "error rate": _errors,
    "p50": _tail,
    "p95": _tail,
    "p99": _tail,
    "throughput": _throughput,
    "capacity": _capacity,
    "not slower": _slower,
    "not failing more": _failing,
    "befores agree": _agreement,
    "client kept up": _client,
    "indexes valid": _indexes,
}


@dataclass(frozen=True, slots=True)
class WatchState:
    """The state of a watch: whether it is alive, the age of its last interval in words, and one sentence about it."""

    alive: bool
    age: str
    text: str


def judge(
    run: RunRecord,
    analysis: Analysis,
    arms: Sequence[str],
    answers: Sequence[RecordedAnswer],
    watch: WatchState | None,
) -> Gate:
    """Judge the arms to be shipped by a run, the answers that count, and a watch."""
    items = [
        *measured_items(run, analysis, arms),
        *_monitoring(run.config.release.monitoring, watch),
        *map(_answered, answers),
    ]
    return Gate(worst(item.outcome for item in items), tuple(arms), tuple(items))


def _monitoring(required: bool, watch: WatchState | None) -> list[GateItem]:
    """Judge monitoring: a GO needs it, but its lack forbids nothing and leaves the decision open."""
    if watch is None and not required:
        return []
    outcome = Outcome.HOLDS if watch and watch.alive else Outcome.UNPROVEN
    value, text = (watch.age, watch.text) if watch else ("not named", "Monitoring was not checked.")
    needs = "" if outcome is Outcome.HOLDS else "a running watch; pass its folder with --watch FOLDER."
    words = ("a watch is running and answers", "", value, f"{MISSED} intervals")
    return [GateItem("monitoring", "Monitoring", *words, CHECKED_NOW, outcome, text, needs)]


def _answered(answer: RecordedAnswer) -> GateItem:
    outcome = {"yes": Outcome.HOLDS, "no": Outcome.BROKEN}.get(answer.answer, Outcome.UNPROVEN)
    source = f", answered by {answer.by}" if answer.by else ""
    source += f", on {readable_time(answer.on)}" if answer.on else ""
    text = f"{answer.question}: {answer.answer or 'not answered'}{source}."
    needs = f'--answer "{answer.question}=yes" (or no) --by NAME.' if outcome is Outcome.UNPROVEN else ""
    words = ("yes", "no", answer.answer or "not answered", "yes")
    return GateItem("people", visible(answer.question), *words, SAID, outcome, text, needs)


# Whether a watch is alive: its last interval is recent, and its metrics endpoint answers if there is one.

_ENDPOINT = re.compile(r"http://(?:127\.0\.0\.1|localhost|\[::1\]):\d{1,5}/metrics")  # only this machine
_TIMEOUT_S = 5.0


def watch_state(folder: Path, now: Callable[[], float] = time.time) -> WatchState:
    """Return the state of the watch that records into a folder. Raises PerfkitError if the folder is no watch's."""
    record = store.read(folder)
    title, every = record.about.title, record.about.every_s
    if not record.ticks:
        return WatchState(False, "no interval yet", f"The watch of {title} has not recorded an interval yet.")
    age = now() - record.ticks[-1].at
    if age <= -MISSED * every:
        text = f"The last interval of the watch of {title} ends {-age:.0f} s from now: one of the clocks is wrong."
        return WatchState(False, "in the future", text)
    sentence = f"The last interval of the watch of {title} ended {age:.0f} s ago; its intervals are {every:g} s long"
    if age >= MISSED * every:
        return WatchState(False, f"{age:.0f} s old", f"{sentence}, so the watch is not running.")
    endpoint = _endpoint(record)
    if endpoint and (trouble := _unanswered(endpoint)):
        return WatchState(
            False, f"{age:.0f} s old", f"{sentence}, but its metrics at {endpoint} do not answer: {trouble}."
        )
    metrics = ", and its metrics answer" if endpoint else ""
    return WatchState(True, f"{age:.0f} s old", f"{sentence}{metrics}. {_alerts(record)}")


def _alerts(record: Record) -> str:
    """List the active alerts; they forbid nothing, because the watch may observe the version to be replaced."""
    names = some(f"{event.level} {event.rule}" for event in record.active)
    return f"Active alerts: {names}." if names else "No alert is active."


def _endpoint(record: Record) -> str:
    """Return the metrics endpoint that the watch noted when it last started; empty if there is none."""
    for event in reversed(record.events):
        if event.what == "note" and event.id.startswith(f"note-{METRICS}-"):
            return match[0] if (match := _ENDPOINT.search(event.text)) else ""
    return ""


def _unanswered(endpoint: str) -> str:
    """Return why an endpoint did not answer; empty if it did."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(endpoint, timeout=_TIMEOUT_S) as response:
            return "" if response.status == 200 else f"HTTP {response.status}"
    except (OSError, ValueError, urllib.error.HTTPError) as error:
        return str(getattr(error, "reason", None) or error)
