"""What belongs to a release beside what is measured: questions for people, plan, risks, who signs."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, model_validator

from perfkit.config.fields import Label, Model, require_different


def _as_text(value: object) -> object:
    """A date of TOML as text; anything else is left to the type to judge."""
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value


When = Annotated[str, BeforeValidator(_as_text)]


class Question(Model):
    """Something that only people can say; unanswered it leaves the decision open, a no forbids it."""

    name: Label
    """What is asked: "Team ready for launch"."""
    answer: Literal["", "yes", "no"] = ""
    """What was said; `perfkit gate --answer` says it for one run."""
    by: str = ""
    """Who said it."""
    on: When = ""
    """When."""

    @model_validator(mode="after")
    def _said(self) -> Question:
        if self.answer and not self.by.strip():
            raise ValueError(f"by, who said answer = {self.answer!r}")
        return self


class PlanStep(Model):
    """One line of the plan of the release, shown and not carried out."""

    action: Label
    """What is done."""
    time: str = ""
    """How long it takes, as planned."""
    when: When = ""
    """When it is done."""
    risk: str = ""
    """What it may break."""
    rollback: str = ""
    """How it is taken back."""
    measures: tuple[str, ...] = ()
    """Claims of the configuration, by their text, whose measured values are shown beside it."""


class Risk(Model):
    """One risk of the release, shown with what was measured of it."""

    name: Label
    """What might happen."""
    severity: Literal["low", "medium", "high"]
    """How bad it would be, as judged beforehand."""
    mitigation: tuple[str, ...] = ()
    """What is done against it."""
    measures: tuple[str, ...] = ()
    """Claims of the configuration, by their text, whose measured values are shown beside it."""


class Release(Model):
    """What a decision to ship needs beside measurements."""

    monitoring: bool = False
    """Whether a watch must be running for a GO: `perfkit gate --watch FOLDER`."""
    sign_off: tuple[Label, ...] = ()
    """Who signs the printed decision."""
    question: tuple[Question, ...] = ()
    """What people are asked."""
    step: tuple[PlanStep, ...] = ()
    """The plan."""
    risk: tuple[Risk, ...] = ()
    """The risks."""

    @model_validator(mode="after")
    def _names(self) -> Release:
        require_different("questions", [question.name for question in self.question])
        return self
