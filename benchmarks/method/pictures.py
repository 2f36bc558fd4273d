"""The pictures of docs/method.md: each with the words that a reader who cannot see it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from benchmarks.method import simulation
from benchmarks.method.simulation import Power
from perfkit.base import judgement, stats
from perfkit.show.charts import BLUE, GREEN, INK, ORANGE, VIOLET, Picture

_SPREADS = ((GREEN, "-", "o"), (BLUE, "--", "s"), (ORANGE, "-.", "^"), (VIOLET, ":", "D"))
# Alone in a page an <img> has no colour to take from it.
_ALONE = "<style>.chart{color:#1f2328;background:#fff}</style>"


def _picture(slug: str, title: str, finding: str, draw: Callable[[Axes], None]) -> str:
    svg = Picture(slug, title, finding, draw).svg
    return svg.replace("</desc>", f"</desc>{_ALONE}", 1) + "\n"


def request() -> str:
    """The instants of one request and what lies between them."""
    instants = {"scheduled": 0.0, "started": 2.0, "connection\nacquired": 4.2, "done": 10.0}
    bars = (
        ("response time: what a user waits", 0.0, 10.0, ORANGE),
        ("service time", 2.0, 10.0, BLUE),
        ("schedule lag", 0.0, 2.0, VIOLET),
        ("pool wait", 2.0, 4.2, VIOLET),
        ("network, server, answer", 4.2, 10.0, GREEN),
    )

    def draw(ax: Axes) -> None:
        ax.set_axis_off()
        ax.set_xlim(-0.6, 10.6)
        ax.set_ylim(0.4, 4.6)
        for name, at in instants.items():
            ax.plot([at, at], [0.9, 3.7], color=INK, linewidth=0.6, linestyle=(0, (2, 2)))
            ax.text(at, 3.8, name, ha="center", va="bottom")
        for (name, start, end, colour), height in zip(bars, (3.1, 2.1, 1.1, 1.1, 1.1), strict=True):
            ax.plot([start, end], [height, height], color=colour, linewidth=5, solid_capstyle="butt")
            clear = start if end < 10 else 4.2  # of the dotted lines
            ax.text((clear + end) / 2, height - 0.2, name, ha="center", va="top")

    finding = (
        "Four instants in a row: scheduled, started, connection acquired, done. Response time runs from scheduled to "
        "done, service time from started to done, schedule lag from scheduled to started, pool wait from started to "
        "connection acquired; from then to done are the network, the server and the answer."
    )
    return _picture("request", "One request", finding, draw)


def lock() -> str:
    """Response times of the closed and the open model past the same lock."""
    models = (
        (f"closed: {simulation.USERS} users", simulation.closed_model()),
        (f"open: {simulation.RATE} a second", simulation.open_model()),
    )

    def draw(ax: Axes) -> None:
        for panel, (name, model), colour in zip(_panels(ax, 2), models, (BLUE, ORANGE), strict=True):
            slow = model.took > 0.1
            dots = slow | (np.arange(len(slow)) % (len(slow) // 100) == 0)  # of the many alike a hundred will do
            panel.plot(model.due[dots], model.took[dots], "o", color=colour, markersize=2.5)
            panel.set(title=name, xlim=(-0.3, simulation.RUN_S), ylim=(-0.02, 1.15), xlabel="when it was due, s")
            panel.xaxis.set_major_locator(FixedLocator([0, 3, 6, 9, 12]))
            panel.text(6.3, 0.7, f"{slow.sum()} of {len(slow):,}\ntook over 0.1 s")
        panel.set_yticklabels([])
        ax.text(-0.045, 1.0, "s", ha="right", va="bottom")

    finding = (
        "Simulated response times while a lock is held from second 5 to 6. In the closed model each of 5 users has "
        "one slow request. In the open model every request due in that second waits until its end, a "
        "slope from 1 s down to nothing."
    )
    return _picture("lock", "One second's lock in both models", finding, draw)


def drift() -> str:
    """The same machine, slowing down, measured one arm after the other and interleaved; the arms are the same."""
    rng, blocks = np.random.default_rng(7), 10
    rounds = np.arange(2 * blocks)
    level = 100 * np.exp(0.018 * rounds + rng.normal(0, 0.03, 2 * blocks))

    def draw(ax: Axes) -> None:
        for panel, interleaved in zip(_panels(ax, 2), (False, True), strict=True):
            after = _second(blocks) if interleaved else rounds >= blocks
            found = stats.ratio(level[~after], level[after])
            assert found
            panel.plot(rounds[~after], level[~after], "o", color=BLUE, markersize=4)
            panel.plot(rounds[after], level[after], "^", color=ORANGE, markersize=4.5)
            panel.set(title="interleaved" if interleaved else "one after the other", ylim=(80, 170), xlabel="round")
            panel.text(0, 157, f"after/before {found.value:.2f} ({found.lo:.2f} to {found.hi:.2f})")
        panel.set_yticklabels([])
        ax.text(-0.045, 1.0, "ms", ha="right", va="bottom")
        ax.text(0.02, 0.05, "● before  ▲ after", transform=ax.transAxes)

    finding = (
        "Simulated medians of rounds on a machine that slows down by 1.8 % a round; nothing else differs between the "
        "arms. Measured one after the other, after looks a fifth slower. Interleaved, the interval holds 1."
    )
    return _picture("drift", "The same drift in two orders", finding, draw)


def _second(blocks: int) -> NDArray[np.bool_]:
    """Which rounds are of the second arm, one of the two in each block at random."""
    first = np.random.default_rng(3).integers(0, 2, blocks).astype(bool)
    return np.column_stack([first, ~first]).ravel()


EXAMPLES = ((0.45, 0.24), (1.22, 0.14), (1.005, 0.05), (0.93, 0.2))


def example(ratio: float, spread: float) -> tuple[stats.Ratio, judgement.Verdict]:
    """Twelve blocks with that ratio and that spread of its log, and what the statistics say of them."""
    logs = math.log(ratio) + spread * np.tile([1.0, -1.0], 6)
    found = stats.ratio(np.ones(12), np.exp(logs))
    assert found
    return found, judgement.verdict(found, found.p, simulation.MARGIN, healthy=True)


def verdicts() -> str:
    """Four intervals and the verdict on each."""
    found = [example(*given) for given in EXAMPLES]

    def draw(ax: Axes) -> None:
        ax.set_xscale("log")
        ax.set_xlim(0.26, 1.5)
        ax.set_ylim(-0.6, 3.9)
        ax.axvspan(1 - simulation.MARGIN, 1 + simulation.MARGIN, color=GREEN, alpha=0.22, linewidth=0)
        ax.axvline(1, color=INK, linewidth=0.8)
        for height, (ratio, verdict) in zip((3, 2, 1, 0), found, strict=True):
            ax.plot([ratio.lo, ratio.hi], [height, height], color=BLUE, linewidth=2.4, marker="|", markersize=9)
            ax.plot(ratio.value, height, "o", color=BLUE, markersize=5)
            words = f"{verdict}: {ratio.value:.2f} ({ratio.lo:.2f} to {ratio.hi:.2f})"
            ax.text(0.27, height + 0.32, words, va="center")
        ax.text(1.06, -0.45, "margin", fontsize=8)
        ax.set_yticks([])
        ax.xaxis.set_major_locator(FixedLocator([0.3, 0.5, 0.7, 1, 1.4]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_xlabel("after / before (less than 1 is faster)")

    finding = "; ".join(f"{verdict}: {ratio.lo:.2f} to {ratio.hi:.2f}" for ratio, verdict in found)
    return _picture("verdicts", "Four intervals and their verdicts", f"{finding}. The margin is 0.95 to 1.05.", draw)


def power(cells: Sequence[Power]) -> str:
    """Share of true changes found, by the number of blocks; a curve for each spread of rounds."""

    def draw(ax: Axes) -> None:
        for panel, change in zip(_panels(ax, 2), simulation.CHANGES, strict=True):
            for spread, (colour, dash, marker) in zip(simulation.ROUND_SDS, _SPREADS, strict=True):
                own = [cell for cell in cells if (cell.change, cell.round_sd) == (change, spread)]
                shares = [cell.alone.value for cell in own]
                blocks = [cell.blocks for cell in own]
                label = f"{100 * spread:.0f} %"
                panel.plot(blocks, shares, color=colour, linestyle=dash, marker=marker, markersize=3.5, label=label)
            panel.axhline(0.8, color=INK, linewidth=0.7, linestyle=(0, (1, 2)))
            panel.set(title=f"true change +{100 * (change - 1):.0f} %", xlim=(4, 50), ylim=(0, 1.03), xlabel="blocks")
            panel.xaxis.set_major_locator(FixedLocator([6, 12, 24, 36, 48]))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        panel.set_yticklabels([])
        panel.legend(title="spread", frameon=False, loc="lower right", fontsize=8)

    finding = (
        "Share of true changes found against the number of blocks, for spreads of 5, 10, 20 and 30 %. More blocks "
        "find more, a larger spread fewer; the figures are in the table of the text."
    )
    return _picture("power", "How often a true change is found", finding, draw)


def _panels(ax: Axes, count: int) -> list[Axes]:
    """Axes side by side in the place of one."""
    ax.set_axis_off()
    width = 1 / count
    panels = [ax.inset_axes((i * width + (0.02 if i else 0), 0, width - 0.02, 0.93)) for i in range(count)]
    for panel in panels:
        panel.patch.set_alpha(0)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(True, linewidth=0.4, alpha=0.25, color=INK)
        panel.title.set_fontsize(9)
    return panels
