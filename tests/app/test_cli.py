"""The command line: help with examples, one line and the right exit code for whatever is wrong."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commands import perfkit, refusal
from synthetic import make_run

from perfkit import config
from perfkit.app.cli import COMMANDS as LISTED
from perfkit.app.cli import main
from perfkit.base.resources import CHECKOUT
from perfkit.runs.records import Bundle

PLANS, STORED = CHECKOUT / "tests" / "plans" / "18", CHECKOUT / "tests" / "stored"
COMMANDS = [
    "report",
    "compare",
    "measure",
    "check",
    "explain",
    "doctor",
    "allow",
    "init",
    "config",
    "gate",
    "verify",
    "indexes",
    "method",
    "notebooks",
    "review",
    "rollback",
    "schemas",
    "slow",
    "watch",
]


@pytest.fixture
def home(server_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where servers would be; nothing that was started is left at the end."""
    monkeypatch.setenv("PERFKIT_HOME", str(server_home))
    before = set(psutil.Process().children(recursive=True))
    yield server_home
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is a GO; copy it to change it."""
    return make_run(tmp_path_factory.mktemp("go") / "run").path


@pytest.fixture
def run(go: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(Path(shutil.copytree(go, tmp_path / "run")))


@pytest.fixture
def booking(tmp_path: Path) -> Path:
    """The booking system's configuration as a user's own file."""
    path = tmp_path / "perfkit.toml"
    path.write_text(config.BOOKING.read_text())
    return path


def replaced(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))
    return path


# Help


def test_help_names_every_command() -> None:
    done = perfkit("--help")
    assert done.exit_code == 0
    assert all(f"  {command} " in done.output for command in COMMANDS)
    assert sorted(main.commands) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_of_commands_has_the_first_sentence_of_each_commands_help(command: str) -> None:
    first, _, _ = str(main.commands[command].help).partition("\n\n")
    assert LISTED[command][1] == first.replace("\n", " ")


def loaded(*args: str) -> set[str]:
    """Return the modules that a command has imported at its end."""
    script = (
        "import sys; from perfkit.app.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.process
@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", PLANS / "bitmap_and.json"),
        ("slow", "log", STORED / "server.json"),
        ("slow", "log", STORED / "server.json", "--json"),
        ("config", "show"),
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:2])).partition("/")[0],
)
def test_a_command_that_only_prints_imports_neither_pandas_nor_matplotlib(arguments: tuple[object, ...]) -> None:
    assert not loaded(*map(str, arguments)) & {"pandas", "matplotlib", "jinja2", "nbconvert", "papermill"}


@pytest.mark.process
def test_the_list_of_commands_imports_no_command_and_nothing_heavy() -> None:
    modules = loaded("--help")
    assert not modules & {"pandas", "matplotlib", "numpy", "aiohttp", "psycopg", "pydantic"}
    assert {name for name in modules if name.startswith("perfkit.app.cli.")} == set()
    assert {name.split(".")[1] for name in modules if name.startswith("perfkit.")} == {"app", "base"}


@pytest.mark.process
@pytest.mark.parametrize("command", ["report", "compare", "measure", "check", "gate", "rollback", "watch", "review"])
def test_the_help_of_a_command_imports_no_room(command: str) -> None:
    rooms = {name.split(".")[1] for name in loaded(command, "--help") if name.startswith("perfkit.")}
    assert rooms == {"app", "base"}


@pytest.mark.process
def test_a_plan_from_a_file_imports_neither_load_nor_reports() -> None:
    modules = loaded("explain", str(CHECKOUT / "tests/plans/18/bitmap_and.json"))
    assert not modules & {"pandas", "matplotlib", "aiohttp", "perfkit.app.api"}
    assert not {name for name in modules if name.split(".")[:2] in (["perfkit", "analysis"], ["perfkit", "monitor"])}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_shows_an_example_of_it(command: str) -> None:
    done = perfkit(command, "-h")
    assert done.exit_code == 0
    assert f"\n    perfkit {command}" in done.output.partition("Example")[2]


@pytest.mark.parametrize("command", main.commands["indexes"].commands)
def test_each_command_about_indexes_shows_an_example_too(command: str) -> None:
    done = perfkit("indexes", command, "-h")
    assert done.exit_code == 0
    assert f"\n    perfkit indexes {command}" in done.output.partition("Example")[2]


@pytest.mark.parametrize("command", main.commands["slow"].commands)
def test_each_command_about_what_is_slow_shows_an_example_too(command: str) -> None:
    done = perfkit("slow", command, "-h")
    assert done.exit_code == 0
    assert f"\n    perfkit slow {command}" in done.output.partition("Example")[2]


@pytest.mark.process
def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "perfkit", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "0.1.0")


# Bad input


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["report", "--profile", "fast"],
            "profile 'fast' is unknown; expected one of: quick, standard, thorough",
        ),
        (
            ["report", "--scale", "huge"],
            "scale 'huge' is unknown; expected one of: seed, small, standard, large",
        ),
        (
            ["report", "--arm", "after"],
            "arm 'after' is unknown; expected one of: before, control, after-index",
        ),
        (["report", "--arm", "control"], "arms: control; expected 'before' among them"),
        (["report", "--scenario", "peak"], "scenario 'peak' is unknown; expected one of: single, ramp-up"),
        (["report", "--postgres", "17"], "postgres = 17; expected 16 or 18"),
        (["report", "--rtt-ms", "-1"], "rtt_ms = -1; expected 0 to 10000 milliseconds"),
        (["report", "--connect-rtts", "0"], "connect_rtts = 0; expected 1 or more round trips"),
        (["check", "--scale", "huge"], "scale 'huge' is unknown; expected one of: seed, small"),
        (["check", "--arm", "after"], "arm 'after' is unknown; expected one of: before, control"),
        (["check", "--postgres", "17"], "postgres = 17; expected 16 or 18"),
        (["check", "--config", "gone.toml"], "gone.toml: no such file; expected a perfkit.toml"),
    ],
)
def test_an_option_that_cannot_be_meant_is_a_usage_error(
    home: Path, tmp_path: Path, args: list[str], said: str
) -> None:
    reports = ["--reports", str(tmp_path)] if args[0] == "report" else []
    assert refusal(2, *args, *reports).startswith(said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [["nothing"], ["report", "--nothing"], ["gate"], ["report", "--seed", "x"]])
def test_what_is_no_command_or_option_is_a_usage_error(args: list[str]) -> None:
    done = perfkit(*args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("perfkit: ") and done.stderr.endswith(" --help)\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["report", "check"])
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[database]", "[database", "; expected valid TOML"),
        ("schema.sql", "scheme.sql", "expected: an existing file"),
        ('send = ["book"]', "send = []", "scenario.0: expected either send or script"),
        ("[thresholds]", "[treshholds]", "treshholds: unknown key"),
    ],
)
def test_a_configuration_with_a_mistake_is_one_line(
    home: Path, booking: Path, command: str, old: str, new: str, said: str
) -> None:
    found = refusal(2, command, "--config", replaced(booking, old, new))
    assert found.startswith(f"{booking}: ") and said in found


def test_sql_that_the_server_refuses_is_one_line_and_the_bundle_says_so(
    home: Path, booking: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.sql").write_text("CREATE TABEL t (id int)")
    replaced(booking, '"perfkit:sql/booking/data.sql"', '"broken.sql"')
    done = perfkit("report", "--config", booking, "--reports", tmp_path / "reports")
    assert done.exit_code == 2
    said = f'{tmp_path}/broken.sql: syntax error at or near "TABEL"'
    assert done.stderr.splitlines()[-1] == f"perfkit: {said}"
    run = Bundle.open(next((tmp_path / "reports").iterdir())).run
    assert (run.status, run.message) == ("failed", said)


@pytest.mark.parametrize("reports", ["file", "file/reports", "/proc/reports"])
def test_an_unwritable_reports_folder_is_one_line(home: Path, tmp_path: Path, reports: str) -> None:
    (tmp_path / "file").write_text("")
    found = refusal(1, "report", "--scale", "seed", "--reports", tmp_path / reports)
    assert found.startswith(f"{tmp_path / reports}/") and found.endswith("expected a writable folder")


@pytest.mark.parametrize("args", [["gate"], ["report", "--bundle"]])
@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("run.json", '{"format": 2, "tit', "expected JSON written by perfkit"),
        ("run.json", '{"format": 1}', "format 1; expected a bundle of format 2"),
        ("run.json", '{"format": 2}', "expected what perfkit wrote"),
        ("rounds/000.burst.before.json", '{"block": 0', "expected JSON written by perfkit"),
        ("rounds/000.burst.before.json", "{}", "not a round (block: Field required); expected what perfkit wrote"),
        ("plans/before/conflict_check.json", "[]", "expected EXPLAIN (FORMAT JSON) output with a 'Plan'"),
        ("", "", "no such file; expected a bundle's folder"),
    ],
)
def test_a_damaged_bundle_or_one_of_another_version_is_one_line(
    run: Bundle, args: list[str], file: str, text: str, said: str
) -> None:
    if file:
        (run.path / file).write_text(text)
    else:
        shutil.rmtree(run.path)
    assert refusal(1, *args, run.path).endswith(said)


# Checks


def test_the_checks_of_the_booking_system_pass(home: Path) -> None:
    done = perfkit("check", "--scale", "seed", "--arm", "before", "--arm", "after-full")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["passed  before"] * 7 + ["passed  after-full"] * 7
    assert lines[0] == "passed  before: smoke: Basic insert"
    assert lines[-1] == "14 of 14 checks passed"


def test_a_failing_check_exits_1_and_says_what_was_expected_and_what_came(home: Path, booking: Path) -> None:
    replaced(booking, "expect = { 201 = 1, 409 = 4 }", "expect = { 201 = 5 }")
    done = perfkit("check", "--config", booking, "--scale", "seed", "--arm", "before")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    failed = lines.index("FAILED  before: acceptance: Concurrent bookings (5 for one slot, one wins)")
    assert lines[failed + 1 : failed + 3] == [
        "        expected book: 5 x 201",
        "        got      book: 1 x 201, 4 x 409",
    ]
    assert lines[-1] == "6 of 7 checks passed"
    assert "Traceback" not in done.stderr


def test_a_service_that_cannot_start_is_one_line(home: Path, booking: Path) -> None:
    replaced(booking, "perfkit.booking.service", "perfkit.booking.nothing")
    done = perfkit("check", "--config", booking, "--scale", "seed", "--arm", "before")
    assert (done.exit_code, done.stdout) == (1, "")
    said = done.stderr.splitlines()[-1]
    assert said.startswith("perfkit: before: the service ended while starting: ") and "nothing" in said


# Decisions


@pytest.mark.process
def test_gate_exits_0_on_go_and_says_why(go: Path) -> None:
    done = perfkit("gate", go)
    assert done.exit_code == 0
    assert done.stdout.startswith("GO: 30 at once: 95 of 100 requests were answered within ")


@pytest.mark.process
def test_gate_exits_99_on_no_go(run: Bundle) -> None:
    run.run.checks["after-full"][0].passed = False
    run.update()
    done = perfkit("gate", run.path)
    assert done.exit_code == 99 and done.stdout.startswith("NO-GO: ")


@pytest.mark.process
def test_gate_exits_100_where_it_is_inconclusive(run: Bundle) -> None:
    run.update(status="interrupted")
    done = perfkit("gate", run.path)
    assert done.exit_code == 100 and done.stdout.startswith("INCONCLUSIVE: ")


@pytest.mark.process
def test_gate_exits_98_where_a_comparison_is_invalid(tmp_path: Path) -> None:
    done = perfkit("gate", make_run(tmp_path / "run", blocks=5).path)
    assert done.exit_code == 98 and done.stdout.startswith("INCONCLUSIVE: ")


@pytest.mark.process
def test_a_no_go_outranks_an_invalid_comparison(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", blocks=5)
    run.run.checks["after-full"][0].passed = False
    run.update()
    assert perfkit("gate", run.path).exit_code == 99


@pytest.mark.process
def test_a_report_is_a_success_whatever_it_says_unless_it_is_asked_to_gate(run: Bundle) -> None:
    run.run.checks["after-full"][0].passed = False
    run.update()
    for options, code in ([], 0), (["--gate"], 99):
        done = subprocess.run(
            [sys.executable, "-m", "perfkit", "report", "--bundle", run.path, *options],
            env={**os.environ, "PERFKIT_HOME": "/nonexistent"},  # nothing is measured
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (code, "")
        decision, page = done.stdout.splitlines()
        assert decision.startswith("NO-GO: 30 at once: ")
        assert page == f"{run.path}/report.html"
        assert "NO-GO" in Path(page).read_text()


# Configurations


def test_a_shown_configuration_can_be_shown_again(booking: Path, tmp_path: Path) -> None:
    first = perfkit("config", "show", booking)
    assert (first.exit_code, first.stderr) == (0, "")
    (tmp_path / "shown.toml").write_text(first.stdout)
    assert perfkit("config", "show", tmp_path / "shown.toml").stdout == first.stdout
    assert "breaker_errors = 0.5" in first.stdout  # a default, which the file does not name


def test_every_mistake_of_a_configuration_is_a_line(booking: Path) -> None:
    replaced(replaced(booking, "p95_ms = 500", "p95_ms = -1"), 'role = "control"', 'role = "placebo"')
    done = perfkit("config", "show", booking)
    assert (done.exit_code, done.stdout) == (2, "")
    assert [line.removeprefix("perfkit: ").split(" = ")[0] for line in done.stderr.splitlines()] == [
        f"{booking}: arm.1.role",
        f"{booking}: thresholds.p95_ms",
    ]


def test_the_reference_is_markdown_with_every_table() -> None:
    done = perfkit("config", "reference")
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, "# `perfkit.toml`, every key")
    assert all(f"\n## `{table}`\n" in done.stdout for table in ("[database]", "[[arm]]", "[limits]"))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["config", "show", "gone.toml"], "gone.toml: no such file; expected a perfkit.toml"),
        (
            ["compare", "--db", "dbname=x", "--query", "SELECT 1"],
            "nothing to compare; expected --index, --set or --rewrite",
        ),
        (["compare", "--db", "dbname=x", "--set", "a"], "--set a; expected NAME=VALUE"),
        (["init", "/dev/null"], "/dev/null: cannot be written"),
    ],
)
def test_a_command_that_cannot_be_meant_is_one_line(args: list[str], said: str) -> None:
    assert refusal(2, *args).startswith(said)
