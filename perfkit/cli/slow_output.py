"""How slow statements and what runs now are printed: for a terminal, for programs, as a page."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from perfkit.cli.group import echo
from perfkit.text import visible

if TYPE_CHECKING:
    from perfkit.slow.activity import Activity
    from perfkit.slow.model import SlowQueries, SlowStatement

_UNUSUAL = (100, 50)  # columns and lines where no terminal tells


def show(found: SlowQueries, limit: int, *, as_json: bool = False, again: bool = False) -> None:
    """Print the first `limit` statements; `again` in place of what was printed before."""
    from perfkit.display.slow import SlowView

    if as_json:
        click.echo(line(told(found, limit)))
    else:
        _print(SlowView(found, limit).text(_columns()), again=again)


def show_activity(found: Activity, *, as_json: bool) -> None:
    """Print what runs now in place of what was printed before, or as one line of JSON."""
    from perfkit.display.activity import ActivityView

    if as_json:
        click.echo(line(asdict(found)))
    else:
        _print(ActivityView(found).text(_columns()), again=True)


def write(path: Path, found: SlowQueries, limit: int) -> None:
    """Write them as one page that requests nothing. Raises BundleError."""
    from perfkit.bundle import write_atomically
    from perfkit.display import html
    from perfkit.display.slow import SlowView

    write_atomically(path, html.page("Slow statements", SlowView(found, limit).html()))


def told(found: SlowQueries, limit: int) -> dict[str, Any]:
    """What --json prints, as `perfkit slow --help` says."""
    whole = {name: getattr(found, name) for name in ("source", "since", "until", "total_ms", "unread", "notes")}
    statements = [_statement(found, own, position) for position, own in enumerate(found.statements[:limit], 1)]
    return {**whole, "count": len(found.statements), "statements": statements}


def line(value: Any) -> str:
    """One line of JSON in ASCII, for a terminal may be steered by more."""
    return json.dumps(value, default=_plain, allow_nan=False)


def _statement(found: SlowQueries, statement: SlowStatement, position: int) -> dict[str, Any]:
    own = {field.name: getattr(statement, field.name) for field in fields(statement) if field.name != "plan"}
    own["example"] = asdict(statement.example) if statement.example else None
    return {"position": position, **own, "mean_ms": statement.mean_ms, "share": found.share(statement)}


def _plain(value: Any) -> Any:
    """What JSON has no word for: times in ISO 8601, mappings that are no dict."""
    return value.isoformat() if isinstance(value, datetime) else dict(value)


def _print(text: str, *, again: bool) -> None:
    if not again:
        echo(text)
    elif not sys.stdout.isatty():
        echo(f"{text}\n")
    else:  # home, every line cleared to its end, and all below: nothing flickers
        columns, lines = shutil.get_terminal_size(_UNUSUAL)
        shown = [visible(own)[:columns] for own in text.splitlines()[: lines - 1]]
        click.echo("\x1b[H" + "".join(f"{own}\x1b[K\n" for own in shown) + "\x1b[J", nl=False)


def _columns() -> int:
    return shutil.get_terminal_size(_UNUSUAL).columns if sys.stdout.isatty() else _UNUSUAL[0]
