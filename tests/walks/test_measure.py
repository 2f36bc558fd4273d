"""`perfkit measure`: one arm under load, compared with nothing; does it hold its limits, and when did it not?"""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from browser import browser, needs_browser
from click.testing import CliRunner, Result
from synthetic import tuned

import perfkit
from perfkit import config as configuration
from perfkit.analysis import charts, report
from perfkit.analysis.report import LoadRun, render
from perfkit.app.cli import main
from perfkit.base.errors import PerfkitError, UsageError
from perfkit.load.samples import Rest, Samples
from perfkit.postgres import databases, embedded
from perfkit.runs.records import FLOOR, BlockRecord, Bundle, Round, ScenarioRecord
from perfkit.runs.selection import RunSpec, Selection, alone
from perfkit.show.charts import Picture
from perfkit.show.render import LOAD, execute

pytestmark = pytest.mark.slow  # the module takes more than a minute

TOML = """
title = "Looking up things"
[database]
prepare = ["things.sql"]
[parameters.ids.columns]
id = { integer = [1, 1000] }
[[query]]
name = "one"
file = "one.sql"
parameters = "ids"
[[scenario]]
name = "closed"
label = "5 connections"
send = ["one"]
users = 5
requests = 20
[[scenario]]
name = "open"
label = "100 per second"
send = ["one"]
rate = 100
seconds = 1
users = 10
[[scenario]]
name = "search"
label = "as many as it stands"
send = ["one"]
rate = 50
seconds = 0.3
users = 10
search = { most = 100 }
[[scenario]]
name = "only-before"
label = "before alone"
send = ["one"]
arms = ["before"]
[[arm]]
name = "before"
role = "before"
[[arm]]
name = "control"
role = "control"
[[arm]]
name = "first"
role = "after"
indexes = "index.sql"
[[arm]]
name = "last"
role = "after"
indexes = "index.sql"
[thresholds]
p95_ms = 2000
"""
FILES = {
    "perfkit.toml": TOML,
    "things.sql": "CREATE TABLE things AS SELECT n AS id, md5(n::text) AS v FROM generate_series(1, 1000) n",
    "one.sql": "SELECT v FROM things WHERE id = %(id)s",
    "index.sql": "CREATE INDEX things_id ON things (id);",
}


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with two changes, in every kind of load."""
    folder = tmp_path_factory.mktemp("things")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder / "perfkit.toml"


@pytest.fixture(scope="module")
def live(things: Path, tmp_path_factory: pytest.TempPathFactory, server_home: Path) -> Path:
    """The folder of a real run of two blocks, rendered; do not write to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERFKIT_HOME", str(server_home))
        run = perfkit.measure(config=things, blocks=2, reports=tmp_path_factory.mktemp("reports"))
    render(run.bundle.path)
    return run.bundle.path


@pytest.fixture
def copy(live: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(live, tmp_path / "copy"))


def chosen(path: Path | None = None, **options: Any) -> Selection:
    return alone(configuration.load(path), RunSpec(**options))


def command(*args: object, code: int = 0) -> Result:
    done = CliRunner().invoke(main, [str(arg) for arg in args])
    assert (done.exit_code, "Traceback" in done.stderr) == (code, False), done.stderr
    return done


# One arm of a configuration


def test_the_arm_is_the_last_one_to_ship_unless_another_is_named(things: Path) -> None:
    assert [arm.name for arm in chosen().arms] == ["after-full"]
    assert [arm.name for arm in chosen(things).arms] == ["last"]
    assert [arm.name for arm in chosen(things, arms=("first",)).arms] == ["first"]
    with pytest.raises(UsageError, match="arms: first, last; expected one"):
        chosen(things, arms=("first", "last"))
    with pytest.raises(UsageError, match="arm 'x' is unknown; expected one of: before, control, first, last"):
        chosen(things, arms=("x",))


