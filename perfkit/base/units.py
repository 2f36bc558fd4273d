"""Numbers, times and durations as people read them, one form for each kind, and a sign for infinity and for no value.

A measured number has three significant digits (in a sentence without zeros at the end), a share two. A number that
somebody wrote keeps its digits (`exact`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime

from perfkit.base.errors import UsageError
from perfkit.base.stats import MIN_SAMPLES, Estimate, Ratio

NONE = "–"
DAY_S = 86_400.0
_NEAREST = 1e-7  # percent; a share that is nearer to 0 or 1 is shown as "<" or ">" this
_TIME_UNITS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": DAY_S}


def unbroken(text: str) -> str:
    """Return the text with no-break spaces, so that it stays on one line."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def some(names: Iterable[str], most: int = 3) -> str:
    """Return the first of several names and the number of the others.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    every = list(names)
    rest = len(every) - most
    return ", ".join(every[:most]) + (f" and {rest} more" if rest > 0 else "")


def significant(value: float, digits: int = 3) -> str:
    """Return a number with three significant digits, grouped thousands and no exponent.

    >>> [significant(v) for v in (0.04567, 0.4, 12.34, 999.6, 12345.0, 0.0, math.inf)]
    ['0.0457', '0.400', '12.3', '1,000', '12,300', '0', '∞']
    """
    if not math.isfinite(value):
        return NONE if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{min(places, 6)}f}"


def number(value: float, limit: float = math.nan) -> str:
    """Return a number for a sentence: three significant digits, or as many as keep it on its side of the limit.

    >>> number(363.1, 500.0), number(499.96, 500.0), number(499.6, 499.8), number(0.4), number(3e-8)
    ('363', '499.96', '499.6', '0.4', '3e-08')
    """
    if 0 < abs(value) < 1e-6:
        return f"{value:.2g}"

    def side(of: float) -> int:
        return (of > limit) - (of < limit)

    digits = next((n for n in range(3, 18) if side(float(f"{value:.{n - 1}e}")) == side(value)), 3)
    return _shortened(significant(value, digits))


def exact(value: float) -> str:
    """Return a number with the digits that it was written with, and grouped thousands.

    >>> exact(500.0), exact(0.125), exact(12000)
    ('500', '0.125', '12,000')
    """
    return f"{value:,.10g}"


def interval(lo: float, hi: float) -> str:
    """Return both ends of a 95 % interval, without a place for a line break.

    >>> interval(1.234, math.inf).split()
    ['[1.23,', '∞]']
    """
    return unbroken(f"[{significant(lo)}, {significant(hi)}]")


def estimate(value: Estimate | None) -> tuple[str, str]:
    """Return an estimate without its unit, and its interval; a dash if there is no estimate."""
    return (significant(value.value), interval(value.lo, value.hi)) if value else (NONE, "")


def ratio(value: Ratio | None) -> tuple[str, str]:
    """Return a ratio after/before, and its interval; a dash if there is no ratio."""
    return (f"×{significant(value.value)}", interval(value.lo, value.hi)) if value else (NONE, "")


def too_few(n: int, q: int) -> str:
    """Return the reason why a percentile is missing.

    >>> " ".join(too_few(40, 95).split())
    'not enough samples (40 of 72)'
    """
    return f"{unbroken('not enough samples')} {unbroken(f'({n} of {MIN_SAMPLES[q]})')}"


def count(value: float) -> str:
    """Return a whole number with grouped thousands."""
    return f"{value:,.0f}"


def counted(number: float, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "row"), counted(12345, "row"), counted(2, "index"), counted(8, "batch")
    ('1 row', '12,345 rows', '2 indexes', '8 batches')
    """
    plural = "" if round(number) == 1 else "es" if noun.endswith(("s", "x", "ch")) else "s"
    return f"{number:,.0f} {noun}{plural}"


def percent(share: float, *, up: bool = False) -> str:
    """Return a share of 1 as a percentage: two significant digits of the share or of the rest to 1, the smaller one.

    Only 1 reads as 100 %, and only 0 as 0 %: a service that was up for all but a minute was not up 100 % of the time.
    With `up`, round up: "below 0.30 %" would be wrong for a bound of 0.302 %.

    >>> [percent(share) for share in (0.4567, 0.00012, 0.956, 0.99957, 1.0, 1.234, 0.0)]
    ['46 %', '0.012 %', '95.6 %', '99.957 %', '100 %', '123 %', '0 %']
    >>> percent(0.00302), percent(0.00302, up=True)
    ('0.3 %', '0.31 %')
    """
    if not math.isfinite(share):
        return f"{significant(share)} %"
    value, nearest = 100 * share, 100.0 if share > 0.5 else 0.0
    distance = abs(100 * (share - nearest / 100))
    if 0 < distance < _NEAREST:
        above = share > nearest / 100
        return f"{'<' if above else '>'}{_plain(nearest + (_NEAREST if above else -_NEAREST), 7)} %"
    places = 1 - math.floor(math.log10(distance)) if distance else 0
    # A value that has these digits already, but for the last bit of a float, stays.
    raised = math.ceil(value * 10.0**places - 1e-6) / 10.0**places
    return f"{_plain(raised if up else value, places)} %"


