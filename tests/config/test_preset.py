"""Tests of `--preset`: a named set-up from the configuration; explicit options override its values."""

import inspect
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from perfkit import config
from perfkit.app import api
from perfkit.app.cli import main
from perfkit.app.magics import read
from perfkit.base.errors import UsageError
from perfkit.base.resources import CHECKOUT
from perfkit.config.workload import Preset, options
from perfkit.runs.selection import RunSpec, Selection

PRESETS = {"far": Preset(scale="seed", rtt_ms=22, connect_rtts=4, profile="thorough")}
OWN = {"scale": "", "rtt_ms": 0.0, "connect_rtts": 6, "profile": "standard"}
FAR = {"scale": "seed", "rtt_ms": 22.0, "connect_rtts": 4, "profile": "thorough"}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "without one, perfkit's own": ("", {}, OWN),
    "without one, what is given": ("", {"rtt_ms": 5.0, "profile": "quick"}, {**OWN, "rtt_ms": 5.0, "profile": "quick"}),
    "the preset's": ("far", {}, FAR),
    "empty values are not given": ("far", {"profile": "", "scale": "", "rtt_ms": None, "connect_rtts": None}, FAR),
    "what is given wins": ("far", {"profile": "quick"}, {**FAR, "profile": "quick"}),
    "the usual value is given too": ("far", {"connect_rtts": 6}, {**FAR, "connect_rtts": 6}),
    "no round trip is given too": ("far", {"rtt_ms": 0.0}, {**FAR, "rtt_ms": 0.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_options_are_those_given_then_the_presets_then_perfkits(case: str) -> None:
    name, given, expected = CASES[case]
    assert options(PRESETS, name, **given) == expected


@pytest.mark.parametrize(("presets", "known"), [(PRESETS, "far"), ({}, "none defined")])
def test_an_unknown_preset_is_one_line_with_the_known_ones(presets: dict[str, Preset], known: str) -> None:
    with pytest.raises(UsageError, match=f"^preset 'near' is unknown; expected one of: {known}$"):
        options(presets, "near")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """Return the options of every run that perfkit would measure, without measuring."""
    found: list[RunSpec] = []

    class Chosen(Selection):
        def __post_init__(self) -> None:
            found.append(self.options)
            raise UsageError("enough")

    monkeypatch.setattr("perfkit.app.runs.Selection", Chosen)
    return found


def measured(words: str) -> None:
    done = CliRunner().invoke(main, ["report", *words.split()])
    assert done.exit_code != 0 and "Traceback" not in done.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", ("standard", "", 0.0, 6)),
        ("--preset checklist", ("standard", "seed", 22.0, 6)),
        ("--preset checklist --profile quick", ("quick", "seed", 22.0, 6)),
        ("--preset checklist --profile standard --scale small", ("standard", "small", 22.0, 6)),
        ("--preset checklist --rtt-ms 0 --connect-rtts 3", ("standard", "seed", 0.0, 3)),
        ("--rtt-ms 20", ("standard", "", 20.0, 6)),
    ],
)
def test_on_the_command_line_what_is_typed_wins_be_it_the_usual_value(
    asked: list[RunSpec], words: str, expected: tuple[Any, ...]
) -> None:
    measured(words)
    (found,) = asked
    assert (found.profile, found.scale, found.rtt_ms, found.connect_rtts) == expected


