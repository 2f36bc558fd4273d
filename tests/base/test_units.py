"""Numbers as people read them: a share that is not whole never reads as whole, and a form keeps its value."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from perfkit.base import units

shares = st.floats(0, 1)
numbers = st.floats(1e-5, 1e12)


def value(text: str) -> float:
    return float(text.strip("<>").removesuffix(" %").replace(",", ""))


@given(shares)
@example(0.99957)
@example(math.nextafter(1.0, 0.0))
@example(5e-324)
def test_only_one_reads_as_100_percent_and_only_nothing_as_0_percent(share: float) -> None:
    text = units.percent(share)
    assert (text == "100 %") is (share == 1)
    assert (text == "0 %") is (share == 0)


@given(st.floats(-50, 50))
def test_a_percentage_is_within_half_of_its_last_digit(share: float) -> None:
    text = units.percent(share)
    distance = min(abs(share), abs(share - 1)) * 100
    error = abs(value(text) - 100 * share)
    assert error <= max(0.051 * distance, 1e-7) + 1e-9
    if text[0] in "<>":
        assert (value(text) > 100 * share - 1e-9) is (text[0] == "<")


@given(shares)
@example(0.00302)
@example(0.29)
def test_a_bound_is_not_rounded_below_its_value(share: float) -> None:
    text = units.percent(share, up=True)
    assert value(text) >= 100 * share - 1e-6 or text[0] == ">"
    assert (text == "100 %") is (share == 1)
    assert value(text) - 100 * share <= 0.1 * min(100 * share, 100 - 100 * share) + 1e-6


@given(shares, shares)
def test_a_larger_share_never_reads_as_a_smaller_one(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert value(units.percent(low)) <= value(units.percent(high)) + 1e-7


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.4567, "46 %"),
        (0.995, "99.5 %"),
        (0.9951, "99.51 %"),
        (0.001, "0.1 %"),
        (1.004, "100.4 %"),
        (2.5, "250 %"),
        (-0.031, "-3.1 %"),
        (math.inf, "∞ %"),
    ],
)
def test_a_percentage_has_two_digits_of_the_smaller_part(share: float, text: str) -> None:
    assert units.percent(share) == text


@given(numbers)
def test_a_number_keeps_three_digits_and_grouped_thousands(number: float) -> None:
    text = units.significant(number)
    assert math.isclose(float(text.replace(",", "")), number, rel_tol=0.0051, abs_tol=1e-6)
    assert "e" not in text and not any(len(part) > 3 for part in text.split(".")[0].split(","))


@given(numbers, numbers)
@example(499.96, 500.0)
def test_a_number_beside_its_limit_reads_differently(number: float, limit: float) -> None:
    if not math.isclose(number, limit, rel_tol=1e-6):
        assert units.number(number, limit) != units.exact(limit) or number < 1e-4


@given(st.integers(0, 10**9))
def test_a_written_number_keeps_its_digits(number: int) -> None:
    assert int(units.exact(number).replace(",", "")) == number
    assert units.exact_percent(number / 10**9).removesuffix(" %").replace(",", "") == f"{number / 10**7:.10g}"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.977 kB"), (8192, "8 kB"), (96_000_000, "91.6 MB"), (5 * 2**40, "5,120 GB")],
)
def test_a_size_has_postgresqls_units(number: int, text: str) -> None:
    assert units.size(number) == text


def test_names_beyond_the_first_are_counted() -> None:
    assert units.some(["a", "b"]) == "a, b"
    assert units.some("abcde", 2) == "a, b and 3 more"