def test_it_stands_where_before_would_and_keeps_what_it_is(things: Path) -> None:
    found = chosen(things)
    assert found.describe().roles == {"last": "before"}
    assert found.config.baseline().name == "last" and found.expected_indexes == {"last": ["things_id"]}
    assert found.describe().left_out == {"arms": [], "scenarios": []}


def test_only_the_load_levels_that_are_run_on_it_are(things: Path) -> None:
    assert [s.name for s in chosen(things).scenarios] == ["closed", "open", "search"]
    assert [s.name for s in chosen(things, arms=("before",)).scenarios][-1] == "only-before"
    with pytest.raises(UsageError, match="scenario 'only-before' is unknown"):
        chosen(things, scenarios=("only-before",))


def test_limits_that_are_given_replace_those_of_the_configuration(things: Path) -> None:
    def thresholds(**given: float) -> dict[str, float]:
        return dict(chosen(things, **given).config.thresholds.model_dump(exclude_none=True))

    assert thresholds() == {"p95_ms": 2000, "error_rate": 0.001}
    assert thresholds(p95_ms=30.5) == {"p95_ms": 30.5, "error_rate": 0.001}
    assert thresholds(error_rate=0.0) == {"p95_ms": 2000, "error_rate": 0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"p95_ms": -1.0}, "p95_ms = -1; expected more than 0 milliseconds"),
        ({"error_rate": 1.5}, "error_rate = 1.5; expected a share from 0 to 1"),
        ({"blocks": -1}, "blocks = -1; expected 1 or more"),
    ],
)
def test_a_limit_that_makes_no_sense_is_one_line(things: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        chosen(things, **options)


def test_one_block_is_enough_for_one_arm_but_not_for_a_comparison(things: Path) -> None:
    assert chosen(things, blocks=1).blocks == 1
    assert chosen(things, profile="quick").blocks == 6
    with pytest.raises(UsageError, match="blocks = 1; expected 6 or more"):
        Selection(configuration.load(things), RunSpec(blocks=1))


def test_the_command_repeats_what_was_chosen(things: Path) -> None:
    options = {"blocks": 3, "p95_ms": 30.5, "error_rate": 0.0, "scenarios": ("open",), "config": str(things)}
    assert chosen(things, **options).command() == (
        "perfkit measure --config perfkit.toml --blocks 3 --scale standard --seed 1 --postgres 18 "
        "--arm last --scenario open --p95-ms 30.5 --error-rate 0"
    )
    assert "perfkit measure --profile quick" in chosen(things, profile="quick").command()


# A real run


def test_one_arm_and_the_floor_are_all_that_was_measured(live: Path) -> None:
    run = LoadRun(Bundle.open(live))
    assert {round_.arm for round_ in run.rounds} == {"last", FLOOR}
    assert len(run.rounds) == 2 * 2 * 3
    assert {o for r in run.rounds for o in r.columns.outcome} == {"ok"}
    assert run.bundle.run.parameters.blocks == 2 and run.bundle.run.status == "complete"


def test_it_says_in_one_sentence_whether_the_limits_hold(live: Path) -> None:
    run = LoadRun(Bundle.open(live))
    assert run.subject.decision in ("HOLDS", "UNPROVEN")  # two rounds may leave a bound open
    assert "95 of 100 requests were answered within" in run.analysis.headline
    assert "no unexpected outcomes in" in run.analysis.headline
    assert "before" not in run.analysis.headline and "GO" not in repr(run.decision)


def test_every_load_level_has_its_percentiles_and_parts(live: Path) -> None:
    run = LoadRun(Bundle.open(live))
    loads = ["5 connections", "100 per second", "as many as it stands"]
    for table in (run.levels, run.parts, run.health):
        assert [row[0].text for row in table.rows] == loads
    assert all(row[6].text != "0" and row[7].text == "0" for row in run.levels.rows)  # requests, errors
    for row in run.parts.rows:
        lag, wait, service, response = (float(cell.text.replace(",", "")) for cell in row[1:5])
        # Medians of all requests, but the response's of rounds.
        assert 0 <= wait <= service <= 1.2 * response and lag <= 1.2 * response


def test_the_capacity_is_a_rate_that_was_tried(live: Path) -> None:
    run = LoadRun(Bundle.open(live))
    rates = [r.health["rate"] for r in run.rounds if r.scenario == "search" and r.arm == "last"]
    assert all(50 <= rate <= 100 for rate in rates)
    assert "as many as it stands" in run.capacity.text() and "50 to 100" in run.capacity.text()


def test_the_page_stands_beside_its_files_and_is_the_same_every_time(live: Path, tmp_path: Path) -> None:
    again = render(live, tmp_path / "again")
    assert again.name == "load.html" and not (live / "report.html").exists()
    for name in ("load.html", "verdict.json", "summary.md", "samples.csv"):
        assert (again.parent / name).read_bytes() == (live / name).read_bytes(), name


def test_the_page_answers_in_order_and_runs_nothing(live: Path) -> None:
    text = (live / "load.html").read_text()
    heads = re.findall(r"<h[12][^>]*>(?:<svg.*?</svg>)?(?:<span>)?([^<]*)", text, re.DOTALL)
    assert heads[0] in ("HOLDS", "UNPROVEN")
    assert heads[1:] == [
        "Limitations",
        "Results by load level",
        "Limits and checks",
        "Latency over time",
        "Distribution of response times",
        "Errors",
        "Client, server and machine during the run",
        "Plans",
        "Method and environment",
        "Reproduce this run",
    ]
    assert "<script" not in text and "api.measure" not in text
    assert "perfkit measure --config" in text and "--blocks 2" in text and "Holm" not in text
    charts = re.findall(r'<svg [^>]*class="chart".*?</svg>', text, re.DOTALL)
    assert len(charts) == 6 and all(re.search(r"<desc id=[^>]*>.+</desc>", chart) for chart in charts)
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


@needs_browser
@pytest.mark.system
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_fits_its_window_and_requests_nothing(live: Path, tmp_path: Path, width: int) -> None:
    with browser(tmp_path) as tab:
        tab.open((live / "load.html").as_uri(), width=width)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.requests() == [(live / "load.html").as_uri()] and tab.complaints() == []


# What is said and which code it ends with


def limits(folder: Path, **thresholds: float) -> Path:
    """Judge a run by other limits."""
    bundle = Bundle.open(folder)
    tuned(bundle, "thresholds", **thresholds)
    bundle.update()
    return folder


def verdict(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(report.verdict(LoadRun(Bundle.open(folder)).subject))
    return found


def gate(folder: Path, code: int) -> str:
    return command("gate", folder, code=code).stdout


def test_a_limit_far_away_holds(copy: Path) -> None:
    assert gate(limits(copy, p95_ms=1e9), 0).startswith("HOLDS: ")
    run = LoadRun(Bundle.open(copy))
    assert verdict(copy)["decision"] == "HOLDS"
    assert report.summary(run.subject).startswith("**HOLDS** · Looking up things")
    assert repr(run.decision).startswith("✓ HOLDS")


def test_a_limit_that_is_broken_ends_with_99(copy: Path) -> None:
    done = command("measure", "--bundle", limits(copy, p95_ms=1e-6), "--gate", code=99)
    assert done.stdout.startswith("BROKEN: ") and done.stdout.endswith(f"{copy}/load.html\n")
    found = json.loads((copy / "verdict.json").read_text())
    assert found["decision"] == "BROKEN" and "is not under 1e-06 ms" in found["reasons"][0]
    assert "✕" in repr(LoadRun(Bundle.open(copy)).thresholds)


def test_one_round_proves_nothing_and_says_so(copy: Path) -> None:
    bundle = Bundle.open(copy)
    for path in (copy / "rounds").glob("001.*"):
        path.unlink()
    bundle.run.parameters.blocks = 1
    bundle.update(blocks=bundle.run.blocks[:1])
    assert gate(limits(copy, p95_ms=1e9), 100).startswith("UNPROVEN: ")
    assert "set no upper bound" in verdict(copy)["reasons"][0]
    assert "∞" in repr(LoadRun(Bundle.open(copy)).levels)


def test_a_client_that_was_too_slow_ends_with_98(copy: Path) -> None:
    bundle = Bundle.open(copy)
    tuned(bundle, "limits", worker_cpu=1e-9)
    bundle.update()
    assert gate(limits(copy, p95_ms=1e9), 98).startswith("UNPROVEN: ")
    assert "invalid" in repr(LoadRun(Bundle.open(copy)).levels)


def test_a_run_that_was_stopped_is_unfinished_and_proves_nothing(copy: Path) -> None:
    Bundle.open(limits(copy, p95_ms=1e9)).update(status="interrupted")
    assert gate(copy, 100).startswith("UNPROVEN: ")
    assert repr(LoadRun(Bundle.open(copy)).decision).startswith("… UNFINISHED")
    Bundle.open(limits(copy, p95_ms=1e-6))
    assert gate(copy, 99).startswith("BROKEN: ")


def test_report_knows_what_a_run_of_one_arm_is(copy: Path) -> None:
    (copy / "load.html").unlink()
    done = command("report", "--bundle", limits(copy, p95_ms=1e9), "--gate")
    assert done.stdout.splitlines()[-1] == f"{copy}/load.html"


# The notebook


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"blocks": "two"}, "parameter blocks = 'two'; expected int"),
        ({"query": "SELECT 1"}, "query and rate need db, a database of yours"),
    ],
)
def test_a_wrong_parameter_stops_the_notebook_with_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(PerfkitError, match=re.escape(said)):
        execute(LOAD, given)


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    done = command("measure", "--reports", tmp_path / "reports", "--arm", "x", code=2)
    assert done.stderr.count("\n") == 1 and "arm 'x' is unknown" in done.stderr
    assert not (tmp_path / "reports").exists()


