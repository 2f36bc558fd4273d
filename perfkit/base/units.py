"""Numbers as people read them: three significant digits, with a unit, and a sign for infinity and for no value."""

from __future__ import annotations

import math

from perfkit.base.stats import MIN_SAMPLES, Interval, Ratio

NONE = "–"


def unbroken(text: str) -> str:
    """Return the text with no-break spaces, so that it stays on one line."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


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


def interval(lo: float, hi: float) -> str:
    """Return both ends of a 95 % interval, without a place for a line break.

    >>> interval(1.234, math.inf).split()
    ['[1.23,', '∞]']
    """
    return unbroken(f"[{significant(lo)}, {significant(hi)}]")


def estimate(value: Interval | None) -> tuple[str, str]:
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


def percent(share: float) -> str:
    """Return a share of 1 as a percentage.

    >>> percent(0.001), percent(0.0)
    ('0.100 %', '0 %')
    """
    return f"{significant(share * 100)} %"


def size(number: float) -> str:
    """Return a number of bytes in the unit that PostgreSQL would use (1 kB = 1024 bytes).

    >>> size(340 * 1024), size(512), size(96_000_000)
    ('340 kB', '512 B', '91.6 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000 or unit == "GB":
            break
        number /= 1024
    return f"{number:.0f} B" if unit == "B" else f"{significant(number)} {unit}"


def millis(ms: float) -> str:
    """Return a time in ms with as many digits as a sentence needs.

    >>> millis(0.1234), millis(12.34), millis(12345)
    ('0.12 ms', '12 ms', '12,345 ms')
    """
    return f"{ms:,.0f} ms" if ms >= 10 else f"{ms:.2g} ms"


def seconds(value: float) -> str:
    """Return a duration in seconds, or in ms below one second.

    >>> seconds(0.0123), seconds(75.2)
    ('12.3 ms', '75.2 s')
    """
    return f"{significant(value * 1000)} ms" if abs(value) < 1 else f"{significant(value)} s"
