"""Options of a verb: a spec is a frozen dataclass whose fields carry help, name and form as metadata.

The command line, the magics, the check of a notebook's parameters, the command that repeats a run and docs/cli.md are
made from these fields, so that an option is stated once. A spec is no pydantic model: that would double the start-up
of a command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import wraps
from inspect import cleandoc, signature
from pathlib import Path
from shlex import join
from textwrap import wrap
from typing import Any, ClassVar, ParamSpec, Protocol, TypeVar, cast, overload

from perfkit.base.errors import UsageError

Names = str | Sequence[str]
Text = str | Path  # SQL, or the name of a file with SQL
Texts = Text | Sequence[Text]
_P = ParamSpec("_P")
_R = TypeVar("_R")
_S = TypeVar("_S")
_Given = TypeVar("_Given", contravariant=True)
_Result = TypeVar("_Result", covariant=True)
_T = TypeVar("_T")
_TYPES: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "None": (type(None),),
    "Path": (Path,),
    "Names": (str, list, tuple),
    "Text": (str, Path),
    "Mapping": (Mapping,),
    "Texts": (str, Path, list, tuple),
}

_WORDS = {
    "Names": "text, or several",
    "Text": "text or a path",
    "Texts": "text or a path, or several",
    "Path": "a path",
}


@dataclass(frozen=True, slots=True)
class Option:
    """How a field of a spec appears to a user."""

    help: str = ""
    metavar: str = ""
    flag: str = ""  # the name on the command line, if it is not the field's
    choices: tuple[str, ...] = ()
    usual: object = None  # what an empty default stands for, as --help shows it
    least: float | None = None
    argument: bool = False  # on the command line, a value without a name
    required: bool = False

    @property
    def metadata(self) -> Mapping[str, Option]:
        """Return what a dataclass's field keeps: `field(metadata=...)`."""
        return {"option": self}


def about(help: str = "", metavar: str = "", flag: str = "", **form: Any) -> Mapping[str, Option]:
    """Return the metadata of a field that `option` cannot make: one without a default, or one given by position."""
    return Option(help, metavar, flag, **form).metadata