# A database of the user's


@pytest.fixture
def shop(server: embedded.EmbeddedServer) -> Iterator[dict[str, Any]]:
    """The user's server with a table of orders; nobody and nothing is left in it."""
    databases.create(server, "pk_measure")
    with server.connect("pk_measure") as connection:
        connection.execute("CREATE TABLE orders AS SELECT n AS id, n % 50 AS customer FROM generate_series(1, 5000) n")
    before = set(psutil.Process().children(recursive=True))
    name = f"{server.socket_dir}:5432/pk_measure"
    db = f"host={server.socket_dir} port=5432 dbname=pk_measure user=perfkit"
    yield {"db": db, "confirm": [name], "query": "SELECT count(*) FROM orders WHERE customer = 7", "blocks": 1}
    assert set(psutil.Process().children(recursive=True)) <= before
    with server.connect("pk_measure") as connection:
        others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        assert connection.execute(others).fetchall() == []
    databases.drop(server, "pk_measure")


def test_a_query_arrives_at_its_rate_in_place(shop: dict[str, Any], tmp_path: Path) -> None:
    run = perfkit.measure(**shop, rate=100, users=5, seconds=1, way="in-place", reports=tmp_path)
    (load,) = [r for r in run.rounds if r.arm == "current"]
    assert load.scenario == "arrivals" and set(load.columns.outcome) == {"ok"}
    due = load.columns.scheduled
    assert len(due) > 50 and max(due) > 5e8  # about a hundred, spread over the second
    assert (run.bundle.path / "perfkit.toml").exists()
    assert run.subject.label("arrivals") == "100 per second, at most 5 in flight"