def exact_percent(share: float) -> str:
    """Return a share that somebody wrote as a percentage with all its digits.

    >>> exact_percent(0.9995), exact_percent(0.00125)
    ('99.95 %', '0.125 %')
    """
    return f"{exact(100 * share)} %"


def size(number: float) -> str:
    """Return a number of bytes in the unit that PostgreSQL would use (1 kB = 1024 bytes).

    >>> size(340 * 1024), size(512), size(96_000_000), size(4 * 1024**2)
    ('340 kB', '512 B', '91.6 MB', '4 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000 or unit == "GB":
            break
        number /= 1024
    return f"{number:.0f} B" if unit == "B" else f"{_shortened(significant(number))} {unit}"


def millis(ms: float) -> str:
    """Return a time in ms.

    >>> millis(0.1234), millis(12.0), millis(12345)
    ('0.123 ms', '12 ms', '12,300 ms')
    """
    return f"{number(ms)} ms"


def server_ms(ms: float) -> str:
    """Return milliseconds of the server without their unit: three digits, rounded to the microsecond as it rounds them.

    >>> server_ms(0.0174), server_ms(31.76), server_ms(12345.6), server_ms(0.0)
    ('0.017', '31.8', '12,300', '0')
    """
    return significant(ms) if ms >= 1 else f"{ms:.3f}" if ms >= 0.0005 else "0"


def seconds(value: float) -> str:
    """Return a duration in seconds, or in ms below one second.

    >>> seconds(0.0123), seconds(75.2)
    ('12.3 ms', '75.2 s')
    """
    return millis(value * 1000) if abs(value) < 1 else f"{number(value)} s"


def _plain(value: float, places: int) -> str:
    return _shortened(f"{value:,.{max(0, places)}f}")


def _shortened(text: str) -> str:
    """Return a number without zeros at the end of its decimals."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_duration(text: str, name: str) -> float:
    """Return the seconds of "90s", "30min", "24h" or "2d"; errors quote `name`. Raises UsageError.

    >>> parse_duration("1.5h", "last")
    5400.0
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|m|h|d)\s*", text)
    if not match or not float(match[1]):
        raise UsageError(f"{name} = '{text}'; expected a time like 90s, 24h or 2d")
    return float(match[1]) * _TIME_UNITS[match[2]]


def parse_time(text: str, name: str) -> float:
    """Return the seconds since 1970 of a time in ISO 8601, by default UTC. Raises UsageError."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{name} = '{text}'; expected a time like 2026-01-15T09:00") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def clock(at: float, *, day: bool = True) -> str:
    """Return date and time of day in UTC, or the time of day with seconds.

    >>> clock(0.0), clock(61.0, day=False)
    ('1970-01-01 00:00', '00:01:01')
    """
    time = datetime.fromtimestamp(round(at), UTC)
    return f"{time:%Y-%m-%d %H:%M}" if day else f"{time:%H:%M:%S}"


def stamp(at: float) -> str:
    """Return date and time of day to the second in UTC; `at` is in seconds since 1970.

    >>> stamp(61.0)
    '1970-01-01 00:01:01'
    """
    return f"{clock(at)[:10]} {clock(at, day=False)}"


def duration_text(seconds: float) -> str:
    """Return a duration in words, in at most two units.

    >>> [duration_text(s) for s in (0.25, 1.5, 42, 150, 3 * 3600 + 240, DAY_S, 9e5)]
    ['0.25 s', '1.5 s', '42 s', '2 min 30 s', '3 h 4 min', '24 h', '10 days 10 h']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s" if 0 < seconds < 9.5 else f"{whole} s"
    names, size, part = ("min", "s"), 60, 1
    if whole >= 3600:
        names, size, part = (("h", "min"), 3600, 60) if whole < 4 * DAY_S else (("days", "h"), 86_400, 3600)
    rest = whole % size // part
    return f"{whole // size} {names[0]}" + (f" {rest} {names[1]}" if rest else "")
