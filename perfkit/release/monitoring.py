"""Whether a watch is alive: its last interval is recent, and its metrics answer where it offers any."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from perfkit.analysis.cautions import some
from perfkit.monitor import store
from perfkit.monitor.model import METRICS, Record
from perfkit.monitor.standing import MISSED
from perfkit.release.gate import WatchState

_ENDPOINT = re.compile(r"http://(?:127\.0\.0\.1|localhost|\[::1\]):\d{1,5}/metrics")  # this machine alone is asked
_TIMEOUT_S = 5.0


def look(folder: Path, now: Callable[[], float] = time.time) -> WatchState:
    """What a watch's folder says at this moment. Raises PerfkitError for a folder that is no watch's."""
    record = store.read(folder)
    title, every = record.about.title, record.about.every_s
    if not record.ticks:
        return WatchState(False, "no interval yet", f"The watch of {title} has not recorded an interval yet.")
    age = now() - record.ticks[-1].at
    if age <= -MISSED * every:
        text = f"The last interval of the watch of {title} ends {-age:.0f} s from now: a clock is wrong."
        return WatchState(False, "in the future", text)
    said = f"The last interval of the watch of {title} ended {age:.0f} s ago; its intervals are {every:g} s long"
    if age >= MISSED * every:
        return WatchState(False, f"{age:.0f} s old", f"{said}, so it does not run.")
    endpoint = _endpoint(record)
    if endpoint and (trouble := _unanswered(endpoint)):
        return WatchState(False, f"{age:.0f} s old", f"{said}, but its metrics at {endpoint} do not answer: {trouble}.")
    metrics = ", and its metrics answer" if endpoint else ""
    return WatchState(True, f"{age:.0f} s old", f"{said}{metrics}. {_alerts(record)}")


def _alerts(record: Record) -> str:
    """The alerts that stand: they forbid nothing, for the watch may be of what is to be replaced."""
    names = some(f"{event.level} {event.rule}" for event in record.standing)
    return f"Alerts that stand: {names}." if names else "No alert stands."


def _endpoint(record: Record) -> str:
    """Where the watch said, the last time that it began, that its metrics are."""
    for event in reversed(record.events):
        if event.what == "note" and event.id.startswith(f"note-{METRICS}-"):
            return found[0] if (found := _ENDPOINT.search(event.text)) else ""
    return ""


def _unanswered(endpoint: str) -> str:
    """Why an endpoint did not answer; empty where it did."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(endpoint, timeout=_TIMEOUT_S) as answer:
            return "" if answer.status == 200 else f"HTTP {answer.status}"
    except (OSError, ValueError, urllib.error.HTTPError) as error:
        return str(getattr(error, "reason", None) or error)
