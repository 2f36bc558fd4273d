"""Options of a verb: what a spec's fields say is what the command line, calls, notebooks and commands have."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest

from perfkit.base.errors import UsageError
from perfkit.base.options import (
    Names,
    Option,
    Spec,
    about,
    command,
    flag_of,
    listed,
    names,
    narrowed,
    option,
    pairs,
    takes,
    texts,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared(Spec):
    LAST = True

    confirm: Names = option((), "Allow this target.", "HOST")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bake(Shared):
    cake: str = field(default="", kw_only=False, metadata=about("The cake.", argument=True))
    minutes: float = option(30.0, "Time in the oven.", flag="max-time")
    heat_c: int | None = option(None, Option("Heat.", usual=180))
    fan: bool = option(True, "Use no fan.")
    nuts: bool = option(False, "With nuts.")
    kept: str = "not an option"


@dataclass(frozen=True, slots=True, kw_only=True)
class BakeCommand(Bake):
    dry_run: bool = option(False, "Bake nothing.")


@takes(Bake)
def bake(spec: Bake) -> str:
    """Bake a cake."""
    return f"{spec.cake} {spec.minutes:g}"


def test_a_repeated_command_keeps_every_digit_and_takes_no_text_for_an_option() -> None:
    assert command(("bake",), Bake(minutes=12345678.5)) == "bake --max-time 12345678.5"
    assert command(("bake",), Bake(minutes=12345678.0)) == "bake --max-time 12345678"
    assert command(("bake",), Bake(cake="-- a comment", nuts=True)) == "bake --nuts -- '-- a comment'"


def test_help_lists_what_is_shared_after_the_verbs_own_and_what_only_a_command_takes_last() -> None:
    assert list(listed(BakeCommand)) == ["cake", "minutes", "heat_c", "fan", "nuts", "confirm", "dry_run"]


def test_a_flag_has_the_fields_name_or_its_own_and_no_for_what_is_on() -> None:
    flags = [flag_of(*each) for name, each in listed(Bake).items() if name != "cake"]
    assert flags == ["--max-time", "--heat-c", "--no-fan", "--nuts", "--confirm"]


def test_a_call_takes_the_spec_or_its_fields() -> None:
    assert bake("plum") == bake(cake="plum") == bake(Bake("plum")) == bake(BakeCommand("plum")) == "plum 30"
    assert list(inspect.signature(bake).parameters) == [each.name for each in _positional_first(Bake)]
    said = "Bake a cake.\n\nParameters\n----------\ncake : str, default ''\n    The cake.\n"
    assert str(bake.__doc__).startswith(said)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sugar'"):
        bake(sugar=1)


def _positional_first(spec: type[Spec]) -> list:
    return sorted(fields(spec), key=lambda each: each.kw_only)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"minutes": "long"}, "parameter minutes = 'long'; expected float"),
        ({"minutes": True}, "parameter minutes = True; expected float"),
        ({"heat_c": 1.5}, "parameter heat_c = 1.5; expected int or None"),
        ({"fan": 1, "nuts": None}, "parameter fan = 1; expected bool; parameter nuts = None; expected bool"),
        ({"confirm": ["a", 3]}, "parameter confirm = ['a', 3]; expected text, or several"),
        ({"confirm": 3}, "parameter confirm = 3; expected text, or several"),
        ({"cake": Path("x")}, "parameter cake = PosixPath('x'); expected str"),
    ],
)
def test_a_value_of_a_wrong_type_is_named_with_what_was_expected(values: dict, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Bake(**values)
    assert str(caught.value) == said


def test_a_whole_number_is_a_number() -> None:
    assert Bake(minutes=5).minutes == 5


@pytest.mark.parametrize(
    ("spec", "how", "expected"),
    [
        (Bake(), {}, "bake"),
        (Bake("plum pie", minutes=1.5, fan=False), {}, "bake 'plum pie' --max-time 1.5 --no-fan"),
        (Bake(nuts=True, heat_c=200), {}, "bake --heat-c 200 --nuts"),
        (Bake(), {"always": {"minutes"}}, "bake --max-time 30"),
        (Bake(confirm="a,b"), {}, "bake --confirm a --confirm b"),
        (Bake(confirm=["a b"]), {}, "bake --confirm 'a b'"),
        (Bake(confirm="a", nuts=True), {"without": {"confirm"}}, "bake --nuts"),
        (Bake(kept="x"), {}, "bake"),
    ],
)
def test_the_command_that_repeats_it_has_what_is_not_the_default(spec: Bake, how: dict, expected: str) -> None:
    assert command(["bake"], spec, **how) == expected


@dataclass(frozen=True)
class Oven:
    minutes: float
    confirm: tuple[str, ...] = ()
    door: str = "shut"


def test_a_record_takes_the_fields_that_it_has_too_and_names_as_a_tuple() -> None:
    assert narrowed(Oven, Bake(minutes=2.0, confirm="a, b")) == Oven(2.0, ("a", "b"))
    assert narrowed(Oven, Bake(), door="open", minutes=1.0) == Oven(1.0, (), "open")


def test_names_and_texts_are_one_or_several() -> None:
    assert names("a, b,,") == names(["a", " b "]) == ("a", "b")
    assert texts("SELECT 1, 2") == ("SELECT 1, 2",) and texts(["a", Path("b")]) == ("a", Path("b"))


def test_pairs_are_a_mapping_or_texts() -> None:
    assert pairs(["work_mem=64MB", "a = b=c "], "--set") == {"work_mem": "64MB", "a": "b=c"}
    assert pairs({"a": 1}, "--set") == {"a": 1} and pairs(None, "--set") == {}
    with pytest.raises(UsageError, match=r"^--set work_mem; expected NAME=VALUE$"):
        pairs(["work_mem"], "--set")