def test_an_unknown_one_is_a_usage_error_before_anything_is_started(asked: list[RunSpec], tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", "--preset", "nope", "--reports", str(tmp_path)])
    assert (done.exit_code, done.output) == (2, "perfkit: preset 'nope' is unknown; expected one of: checklist\n")
    assert not asked and not list(tmp_path.iterdir())


def test_the_notebook_takes_the_same_and_leaves_to_the_preset_what_it_is_not_given(asked: list[RunSpec]) -> None:
    import nbformat
    import papermill

    notebook_path = CHECKOUT / "notebooks" / "before_after_index.ipynb"
    notebook = nbformat.read(notebook_path, as_version=4)
    cell = next(cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    for given, expected in (("", 22.0), ("rtt_ms = 5", 5)):
        injected = f'# Parameters\npreset = "checklist"\n{given}'
        space: dict[str, Any] = {"In": ["", cell, injected, "read(globals())"]}
        exec(f"{cell}\n{injected}", space)
        with pytest.raises(UsageError, match="enough"):
            api.run(**read(space))
        assert (asked[-1].profile, asked[-1].scale, asked[-1].rtt_ms) == ("standard", "seed", expected)
    named = set(re.findall(r"^(\w+):", cell, re.MULTILINE))
    assert named <= set(inspect.signature(api.run).parameters)
    assert named == papermill.inspect_notebook(str(notebook_path)).keys()  # else it warns of what it is given


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ({"scale": "seed", "rtt_ms": 22.0}, "checklist"),
        ({"scale": "seed", "rtt_ms": 22.0, "profile": "quick", "seed": 2}, "checklist"),
        ({"scale": "seed", "rtt_ms": 21.0}, ""),
        ({"scale": "seed", "rtt_ms": 22.0, "connect_rtts": 5}, ""),
        ({"rtt_ms": 22.0}, ""),
        ({}, ""),
    ],
)
def test_a_run_belongs_to_the_preset_whose_set_up_it_has_however_that_was_given(
    given: dict[str, Any], recorded: str
) -> None:
    described = Selection(config.load(), RunSpec(**given)).describe()
    assert described.parameters.preset == recorded
    assert len(described.config.claim) == len(config.load().claim)


def test_a_preset_that_names_the_usual_set_up_is_that_of_every_usual_run() -> None:
    settings = config.load().model_copy(update={"presets": {"usual": Preset()}})
    assert Selection(settings, RunSpec()).preset == Selection(settings, RunSpec(scale="standard")).preset == "usual"
    assert Selection(settings, RunSpec(scale="small")).preset == ""


def test_the_help_says_what_a_preset_gives() -> None:
    report = main.commands["report"]
    (option,) = (p for p in report.params if isinstance(p, click.Option) and p.name == "preset")
    assert "[presets.NAME]" in (option.help or "")


CLAIM = '[[claim]]\ntext = "fast"\nhigh = 1\nmeasure = '
WRONG = {
    '[presets.far]\nscale = "gone"\n': "preset 'far': scale = 'gone'; expected one of: seed",
    '[presets.far]\nprofile = "gone"\n': "preset 'far': profile = 'gone'; expected one of: quick, standard, thorough",
    "[presets.far]\nrtt_ms = -1\n": "presets.far.rtt_ms = -1; expected: Input should be greater than or equal to 0",
    "[presets.far]\nconnect_rtts = 0\n": "presets.far.connect_rtts = 0; expected: ",
    "[presets.far]\nrtt = 1\n": "presets.far.rtt: unknown key; expected only documented ones",
    f'{CLAIM}"error_rate"\npreset = "near"\n': "claim 'fast': preset = 'near'; expected one of: none defined",
    f'{CLAIM}"error_rate"\narm = "near"\n': "claim 'fast': arm = 'near'; expected one of: after, before",
    f'{CLAIM}"p95_ms"\nscenario = "near"\n': "claim 'fast': scenario = 'near'; expected one of: alone",
    f'{CLAIM}"p95_ms"\n': "claim.0: expected p95_ms with scenario",
    f'{CLAIM}"latency_saved"\nquery = "q"\nscenario = "alone"\n': "claim.0: expected latency_saved with query or",
    f'{CLAIM}"build_s"\nlow = 2\n': "claim.0: expected low = 2 of at most high = 1",
}
SHOP = """
title = "A shop"
[database]
prepare = ["q.sql"]
scale = "seed"
scales = { seed = { n = 1 } }
[[query]]
name = "q"
file = "q.sql"
[[scenario]]
name = "alone"
label = "one connection"
send = ["q"]
[[arm]]
name = "before"
role = "before"
[[arm]]
name = "after"
role = "after"
"""


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_preset_or_claim_is_one_line(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "q.sql").write_text("SELECT 1")
    path = tmp_path / "perfkit.toml"
    path.write_text(SHOP + wrong)
    with pytest.raises(UsageError) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"{path}: {WRONG[wrong]}")
    assert "\n" not in str(caught.value)
