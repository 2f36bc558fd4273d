"""The page of a watch for whoever is on call: `watch.html` in its folder, written anew as it goes on.

    python -m perfkit.report.dashboard FOLDER

It requests nothing and runs nothing; while the watch goes on it loads itself again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from perfkit.bundle import reading, write_atomically
from perfkit.display import dashboard
from perfkit.display.dashboard_server import server
from perfkit.display.html import escape
from perfkit.display.html import page as html_page
from perfkit.errors import PerfkitError
from perfkit.monitor import store
from perfkit.monitor.model import Record
from perfkit.monitor.period import DAY_S, Period, lasting
from perfkit.monitor.standing import HOUR_S, Standing, standing
from perfkit.report import watch_panels
from perfkit.report.watch_chart import draw, legend
from perfkit.text import visible

NAME = "watch.html"
LEAST_S = 30.0  # between two pages


def write(folder: Path) -> Path:
    """Write the page of a watch's folder as it is now; returns its path. Raises PerfkitError for what is no watch."""
    record = store.read(folder)
    path = folder / NAME
    running = store.held(folder)
    with reading(folder):  # figures that no clock and no chart can show
        text = page(record, time.time(), running=running)
    write_atomically(path, text)
    return path


def page(record: Record, now: float, *, running: bool) -> str:
    """The page as of `now` (wall clock, seconds since 1970); `running`: somebody watches still."""
    every_s = max(LEAST_S, record.about.every_s)
    title = record.about.title
    if not record.ticks:
        content = f"<h1>{escape(title)}</h1><p>The watch has no interval yet.</p>"
    else:
        content = "".join(_sections(standing(record, now, running=running), every_s))
    return html_page(f"{title}: watch", f"<main>{content}</main>", again_s=every_s if running else 0.0)


def _sections(found: Standing, every_s: float) -> Iterator[str]:
    yield dashboard.banner(found, every_s).html
    now = f"{dashboard.overview(found).to_html()}{dashboard.items(found).to_html()}"
    yield f'<div class="columns"><div>{now}</div><div>{server(found).to_html()}</div></div>'
    hour, *day = _periods(found)
    yield _panels(found, hour, "hour")
    yield dashboard.events(found).to_html()
    yield from (_panels(found, period, "day") for period in day)


def _panels(found: Standing, period: Period, slug: str) -> str:
    drawn = "".join(draw(panel, period) for panel in watch_panels.panels(found, period, slug))
    title = escape(f"Last {lasting(period.seconds)}")
    return (
        f'<section aria-label="{title}"><h2>{title}</h2><div class="gallery panels">{drawn}{legend()}</div></section>'
    )


def _periods(found: Standing) -> Iterator[Period]:
    """The last hour, and the last day where the watch is longer than an hour."""
    yield found.period(HOUR_S)
    if found.whole.seconds > HOUR_S + found.last.seconds:
        yield found.period(DAY_S)


def main() -> None:
    """Write the page of the folder that is named; one line and status 1 where that cannot be done."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m perfkit.report.dashboard FOLDER")
    try:
        write(Path(sys.argv[1]))
    except PerfkitError as error:
        sys.exit(visible(error))
    except OSError as error:
        sys.exit(visible(f"{sys.argv[1]}: {error.strerror or error}; expected the folder of a watch, to be written to"))


if __name__ == "__main__":
    main()