def option(
    default: _T, help: str | Option = "", metavar: str = "", flag: str = "", choices: tuple[str, ...] = ()
) -> _T:
    """Return a field with this default that is an option of its spec."""
    about = help if isinstance(help, Option) else Option(help, metavar, flag, choices)
    return field(default=default, metadata=about.metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The options of a verb. Raises UsageError with every value of a wrong type."""

    LAST: ClassVar[bool] = False  # whether --help lists the fields of this class after those of its subclass

    def __post_init__(self) -> None:
        if wrong := [*self._wrong()]:
            raise UsageError("; ".join(wrong))

    def _wrong(self) -> Iterator[str]:
        for each in fields(self):
            value, kinds = getattr(self, each.name), str(each.type).split(" | ")
            types = [kind for name in kinds for kind in _TYPES.get(name.partition("[")[0], (object,))]
            mistaken = isinstance(value, bool) and not {bool, object}.intersection(types)
            mistaken |= isinstance(value, list | tuple) and not all(isinstance(item, str | Path) for item in value)
            if mistaken or not isinstance(value, tuple(types)):
                yield f"parameter {each.name} = {value!r}; expected {' or '.join(_WORDS.get(k, k) for k in kinds)}"


def listed(spec: type[Spec]) -> dict[str, tuple[Field[object], Option]]:
    """Return the options of a spec by the names of their fields, in the order of --help."""
    classes = [each for each in reversed(spec.__mro__) if issubclass(each, Spec) and each is not Spec]
    shared = [each for each in classes if vars(each).get("LAST")]
    first, *rest = [each for each in classes if each not in shared] or [spec]
    classes = [first, *reversed(shared), *rest]
    by_name = {each.name: each for each in fields(spec)}
    order = [name for each in classes for name in vars(each).get("__annotations__", ())]
    return {name: (by_name[name], by_name[name].metadata["option"]) for name in order
            if name in by_name and "option" in by_name[name].metadata}  # fmt: skip


def flag_of(each: Field[object], about: Option) -> str:
    """Return the name of an option on the command line: `--rtt-ms`; `--no-tls` for what is on by default."""
    name = about.flag or each.name.replace("_", "-")
    return f"--no-{name}" if each.default is True else f"--{name}"


def names(value: Names) -> tuple[str, ...]:
    """Return names as a tuple; a text, which is all that papermill can pass, may hold several with commas."""
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(part.strip() for part in parts if part.strip())


def texts(value: Texts) -> tuple[Text, ...]:
    """Return one text or several as a tuple."""
    return (value,) if isinstance(value, str | Path) else tuple(value)


def pairs(value: Mapping[str, _T] | Names | None, flag: str) -> Mapping[str, _T | str]:
    """Return `NAME=VALUE` texts as a mapping. Raises UsageError, which names the option, for another text."""
    if isinstance(value, Mapping):
        return value
    parts = [text.partition("=") for text in ([value] if isinstance(value, str) else value or ()) if text]
    if wrong := [name for name, equals, _ in parts if not equals]:
        raise UsageError(f"{flag} {wrong[0]}; expected NAME=VALUE")
    return {name.strip(): value.strip() for name, _, value in parts}


def command(words: Sequence[str], spec: Spec, *, always: Collection[str] = (), without: Collection[str] = ()) -> str:
    """Return the command that repeats a verb: the values that are not their defaults, or are in `always`."""
    arguments, options = [*words], list[str]()
    for name, (each, about) in listed(type(spec)).items():
        value = getattr(spec, name)
        if name in without or value in ("", None, ()) or (value == each.default and name not in always):
            continue
        several = names(value) if str(each.type) == "Names" else value
        for one in several if isinstance(several, list | tuple) else [value]:
            text = repr(float(one)).removesuffix(".0") if isinstance(one, float) else str(one)
            if about.argument:
                arguments.append(text)
            else:
                options += [flag_of(each, about), *([] if isinstance(one, bool) else [text])]
    given = arguments[len(words) :]
    # SQL may begin with a comment, which is no option.
    dashed = any(text.startswith("-") for text in given)
    return join([*words, *options, "--", *given] if dashed else [*arguments, *options])


def narrowed(kind: Callable[..., _T], spec: object, **values: object) -> _T:
    """Return a record with the fields that a spec has too; `values` win."""
    for each in fields(cast(Any, kind)):
        if each.name not in values and hasattr(spec, each.name):
            value = getattr(spec, each.name)
            values[each.name] = names(value) if str(each.type) in ("tuple[str, ...]", "Sequence[str]") else value
    return kind(**values)


class Call(Protocol[_Given, _P, _Result]):
    """A call that takes a spec, or the fields of the spec as keywords."""

    @overload
    def __call__(self, spec: _Given, /) -> _Result: ...
    @overload
    def __call__(self, *args: _P.args, **options: _P.kwargs) -> _Result: ...


def documented(text: str, spec: type[Spec]) -> str:
    """Return a docstring with the section "Parameters", in numpy's style: each field with type, default and help."""
    lines = ["Parameters", "----------"]
    for each in sorted(fields(spec), key=lambda each: each.kw_only is True):
        about = each.metadata.get("option", Option(each.metadata.get("help", "")))
        kind = " | ".join(_WORDS.get(name, name) for name in str(each.type).split(" | "))
        kind = f"{{{', '.join(map(repr, about.choices))}}}" if about.choices else kind
        lines.append(f"{each.name} : {kind}" + ("" if each.default is MISSING else f", default {each.default!r}"))
        meaning = f"With False: {about.help}" if each.default is True and "option" in each.metadata else about.help
        words = re.sub(r"--([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), meaning)
        words = words.replace(" Repeatable.", "").replace("%(default)s", str(each.default))
        lines += wrap(words, 110, initial_indent="    ", subsequent_indent="    ")
    head, heading, rest = cleandoc(text).partition("\nReturns\n")
    return "\n".join([head.rstrip(), "", *lines, heading.rstrip("\n"), rest]).rstrip() + "\n"


def takes(spec: Callable[_P, _S]) -> Callable[[Callable[[_S], _R]], Call[_S, _P, _R]]:
    """Let a call take the fields of its spec as keywords."""

    def decorate(function: Callable[[_S], _R]) -> Call[_S, _P, _R]:
        @wraps(function)
        def call(*args: Any, **options: Any) -> _R:
            made = len(args) == 1 and not options and isinstance(args[0], cast(type, spec))
            return function(args[0] if made else spec(*args, **options))

        call.__doc__ = documented(function.__doc__ or "", cast("type[Spec]", spec))
        returned = signature(function).return_annotation
        call.__signature__ = signature(spec).replace(return_annotation=returned)  # type: ignore[attr-defined]
        return cast("Call[_S, _P, _R]", call)

    return decorate
