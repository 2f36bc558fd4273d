"""Numbers as findings say them, and whether a cost is worth a word."""

from __future__ import annotations

import re
from collections.abc import Mapping

from perfkit.explain.findings.model import FindingContext
from perfkit.explain.plan import Node
from perfkit.numbers import millis

_UNITS = {"": 1.0, "kb": 1.0, "b": 1 / 1024, "mb": 1024.0, "gb": 1024.0**2, "tb": 1024.0**3}  # of work_mem, in kB


def worth(look: FindingContext, ms: float) -> bool:
    """Whether a cost matters to the execution as a whole; without times, nothing says that it does not."""
    if not look.plan.timed:
        return True
    limits = look.limits
    return ms >= limits.worth_ms and ms >= limits.worth_share * look.plan.execution_ms


def counted(number: float, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "row"), counted(12345, "row"), counted(2, "index")
    ('1 row', '12,345 rows', '2 indexes')
    """
    plural = "" if round(number) == 1 else "es" if noun.endswith(("s", "x")) else "s"
    return f"{number:,.0f} {noun}{plural}"


def size(kb: float) -> str:
    """Memory or disk space.

    >>> size(12), size(4096), size(3.5 * 1024 * 1024)
    ('12 kB', '4 MB', '3.5 GB')
    """
    unit, value = ("kB", kb) if kb < 1024 else ("MB", kb / 1024) if kb < 1024**2 else ("GB", kb / 1024**2)
    return f"{value:,.1f}".removesuffix(".0") + f" {unit}" if value < 10 else f"{value:,.0f} {unit}"


def took(look: FindingContext, ms: float) -> str:
    """A time and its share of the execution, as the end of a sentence; nothing where the plan has no times."""
    if not ms or not look.plan.execution_ms:
        return ""
    return f", {millis(ms)} ({percent(min(1.0, ms / look.plan.execution_ms))} of the execution)"


def percent(share: float) -> str:
    """A share, with two digits that count.

    >>> percent(0.4567), percent(0.00012)
    ('46 %', '0.012 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def memory(settings: Mapping[str, str]) -> float:
    """work_mem in kB: of the plan's settings, which leave out the server's own default of 4 MB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", settings.get("work_mem", "4MB").strip().lower())
    kb = float(found[1]) * _UNITS.get(found[2], 1.0) if found else 4096.0
    return min(max(kb, 64.0), 2.0**31)  # what the server accepts


def rounded(kb: float) -> int:
    """MB, as a power of two that is at least so much."""
    return 1 << max(0, (max(1, int(-(-kb // 1024))) - 1).bit_length())


def inclusive(node: Node) -> float:
    """Time of a node with all below; 0 without times."""
    return node.inclusive_ms or 0.0


def child(node: Node, relationship: str) -> Node | None:
    """The child of a kind; None where the plan has none."""
    return next((below for below in node.children if below.relationship == relationship), None)
