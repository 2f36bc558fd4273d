"""Writes what docs/method.md shows of simulations: tables between its markers, and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.method import pictures, simulation
from benchmarks.method.simulation import BLOCKS, CHANGES, ROUND_SDS, Power, Share
from perfkit.base.errors import UsageError


def write(folder: Path, repetitions: int, seed: int, say: Callable[[str], None]) -> list[Path]:
    """Write the generated parts of `folder`/method.md and the pictures in `folder`/method; returns what was written.

    The same repetitions and seed give the same bytes. Raises UsageError where the page or a marker is missing.
    """
    page = folder / "method.md"
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{page}: cannot be read ({error.strerror}); expected the page to write into") from None
    _require_markers(page, text)
    say(f"power: {len(CHANGES) * len(ROUND_SDS) * len(BLOCKS)} cells of {repetitions:,} simulated runs")
    cells = list(simulation.power(repetitions, seed))
    say(f"coverage and designs: {repetitions:,} simulated runs each")
    for name, part in parts(cells, repetitions, seed).items():
        start, end = _marker(name), _marker(f"/{name}")
        text = f"{text.split(start)[0]}{start}\n\n{part}\n\n{end}{text.split(end)[1]}"
    files = {page: text} | {folder / "method" / f"{name}.svg": svg for name, svg in drawn(cells).items()}
    (folder / "method").mkdir(exist_ok=True)
    for path, content in files.items():
        path.write_text(content, encoding="utf-8", newline="\n")
    return list(files)


def drawn(cells: Sequence[Power]) -> dict[str, str]:
    """Every picture by name; only that of the power depends on the simulated cells."""
    return {
        "request": pictures.request(),
        "lock": pictures.lock(),
        "drift": pictures.drift(),
        "verdicts": pictures.verdicts(),
        "power": pictures.power(cells),
    }


PARTS = ("command", "lock", "designs", "coverage", "power", "blocks")


def parts(cells: Sequence[Power], repetitions: int, seed: int) -> dict[str, str]:
    """What stands between the markers, as Markdown, by their names."""
    found = (
        f"`perfkit method --repetitions {repetitions} --seed {seed}`",
        lock(),
        designs(repetitions, seed),
        coverage(repetitions, seed),
        power(cells),
        blocks(cells),
    )
    return dict(zip(PARTS, found, strict=True))


def lock() -> str:
    """Percentiles of both models past the lock."""
    rows = []
    for name, model in (("closed", simulation.closed_model()), ("open", simulation.open_model())):
        p50, p95, p99 = (f"{1000 * value:,.0f} ms" for value in np.percentile(model.took, [50, 95, 99]))
        rows.append((name, f"{len(model.took):,}", p50, p95, p99, f"{1000 * model.took.max():,.0f} ms"))
    return _table(("model", "requests", "p50", "p95", "p99", "longest"), rows)


def designs(repetitions: int, seed: int) -> str:
    """False claims of four ways to compare two arms that are the same."""
    found = [simulation.design(repetitions, seed, interleaved=interleaved) for interleaved in (False, True)]
    rows = [
        ("interleaved" if d.interleaved else "one after the other", _error(d.requests), _error(d.rounds)) for d in found
    ]
    return _table(("order of the rounds", "test on requests", "test on rounds"), rows) + _runs(repetitions)


def coverage(repetitions: int, seed: int) -> str:
    """How many of a hundred intervals hold the truth."""
    rows = []
    for round_sd in (0.0, 0.1, 0.3):
        for count in (6, 12):
            c = simulation.coverage(repetitions, seed, round_sd=round_sd, blocks=count)
            shares = (_error(share) for share in (c.p50, c.p95, c.ratio_p50, c.ratio_p95))
            rows.append((_percent(round_sd), str(count), *shares))
    head = ("spread", "blocks", "p50 of an arm", "p95 of an arm", "ratio of p50", "ratio of p95")
    return _table(head, rows) + _runs(repetitions)


def power(cells: Sequence[Power]) -> str:
    """Share of true changes found when each is judged alone, by blocks."""
    rows = []
    for change in CHANGES:
        for spread in ROUND_SDS:
            own = [cell for cell in cells if (cell.change, cell.round_sd) == (change, spread)]
            rows.append((_percent(change - 1, "+"), _percent(spread), *(_percent(cell.alone.value) for cell in own)))
    repetitions = cells[0].alone.runs
    worst = 100 * _half(Share(repetitions // 2, repetitions))
    note = f"\n\n{repetitions:,} simulated runs per figure: right to {worst:.1f} points or better (95 %)."
    return _table(("true change", "spread", *(f"{n} blocks" for n in BLOCKS)), rows) + note


def blocks(cells: Sequence[Power]) -> str:
    """The fewest blocks that found four of five true changes."""
    rows = []
    for change in CHANGES:
        for spread in ROUND_SDS:
            own = [cell for cell in cells if (cell.change, cell.round_sd) == (change, spread)]
            alone = _fewest((cell.blocks, cell.alone) for cell in own)
            in_table = _fewest((cell.blocks, cell.in_table) for cell in own)
            rows.append((_percent(change - 1, "+"), _percent(spread), alone, in_table))
    return _table(("true change", "spread", "judged alone", f"the only one in a table of {simulation.TABLE}"), rows)


def _fewest(shares: Iterable[tuple[int, Share]]) -> str:
    enough = [blocks for blocks, share in shares if share.value >= 0.8]
    return str(enough[0]) if enough else f"over {BLOCKS[-1]}"


def _percent(share: float, sign: str = "") -> str:
    return f"{sign}{100 * share:.0f} %"


def _error(share: Share) -> str:
    return f"{100 * share.value:.1f} % ± {100 * _half(share):.1f}"


def _half(share: Share) -> float:
    """Half the 95 % interval of what the simulation's own chance leaves open."""
    low, high = share.interval()
    return (high - low) / 2


def _runs(repetitions: int) -> str:
    return f"\n\n{repetitions:,} simulated runs per figure; ± is what their number leaves open (95 %)."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _require_markers(page: Path, text: str) -> None:
    for name in PARTS:
        start, end = _marker(name), _marker(f"/{name}")
        if not (text.count(start) == text.count(end) == 1 and text.index(start) < text.index(end)):
            raise UsageError(f"{page}: part {name}; expected {start} once and {end} once after it")


def _marker(name: str) -> str:
    return f"<!-- {name} -->"
