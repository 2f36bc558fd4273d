"""Numbers as people read them: three significant digits, the unit named, infinity and absence in words."""

from __future__ import annotations

import math

from perfkit.base.stats import MIN_SAMPLES, Interval, Ratio

NONE = "–"


def unbroken(text: str) -> str:
    """Text that stays on one line."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def significant(value: float, digits: int = 3) -> str:
    """A number with three significant digits and no exponent, thousands grouped.

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
    """Both ends of a 95 % interval, which no line break may part.

    >>> interval(1.234, math.inf).split()
    ['[1.23,', '∞]']
    """
    return unbroken(f"[{significant(lo)}, {significant(hi)}]")


def estimate(found: Interval | None) -> tuple[str, str]:
    """An estimate in its own unit and its interval; dashes where there is none."""
    return (significant(found.value), interval(found.lo, found.hi)) if found else (NONE, "")


def ratio(found: Ratio | None) -> tuple[str, str]:
    """A ratio after/before and its interval; a dash where there is none."""
    return (f"×{significant(found.value)}", interval(found.lo, found.hi)) if found else (NONE, "")


def too_few(n: int, q: int) -> str:
    """Why a percentile is missing.

    >>> " ".join(too_few(40, 95).split())
    'not enough samples (40 of 72)'
    """
    return f"{unbroken('not enough samples')} {unbroken(f'({n} of {MIN_SAMPLES[q]})')}"


def count(value: float) -> str:
    """A whole number, thousands grouped."""
    return f"{value:,.0f}"


def percent(share: float) -> str:
    """A share of one as a percentage.

    >>> percent(0.001), percent(0.0)
    ('0.100 %', '0 %')
    """
    return f"{significant(share * 100)} %"


def size(number: float) -> str:
    """Bytes in the unit PostgreSQL would use (1 kB = 1024 bytes).

    >>> size(340 * 1024), size(512), size(96_000_000)
    ('340 kB', '512 B', '91.6 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000 or unit == "GB":
            break
        number /= 1024
    return f"{number:.0f} B" if unit == "B" else f"{significant(number)} {unit}"


def millis(ms: float) -> str:
    """A time in ms with as many digits as a sentence needs.

    >>> millis(0.1234), millis(12.34), millis(12345)
    ('0.12 ms', '12 ms', '12,345 ms')
    """
    return f"{ms:,.0f} ms" if ms >= 10 else f"{ms:.2g} ms"


def seconds(value: float) -> str:
    """A duration given in seconds, in ms below one second.

    >>> seconds(0.0123), seconds(75.2)
    ('12.3 ms', '75.2 s')
    """
    return f"{significant(value * 1000)} ms" if abs(value) < 1 else f"{significant(value)} s"
