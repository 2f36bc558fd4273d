"""How often the verdict is wrong: identical arms called different, a true +30 % not found.

Quick runs (6 blocks) of the booking system with three arms: `before`, `control` (identical) and `slower`,
whose appointments table has 30 % more rows. The conflict check reads it all, alone and from 5, 10 and 30
connections, released at once or in batches, so the truth is known: a ratio of 1, and a ratio of 1.3.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from perfkit import config
from perfkit.analysis import analyse
from perfkit.config import Arm, Scenario
from perfkit.experiment import measure
from perfkit.selection import Options, Selection

RUNS = 8
LEVELS = (
    Scenario(name="one", label="", send=("conflict_check",), requests=10, warm=1),
    Scenario(name="five", label="", send=("conflict_check",), users=5, requests=4, warm=1),
    Scenario(name="ten", label="", send=("conflict_check",), users=10, requests=3, warm=1),
    Scenario(name="thirty", label="", send=("conflict_check",), users=30, requests=2, warm=1),
    Scenario(name="batches", label="", send=("conflict_check",), users=5, batches=6, warm=1),
)
BOOKING = ("single", "ramp-up", "ten", "burst", "sustained")


def verdicts(runs: int = RUNS) -> dict[str, Counter[str]]:
    """Verdicts on the p50 by truth: `alike` (SQL), `alike, HTTP` (bookings) and `+30 %` (SQL)."""
    found: dict[str, Counter[str]] = {"alike": Counter(), "alike, HTTP": Counter(), "+30 %": Counter()}
    booking = config.load()
    before, control = booking.arm[:2]
    slower = Arm(
        name="slower",
        role="after",
        prepare=(Path(__file__).with_name("more_rows.sql"),),
        service=before.service,
    )
    http = booking.model_copy(update={"arm": (before, control)})
    sql = booking.model_copy(
        update={
            "arm": (before, control, slower),
            "scenario": LEVELS,
            "check": (),
            "request": (),
            "service": None,
        }
    )
    with TemporaryDirectory() as folder:
        for number in range(runs):
            options = Options(profile="quick", scale="standard", seed=number)
            for name, settings in (("http", http), ("sql", sql)):
                chosen = options if name == "sql" else replace(options, scale="small", scenarios=BOOKING)
                analysis = analyse(measure(Selection(settings, chosen), Path(folder) / f"{name}{number}"))
                for c in (c for c in analysis.comparisons if c.metric == "p50"):
                    truth = "+30 %" if c.after == "slower" else "alike" if name == "sql" else "alike, HTTP"
                    found[truth][str(c.verdict)] += 1
            sys.stderr.write(f"run {number + 1} of {runs}: {found}\n")
    return found


def main() -> bool:
    """Print the counts; True where they keep the promise."""
    found = verdicts()
    good = True
    for truth, counts in found.items():
        total = counts.total()
        print(f"{truth:12} {total:3} comparisons: {dict(counts)}")
        if truth == "+30 %":
            good &= counts["slower"] >= 0.8 * total
        else:
            good &= counts["faster"] + counts["slower"] <= 5 * total / 40
    return good
