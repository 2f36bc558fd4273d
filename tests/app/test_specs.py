"""The specs of the verbs: each surface has the same options, and every option says what it is."""

import ast
import inspect
import json
import re
from dataclasses import MISSING, fields
from pathlib import Path

import click
import pytest

from perfkit.app import api, specs
from perfkit.app.cli import main, parameters
from perfkit.base.options import Spec, flag_of, listed
from perfkit.base.resources import CHECKOUT

SPECS = [
    each for each in vars(specs).values() if isinstance(each, type) and issubclass(each, Spec) and each is not Spec
]
CALLS = {
    api.run: specs.ReportSpec,
    api.compare: specs.CompareSpec,
    api.measure: specs.MeasureSpec,
    api.ablate: specs.AblateSpec,
    api.advise: specs.AdviseSpec,
    api.rollback: specs.DropSpec,
    api.decide: specs.GateSpec,
    api.watch: specs.LiveSpec,
    api.review: specs.ReviewSpec,
    api.connect: specs.ConnectSpec,
    api.slow: specs.SlowSpec,
    api.demo: specs.DemoSpec,
}
NOTEBOOKS = {
    "before_after_index": specs.ReportSpec,
    "load_scenarios": specs.MeasureSpec,
    "index_lab": specs.AblateSpec,
    "go_no_go": specs.GateSpec,
    "post_deployment_review": specs.ReviewSpec,
    "explore_slow_queries": specs.ExploreSpec,
}
COMMANDS = {
    "report": specs.ReportSpec,
    "check": specs.CheckSpec,
    "compare": specs.CompareSpec,
    "measure": specs.MeasureSpec,
    "gate": specs.GateSpec,
    "rollback": specs.DropSpec,
    "watch": specs.LiveSpec,
    "review": specs.ReviewSpec,
    "indexes ablate": specs.AblateSpec,
    "indexes cost": specs.CostSpec,
    "indexes advise": specs.AdviseSpec,
    "slow report": specs.ExploreSpec,
}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
def test_every_option_has_a_sentence_and_a_flag_of_its_own(spec: type[Spec]) -> None:
    options = listed(spec)
    assert all(about.argument or about.help.endswith(".") for _, about in options.values())
    flags = [flag_of(*each) for each in options.values()]
    assert len({*flags}) == len(flags)
    assert [each.name for each in parameters(spec)] == [*options]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_a_call_has_the_fields_of_its_spec(call: object) -> None:
    assert inspect.signature(call).parameters == inspect.signature(CALLS[call]).parameters


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_the_documentation_of_a_call_has_every_parameter_with_type_default_and_meaning(call: object) -> None:
    section = str(inspect.getdoc(call)).partition("\n\nParameters\n----------\n")[2]
    for each in fields(CALLS[call]):
        default = "" if each.default is MISSING else re.escape(f", default {each.default!r}")
        assert re.search(rf"^{each.name} : [^\n]+{default}\n    \S", section, re.MULTILINE), each.name


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_has_the_options_of_its_spec(words: str) -> None:
    command: click.Command = main
    for word in words.split():
        assert isinstance(command, click.Group)
        command = command.commands[word]
    names = [each.name for each in command.params]
    assert [name for name in names if name in listed(COMMANDS[words])] == [*listed(COMMANDS[words])]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebooks_parameters_are_fields_of_its_spec_with_the_same_types(name: str) -> None:
    cells = json.loads(Path(CHECKOUT / f"notebooks/{name}.ipynb").read_text())["cells"]
    (source,) = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ())]
    values = {}
    for line in ast.parse(source).body:
        assert isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        values[line.target.id] = ast.literal_eval(line.value)
        kind = str(NOTEBOOKS[name].__dataclass_fields__[line.target.id].type).split(" | ")[0]
        plain = kind if kind in ("int", "float", "bool") else "str"
        assert ast.unparse(line.annotation).split(" or ")[0] == plain, line.target.id
    NOTEBOOKS[name](**values)  # raises if a value does not fit