def test_without_a_rate_it_is_one_connection_and_several(
    shop: dict[str, Any], tmp_path: Path, server_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERFKIT_HOME", str(server_home))
    run = perfkit.measure(**shop, users=3, p95_ms=1e6, reports=tmp_path)
    assert [s.name for s in run.bundle.run.scenarios] == ["alone", "together"]
    assert {r.arm for r in run.rounds} == {"current", FLOOR}
    assert run.bundle.run.config.thresholds.p95_ms == 1e6


def test_a_refused_database_leaves_no_folder(shop: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PerfkitError):
        perfkit.measure(**{**shop, "confirm": ["elsewhere:5432/x"]}, reports=tmp_path)
    with pytest.raises(UsageError, match="seconds = 0"):
        perfkit.measure(**shop, rate=5, seconds=0, reports=tmp_path)
    assert list(tmp_path.iterdir()) == []


# Latency over time


Request = tuple[float, float, str]  # due in s, response time in ms, outcome


def round_of(requests: Sequence[Request], number: int = 0, batch: Sequence[int] = (), **kept: Any) -> Round:
    due = [int(at * 1e9) for at, _, _ in requests]
    done = [at + int(ms * 1e6) for at, (_, ms, _) in zip(due, requests, strict=True)]
    n = len(due)
    outcomes, batches = [outcome for *_, outcome in requests], list(batch) or [0] * n
    whole, stamps = (["one"] * n, [0] * n, batches, [True] * n), (due, list(due), list(due), done)
    columns = Samples(*whole, *stamps, outcomes, [""] * n, [1] * n)
    return Round(0, number, "open", "last", columns, {}, **kept)


def steady(seconds: int, rate: int, seed: int = 1) -> list[Request]:
    random = np.random.default_rng(seed)
    return [(n / rate, float(random.lognormal(0, 0.2)), "ok") for n in range(seconds * rate)]


def stalled(at: float, requests: Sequence[Request]) -> list[Request]:
    """Everything that is due in that second waits until it is over."""
    return [(due, ms + 1000 * max(0.0, at + 1 - due) * (due >= at), out) for due, ms, out in requests]


def scenario(**values: Any) -> ScenarioRecord:
    return ScenarioRecord.model_validate({"name": "open", "label": "open", "send": ["one"], **values})


OPEN = scenario(rate=100, seconds=20)


def test_a_stall_of_a_second_is_named_with_its_second_and_both_latencies() -> None:
    flow = charts.flow_of([round_of(stalled(12, steady(20, 200)))], OPEN)
    found = re.fullmatch(
        r"Slowest second: 12 to 13 s, p95 (\d+) ms against ([\d.]+) ms otherwise\.", charts.finding(flow)
    )
    assert found and float(found[1]) > 900 and float(found[2]) < 2


def test_a_stall_in_one_round_of_many_is_still_in_the_picture() -> None:
    rounds = [round_of(steady(20, 200, seed), seed) for seed in range(11)]
    flow = charts.flow_of([*rounds, round_of(stalled(12, steady(20, 200)), 11)], OPEN)
    x, ms = charts.thinned(flow)
    assert len(x) <= charts.COLUMNS * charts.EACH < len(flow.x)
    slow = x[ms > 500]
    assert len(slow) and slow.min() >= 12 and slow.max() <= 12.6
    columns = np.minimum((flow.x / flow.x[-1] * charts.COLUMNS).astype(int), charts.COLUMNS - 1)
    assert {float(flow.ms[columns == column].max()) for column in set(columns)} <= set(ms.tolist())


def test_where_nothing_stands_out_it_is_called_even() -> None:
    flow = charts.flow_of([round_of(steady(20, 200))], OPEN)
    assert re.fullmatch(r"Even: p95 from [\d.]+ ms to [\d.]+ ms in every second\.", charts.finding(flow))


def test_dropped_requests_and_errors_are_counted_where_they_were() -> None:
    requests = steady(20, 200)
    lost = {500: "dropped", 501: "dropped", 3000: "timeout"}
    rows = [(due, ms, lost.get(n, out)) for n, (due, ms, out) in enumerate(requests)]
    flow = charts.flow_of([round_of(rows)], OPEN)
    assert charts.finding(flow).endswith("; 2 dropped, 2 to 3 s; 1 error, 15 to 16 s.")
    assert len(flow.x) == len(requests) - 3
    every = [(due, 0.0, "dropped") for due, *_ in requests]
    assert charts.finding(charts.flow_of([round_of(every)], OPEN)).startswith("No answer; 4,000 dropped")


def test_no_percentile_of_a_stretch_without_the_samples_for_it() -> None:
    parts = charts.stretches(charts.flow_of([round_of(steady(20, 60))], OPEN))
    assert [len(part.ms) for part in parts] == [60] * 20
    flow = charts.flow_of([round_of(steady(20, 60))], OPEN)
    assert "p50" in charts.finding(flow) and "p95" not in charts.finding(flow)
    assert "p95" in charts.finding(charts.flow_of([round_of(steady(20, 80))], OPEN))


def test_the_closed_model_is_drawn_in_the_order_of_requests_round_after_round() -> None:
    first = round_of([(0.0, 1.0, "ok"), (0.2, 2.0, "ok"), (0.1, 3.0, "ok"), (0.0, 4.0, "ok")], 1, batch=[0, 0, 0, 1])
    second = round_of([(0.0, 9.0, "ok"), (0.1, 8.0, "reset")], 0)
    flow = charts.flow_of([first, second], scenario(users=2))
    assert flow.x.tolist() == [1, 3, 4, 5, 6] and flow.ms.tolist() == [9, 1, 3, 2, 4]
    assert flow.borders == (2.5,) and flow.lost["errors"].tolist() == [2]


def test_a_closed_stretch_is_named_by_its_requests() -> None:
    rows = [(n / 1000, 100.0 if n >= 720 else 1.0 + n % 7 / 100, "ok") for n in range(792)]
    said = charts.finding(charts.flow_of([round_of(rows)], scenario(users=1)))
    assert said == "Slowest stretch: requests 721 to 792, p95 100 ms against 1.06 ms otherwise."


def test_the_steps_of_a_search_follow_each_other_whether_they_count_or_not() -> None:
    steps = [(n / 100, 1.0 + step, "ok") for step in range(3) for n in range(100)]
    found = round_of(steps, batch=[step for step in range(3) for _ in range(100)])
    found.columns.counted[:200] = [False] * 200
    flow = charts.flow_of([found], scenario(rate=100, seconds=1, search={"most": 500}))
    assert flow.borders == (1, 2) and flow.x[-1] == pytest.approx(2.99)
    assert [part.ms.tolist() for part in charts.stretches(flow)] == [[n] * 100 for n in (1, 2, 3)]
    assert charts.finding(flow).startswith("Slowest step of 1 s: 2 to 3 s, p95 3.00 ms")


def test_requests_beyond_those_that_are_kept_are_owned_up_to() -> None:
    rest = Rest()
    for n in range(5):
        rest.add(n, n + 1_000_000, "ok")
    flow = charts.flow_of([round_of(steady(5, 100), rest={"one": rest.record})], OPEN)
    assert charts.finding(flow).endswith("; 5 later requests are in the percentiles but not in this picture.")


def test_the_picture_is_the_same_bytes_every_time_and_holds_what_was_lost() -> None:
    rows = [(due, ms, "dropped" if 3 < due < 4 else out) for due, ms, out in steady(20, 200)]
    flow = charts.flow_of([round_of(rows)], OPEN)
    svgs = [Picture("x", "t", "f", lambda ax: charts._draw_flow(ax, flow, 50)).svg for _ in range(2)]
    assert svgs[0] == svgs[1] and len(svgs[0]) < 150_000
    assert ">dropped<" in svgs[0] and ">errors<" not in svgs[0] and ">p95<" in svgs[0] and "#010203" not in svgs[0]


# Tables of made-up rounds


def made(folder: Path, things: Path, rounds: Sequence[Round], scenario: str = "open") -> LoadRun:
    """A run of one scenario with these rounds, one for each block, all of which are also the floor's."""
    described = chosen(things, scenarios=(scenario,), blocks=len(rounds)).describe()
    described.status = "complete"
    bundle = Bundle.create(folder / "made", described)
    for block, own in enumerate(rounds):
        for arm in ("last", FLOOR):
            health = {"lag_p50_ms": 0.0, "lag_p99_ms": 0.0, "worker_cpu": 0.0, **own.health}
            bundle.add_round(Round(block, block, scenario, arm, own.columns, health, rest=own.rest))
    bundle.update(blocks=[BlockRecord(block=n, state={"last": {}}) for n in range(len(rounds))])
    return LoadRun(bundle)


def test_lag_wait_service_and_response_are_kept_apart(tmp_path: Path, things: Path) -> None:
    found = round_of([(n / 10, 10.0, "ok") for n in range(10)])
    found.columns.started = [due + 1_000_000 for due in found.columns.scheduled]
    found.columns.acquired = [due + 4_000_000 for due in found.columns.scheduled]
    found.columns.outcome[9], found.columns.attempts[0] = "dropped", 3
    (row,) = made(tmp_path, things, [found]).parts.rows
    assert [cell.text for cell in row[1:]] == ["1.00", "3.00", "9.00", "10.0", "1", "1.22"]
    assert [cell.note for cell in row[1:]] == [""] * 6 and row[5].state == "bad"


def test_p99_of_a_part_is_shown_where_there_are_samples_for_it(tmp_path: Path, things: Path) -> None:
    (row,) = made(tmp_path, things, [round_of([(n / 100, 1.0 + n / 1000, "ok") for n in range(401)])]).parts.rows
    assert (row[3].text, row[3].note) == (row[4].text, row[4].note) == ("1.20", "p99 1.40")


def searched(rate: float, limited: float = 0.0) -> Round:
    own = round_of(steady(1, 100))
    return Round(0, 0, "search", "last", own.columns, {"rate": rate, "limited": limited})


@pytest.mark.parametrize(
    ("rounds", "said"),
    [
        ([searched(80.0), searched(90.0), searched(100.0)], ["89.6 [", "50 to 100", "3"]),
        ([searched(100.0, 1.0)] * 2, ["≥ 100", "2 of 2 rounds ended at the limit"]),
        ([searched(80.0), searched(0.0)], ["–", "no rate held in 1 of 2 rounds"]),
    ],
)
def test_capacity_is_typical_of_the_rounds_or_a_lower_bound(
    rounds: list[Round], said: list[str], tmp_path: Path, things: Path
) -> None:
    text = " ".join(made(tmp_path, things, rounds, "search").capacity.text().split())
    assert all(words in text for words in said), text


def test_a_run_without_a_search_says_how_to_get_one(tmp_path: Path, things: Path) -> None:
    assert "No scenario searched" in made(tmp_path, things, [round_of(steady(1, 100))]).capacity.text()


def test_health_is_the_worst_round_of_the_client_and_the_sum_of_the_server(tmp_path: Path, things: Path) -> None:
    own = round_of(steady(1, 100))
    facts = [{"lag_p99_ms": 1.0, "checkpoints": 1, "steal": 0.0}, {"lag_p99_ms": 3.0, "checkpoints": 1, "steal": 0.25}]
    rounds = [Round(0, 0, "open", "last", own.columns, fact) for fact in facts]
    table = made(tmp_path, things, rounds).health
    row = dict(zip(table.columns, (cell.text for cell in table.rows[0]), strict=True))
    assert (row["rounds"], row["schedule lag, p99, ms"], row["rounds with a checkpoint"]) == ("2", "3.00", "2")
    assert row["taken by other machines"] == "25 %" and "pages read" not in row
