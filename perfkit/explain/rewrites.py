"""Rewrites of conditions that return the same rows and can use an index on the column.

Findings and index advice both call `rewritten`, the only place for these rules. WHY lists the rules, each with the
argument why the rows are equal. A rule *replaces* a condition only if both conditions are true for the same rows and
raise the same errors. Otherwise the rule *adds* conditions that follow from the original condition, which stays.

There is no rule for the following conditions, because the rows would differ:

- a cast that loses information: numeric to integer, a time to its hour, text to char(3),
- a cast to text from other types than integers and uuid: the text depends on DateStyle, scale, padding, extra digits,
- integer arithmetic: `a + 1` fails for the largest integer, `a = 4` does not; `a * 2`, `a / 2` and `a % 2` round,
- floating-point arithmetic, which rounds,
- to_char, age and substring, which return equal results for different values (BC years, days of the month, endings),
- lower, upper, trim, coalesce and ||: an index on the expression itself needs no rewrite,
- parameters whose value decides whether a rule holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from math import ceil, floor

WHY: Mapping[str, str] = {
    "widened": "A cast to a wider type (smallint < integer < bigint, real < double precision) changes no value, and "
    "B-trees compare both types directly. The value has one of these types; otherwise the cast would go further.",
    "whole number": "An integer compared with a number gives the same result as compared with the next whole number, "
    "within the range in which double precision (2^53) and real (2^24) hold every integer.",
    "integer as text": "An integer has one text, `-?[1-9][0-9]*` or 0. Other constants are never equal.",
    "uuid as text": "A uuid has one text: lower case, five groups. Other constants are never equal.",
    "day of a timestamp": "A timestamp without time zone has day D from D to D + 1; infinity has no other day.",
    "day of a timestamptz": "Adds D - 1 to D + 2: a day begins at midnight in the time zone, which can occur twice or "
    "late, but no clock was ever moved by more than a day.",
    "unit of a timestamp": "date_trunc is a step function; the edges of its steps follow from the constant, aligned "
    "or not. (date_trunc fails for the first moments of 4714 BC, a range does not.)",
    "near a unit": "Adds a range: date_trunc moves a time back by less than a unit. Days and longer units are those of "
    "the time zone, whose offsets differ by at most 31 hours, within one day by 24.",
    "year": "The year is a step function of a date and of a timestamp; infinity is beyond every year.",
    "year of a timestamptz": "Adds the year and a day on both sides, as for the day of a timestamptz.",
    "shifted time": "Adds a range: a month has 28 to 31 days, a day 24 hours plus or minus the 31 hours by which the "
    "offsets of a zone differ; hours are exact, and infinity stays infinity.",
    "shifted date": "Adds the same comparison with the days on the other side: dates are counted in days.",
    "elapsed": "Adds a comparison with the time at that distance from now: differences between times are compared in "
    "units of 24 hours and 30 days, regardless of the calendar.",
    "not distinct": "With a constant: equality, which is never true for a null. With a parameter: or both are null.",
    "ignoring case": "ILIKE compares lower(text) with lower(pattern), by the column's collation, for text and varchar.",
    "member": "x = ANY (array) and array @> ARRAY[x] use the same equality; neither is true for a null.",
    "sides of an or": "A UNION ALL of the rows that meet one side and the rows that meet only the other side. Requires "
    "a SELECT without grouping, sorting, limits, locks and functions whose result can change between calls.",
}
_SHORT = frozenset({"second", "minute", "hour"})
_TZ, _TS = "timestamp with time zone", "timestamp without time zone"
_DAY_S, _HOUR_S = 86_400, 3_600
UNITS = {"second": 1, "minute": 60, "hour": _HOUR_S, "day": _DAY_S, "week": 7 * _DAY_S, "month": 31 * _DAY_S,
            "quarter": 92 * _DAY_S, "year": 366 * _DAY_S}  # fmt: skip
_MONTHS = {"month": 1, "quarter": 3, "year": 12}
_FLIPPED = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_INTEGERS = {"smallint": 2**15, "integer": 2**31, "bigint": 2**63}
_WIDER = {"smallint": ("integer", "bigint"), "integer": ("bigint",), "real": ("double precision",)}
_EXACT = {"numeric": 2.0**62, "double precision": 2.0**53, "real": 2.0**24}
_ANCIENT, _FAR = 1000, 9000  # years; ranges around years between them fit into timestamps and Python's datetime

_COLUMN = r'(?:"(?:[^"]|"")*"|[^\W\d][\w$]*)'
_INTERVAL = r"'(?P<interval>[^']*)'::interval"
_WHOLE = re.compile(r"(?P<plain>-?\d+)|'(?P<quoted>-?\d+)'::(?:smallint|integer|bigint)")
_NUMBER = re.compile(
    r"(?P<plain>-?\d+(?:\.\d*)?)|'(?P<quoted>-?[\d.]+(?:e[-+]?\d+)?)'::(?:numeric|double precision|real)"
)
_PARAMETER = re.compile(r"\$\d+")
_DATE = re.compile(r"'(\d{4}-\d\d-\d\d)'::date")
_TODAY = re.compile(r"(?:CURRENT_DATE|\(now\(\)\)::date)(?: [-+] \d{1,6})?")
_MOMENT = re.compile(
    r"'(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?(?:[-+]\d\d(?::\d\d){0,2})?)'::(timestamp with(?:out)? time zone)"
)
_NOW = {
    _TZ: r"(?:now\(\)|CURRENT_TIMESTAMP|\(CURRENT_DATE\)::timestamp with time zone)",
    _TS: r"(?:LOCALTIMESTAMP|\(now\(\)\)::timestamp without time zone|\(CURRENT_DATE\)::timestamp without time zone)",
}
_TRUNCATED = re.compile(rf"date_trunc\('(?P<unit>\w+)'(?:::text)?, (?:{_COLUMN}|\({_COLUMN}\)::(?P<cast>{_TZ}))\)")
_YEAR = re.compile(
    rf"(?:EXTRACT\(year FROM {_COLUMN}\)|date_part\('year'(?:::text)?, (?:{_COLUMN}|\({_COLUMN}\)::{_TS})\))"
)
NOT_DISTINCT = re.compile(rf"\(*NOT \((?P<column>{_COLUMN}) IS DISTINCT FROM (?P<value>.+?)\)+")
_CONSTANT = re.compile(r"'(?:[^']|'')*'(?:::[\w ]+)?|-?\d[\d.]*|true|false")
_SPAN = re.compile(
    r"(?:(?P<parts>(?:[-+]?\d+ (?:year|mon|day)s? ?)*))(?:(?P<sign>[-+]?)(?P<h>\d+):(?P<m>\d\d):(?P<s>\d\d)(?:\.\d+)?)?"
)


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition as the plan prints it, without the table's name: `subject operator value` on a column of a type."""

    text: str
    subject: str
    operator: str
    value: str
    type: str


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A condition with the same rows; {column}, {value}, {condition} in `form` stand for the original's parts."""

    rule: str
    form: str
    type: str = ""  # of the value, if a bare constant needs a cast

    @property
    def sides(self) -> frozenset[str]:
        """The operators (<, >, =) by which added conditions bound the column; empty if the original is replaced."""
        return frozenset(re.findall(r"\{column\} ([<>=])", self.form)) if "{condition}" in self.form else frozenset()

    def filled(self, column: str, value: str, condition: str) -> str:
        """Return the condition with these parts."""
        parts = {"{column}": column, "{value}": value, "{condition}": condition}
        return re.sub(r"\{\w+\}", lambda found: parts[found[0]], self.form)


Rule = Callable[[Condition], str]


def rewritten(condition: Condition) -> Rewrite | None:
    """Return a condition with the same rows that can use an index on the column; None if no rule proves one.

    >>> found = rewritten(Condition("", "(at)::date", "=", "'2024-02-28'::date", "timestamp without time zone"))
    >>> found.filled("at", "", "")
    "at >= '2024-02-28' AND at < '2024-02-29'"
    """
    for name, rule in RULES.items():
        if form := rule(condition):
            moved = name in ("near a unit", "shifted time") and condition.type != "date"
            kind = ("timestamptz" if condition.type == _TZ else "timestamp") if moved else ""
            kind = "timestamptz" if name == "near a unit" and condition.type == "date" else kind
            return Rewrite(name, form, kind)
    return None


def _widened(c: Condition) -> str:
    cast = next((to for to in _WIDER.get(c.type, ()) if _is_cast(c.subject, to)), "")
    if not cast or c.operator not in _FLIPPED:
        return ""
    if cast == "double precision":
        return f"{{column}} {c.operator} {{value}}" if re.fullmatch(rf"'[^']+'::{cast}", c.value) else ""
    if found := _WHOLE.fullmatch(c.value):
        return f"{{column}} {c.operator} {found['plain'] or found['quoted']}"
    return f"{{column}} {c.operator} {{value}}::bigint" if _PARAMETER.fullmatch(c.value) else ""


def _whole_number(c: Condition) -> str:
    cast = next((to for to in _EXACT if _is_cast(c.subject, to)), "")
    found = _NUMBER.fullmatch(c.value)
    if c.type not in _INTEGERS or not cast or not found:
        return ""
    try:
        number = Decimal(found["plain"] or found["quoted"])
    except InvalidOperation:
        return ""
    if abs(number) >= _EXACT[cast]:
        return ""
    edge = {"=": int(number), "<": ceil(number), ">=": ceil(number), ">": floor(number), "<=": floor(number)}
    if c.operator not in edge or (c.operator == "=" and number != int(number)):
        return ""
    return f"{{column}} {c.operator} {edge[c.operator]}"


def _integer_as_text(c: Condition) -> str:
    found = re.fullmatch(r"'(0|-?[1-9]\d{0,18})'::text", c.value)
    if c.operator != "=" or c.type not in _INTEGERS or not _is_cast(c.subject, "text") or not found:
        return ""
    limit = _INTEGERS[c.type]
    return f"{{column}} = {found[1]}" if -limit <= int(found[1]) < limit else ""


def _uuid_as_text(c: Condition) -> str:
    found = re.fullmatch(r"('[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}')::text", c.value)
    fits = c.operator == "=" and c.type == "uuid" and _is_cast(c.subject, "text")
    return f"{{column}} = {found[1]}" if fits and found else ""


def _day_of_a_timestamp(c: Condition) -> str:
    if c.type != _TS or not _is_day(c.subject):
        return ""
    if day := _day(c.value):
        return _stepped(c.operator, f"'{day}'", f"'{day + timedelta(1)}'", aligned=True)
    return _stepped(c.operator, "{value}", "{value} + 1", aligned=True) if _TODAY.fullmatch(c.value) else ""


def _day_of_a_timestamptz(c: Condition) -> str:
    if c.type != _TZ or not _is_day(c.subject):
        return ""
    if day := _day(c.value):
        return _added(c.operator, f"'{day - timedelta(1)}'", f"'{day + timedelta(2)}'")
    return _added(c.operator, "{value} - 1", "{value} + 2") if _TODAY.fullmatch(c.value) else ""


def _unit_of_a_timestamp(c: Condition) -> str:
    found, moment = _TRUNCATED.fullmatch(c.subject), _moment(c.value, _TS)
    if c.type != _TS or not found or found["cast"] or found["unit"] not in UNITS or not moment:
        return ""
    first = _first(found["unit"], moment)
    after = _following(found["unit"], first)
    return _stepped(c.operator, _shown(first), _shown(after), aligned=first == moment)


def _near_a_unit(c: Condition) -> str:
    found = _TRUNCATED.fullmatch(c.subject)
    if not found or found["unit"] not in UNITS or c.type != ("date" if found["cast"] else c.type):
        return ""
    kind = _TZ if found["cast"] else c.type
    if kind not in _NOW or not ((kind == _TZ and _moment(c.value, kind)) or _moving(c.value, kind)):
        return ""
    unit = found["unit"]
    slack = 0 if kind == _TS or unit in _SHORT else _DAY_S if unit == "day" else 2 * _DAY_S
    return _between(c.operator, -UNITS[unit] - slack, slack)


def _year(c: Condition) -> str:
    if c.type not in ("date", _TS) or not _YEAR.fullmatch(c.subject) or not (year := _the_year(c.value)):
        return ""
    return _stepped(c.operator, f"'{year}-01-01'", f"'{year + 1}-01-01'", aligned=True)


def _year_of_a_timestamptz(c: Condition) -> str:
    if c.type != _TZ or not _YEAR.fullmatch(c.subject) or not (year := _the_year(c.value)):
        return ""
    return _added(c.operator, f"'{year - 1}-12-31'", f"'{year + 1}-01-02'")


def _shifted_time(c: Condition) -> str:
    found = re.fullmatch(
        rf"{_COLUMN} (?P<sign>[-+]) {_INTERVAL}|{_INTERVAL.replace('interval>', 'first>')} \+ {_COLUMN}", c.subject
    )
    if c.type not in _NOW or not found or not (_moment(c.value, c.type) or _moving(c.value, c.type)):
        return ""
    span = span_of(found["interval"] or found["first"] or "")
    if span is None:
        return ""
    months, days, seconds = (-part for part in span) if found["sign"] == "-" else span
    if abs(months) > 12 * _ANCIENT or abs(days) > 366 * _ANCIENT or abs(seconds) > 366 * _ANCIENT * _DAY_S:
        return ""
    slack = 2 * _DAY_S if c.type == _TZ and (months or days) else 0
    lengths = sorted((28 * months, 31 * months))
    low, high = (length * _DAY_S + days * _DAY_S + seconds for length in lengths)
    return _between(c.operator, low - slack, high + slack)


def _shifted_date(c: Condition) -> str:
    found = re.fullmatch(rf"{_COLUMN} (?P<sign>[-+]) (?P<days>\d{{1,6}})|(?P<first>\d{{1,6}}) \+ {_COLUMN}", c.subject)
    if c.type != "date" or not found or c.operator not in _FLIPPED:
        return ""
    days = int(found["days"] or found["first"]) * (-1 if found["sign"] == "-" else 1)
    if day := _day(c.value):
        try:
            return f"{{condition}} AND {{column}} {c.operator} '{day - timedelta(days)}'"
        except OverflowError:
            return ""
    moved = f"{{value}} {'-' if days > 0 else '+'} {abs(days)}"
    return f"{{condition}} AND {{column}} {c.operator} {moved}" if _TODAY.fullmatch(c.value) else ""


def _elapsed(c: Condition) -> str:
    bases = {_TZ: r"now\(\)|CURRENT_TIMESTAMP", _TS: "LOCALTIMESTAMP"}
    found = re.fullmatch(rf"(?P<now>{bases[c.type]}) - {_COLUMN}", c.subject) if c.type in bases else None
    value = re.fullmatch(_INTERVAL, c.value)
    span = span_of(value["interval"]) if value else None
    if not found or span is None or c.operator not in _FLIPPED:
        return ""
    seconds = (30 * span[0] + span[1]) * _DAY_S + span[2]
    if abs(seconds) > _ANCIENT * 365 * _DAY_S:
        return ""
    return f"{{condition}} AND {{column}} {_FLIPPED[c.operator]} {_moved(found['now'], -seconds)}"


def _not_distinct(c: Condition) -> str:
    if c.operator != "IS NOT DISTINCT FROM":
        return ""
    if _PARAMETER.fullmatch(c.value):
        return "({column} = {value} OR ({column} IS NULL AND {value} IS NULL))"
    return "{column} = {value}" if _CONSTANT.fullmatch(c.value) else ""


def _ignoring_case(c: Condition) -> str:
    found = re.fullmatch(r"'([^%_\\']+%)'(?:::text)?", c.value)
    own = c.type == "text" and re.fullmatch(_COLUMN, c.subject)
    if c.operator != "~~*" or not found or not (own or (c.type == "character varying" and _is_cast(c.subject, "text"))):
        return ""
    lower = found[1].isascii() and found[1] == found[1].lower()
    return f"lower({{column}}) LIKE {'{value}' if lower else 'lower({value})'}"


def _member(c: Condition) -> str:
    element = c.type.removesuffix("[]")
    if c.operator != "ANY =" or element == c.type or not re.fullmatch(_COLUMN, c.subject):
        return ""
    same = re.fullmatch(rf"'(?:[^']|'')*'::{re.escape(element)}", c.value)
    whole = element in ("integer", "bigint") and re.fullmatch(r"\d{1,9}", c.value)
    text = element == "text" and _PARAMETER.fullmatch(c.value)
    return f"{{column}} @> ARRAY[{{value}}]::{c.type}" if same or whole or text else ""


RULES: Mapping[str, Rule] = {
    "widened": _widened,
    "whole number": _whole_number,
    "integer as text": _integer_as_text,
    "uuid as text": _uuid_as_text,
    "day of a timestamp": _day_of_a_timestamp,
    "day of a timestamptz": _day_of_a_timestamptz,
    "unit of a timestamp": _unit_of_a_timestamp,
    "near a unit": _near_a_unit,
    "year": _year,
    "year of a timestamptz": _year_of_a_timestamptz,
    "shifted time": _shifted_time,
    "shifted date": _shifted_date,
    "elapsed": _elapsed,
    "not distinct": _not_distinct,
    "ignoring case": _ignoring_case,
    "member": _member,
}


def _stepped(operator: str, first: str, after: str, *, aligned: bool) -> str:
    """Return a comparison of a step function with a constant; the constant's step is from `first` to `after`."""
    if operator == "=":
        return f"{{column}} >= {first} AND {{column}} < {after}" if aligned else ""
    edge = first if aligned else after
    return {
        "<": f"{{column}} < {edge}",
        ">=": f"{{column}} >= {edge}",
        "<=": f"{{column}} < {after}",
        ">": f"{{column}} >= {after}",
    }.get(operator, "")


def _added(operator: str, low: str, high: str) -> str:
    """Return the condition with the bounds that follow from its operator."""
    if operator not in _FLIPPED:
        return ""
    sides = {"<": [f"{{column}} < {high}"], ">": [f"{{column}} >= {low}"]}
    return " AND ".join(["{condition}", *(side for sign in "><" if operator[0] in (sign, "=") for side in sides[sign])])


def _between(operator: str, low: int, high: int) -> str:
    """Return a condition on a time moved by `low` to `high` seconds, with bounds on the original time."""
    if operator not in _FLIPPED:
        return ""
    sides = {">": f"{{column}} >= {_moved('{value}', -high)}", "<": f"{{column}} <= {_moved('{value}', -low)}"}
    return " AND ".join(["{condition}", *(sides[sign] for sign in "><" if operator[0] in (sign, "="))])


def _moved(value: str, seconds: int) -> str:
    if not seconds:
        return value
    number, unit = (seconds // _HOUR_S, "hour") if seconds % _HOUR_S == 0 else (seconds, "second")
    plural = "" if abs(number) == 1 else "s"
    return f"{value} {'-' if number < 0 else '+'} interval '{abs(number)} {unit}{plural}'"


def _is_cast(subject: str, to: str) -> bool:
    return bool(re.fullmatch(rf"\({_COLUMN}\)::{to}", subject))


def _is_day(subject: str) -> bool:
    return _is_cast(subject, "date") or bool(re.fullmatch(rf"date\({_COLUMN}\)", subject))


def _day(value: str) -> date | None:
    """Return a constant day; None for other values, and for years outside the safe range."""
    found = _DATE.fullmatch(value)
    return date.fromisoformat(found[1]) if found and _ANCIENT <= int(found[1][:4]) < _FAR else None


def _moment(value: str, kind: str) -> datetime | None:
    """Return a constant time of a type, with its offset if it has one; None for other values."""
    found = _MOMENT.fullmatch(value)
    known = found and found[2] == kind and _ANCIENT <= int(found[1][:4]) < _FAR
    return datetime.fromisoformat(found[1]) if found and known else None


def _moving(value: str, kind: str) -> bool:
    """Return whether a value is the current time, possibly truncated or moved by an interval: always finite."""
    now = rf"(?:{_NOW[kind]}|date_trunc\('[a-z]+'(?:::text)?, {_NOW[kind]}\))"
    if not (found := re.fullmatch(rf"{now}(?: [-+] {_INTERVAL})?", value)):
        return False
    span = span_of(found["interval"]) if found["interval"] is not None else (0, 0, 0)
    return span is not None and abs(span[0]) < 12 * _ANCIENT and abs(span[1]) < 366 * _ANCIENT


def _the_year(value: str) -> int:
    """Return the constant year that EXTRACT is compared with; 0 for other values."""
    found = re.fullmatch(r"'(\d{4})'::(?:numeric|double precision)|(?P<plain>\d{4})", value)
    year = int(found[1] or found["plain"]) if found else 0
    return year if _ANCIENT <= year < _FAR else 0


def _first(unit: str, moment: datetime) -> datetime:
    """Return the beginning of the unit that contains a moment."""
    if unit in _SHORT:
        parts = {"microsecond": 0, **({"second": 0} if unit != "second" else {})}
        return moment.replace(**parts, **({"minute": 0} if unit == "hour" else {}))  # type: ignore[arg-type]
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    if unit == "week":
        return day - timedelta(day.weekday())
    if unit in _MONTHS:
        size = _MONTHS[unit]
        return day.replace(day=1, month=(day.month - 1) // size * size + 1)
    return day


def _following(unit: str, first: datetime) -> datetime:
    """Return the beginning of the next unit."""
    if unit not in _MONTHS:
        return first + timedelta(seconds=UNITS[unit])
    years, month = divmod(first.month - 1 + _MONTHS[unit], 12)
    return first.replace(year=first.year + years, month=month + 1)


def _shown(moment: datetime) -> str:
    return f"'{moment.isoformat(' ').removesuffix(' 00:00:00')}'"


def span_of(text: str) -> tuple[int, int, int] | None:
    """Return months, days and seconds of an interval as PostgreSQL prints it; None for other styles and fractions."""
    found = _SPAN.fullmatch(text.strip())
    if not found or not text.strip() or "." in text:
        return None
    units = {"year": (12, 0), "mon": (1, 0), "day": (0, 1)}
    months = days = 0
    for number, unit in re.findall(r"([-+]?\d+) (year|mon|day)", found["parts"] or ""):
        months, days = months + int(number) * units[unit][0], days + int(number) * units[unit][1]
    seconds = sum(int(found[key] or 0) * size for key, size in (("h", 3600), ("m", 60), ("s", 1)))
    return months, days, -seconds if found["sign"] == "-" else seconds


def operand(value: str) -> str:
    """Return a value as the operand of an addition, in parentheses if necessary.

    >>> operand("now()"), operand("'2024-01-01'::date"), operand("CURRENT_DATE - 7")
    ('now()', "'2024-01-01'::date", '(CURRENT_DATE - 7)')
    """
    simple = re.fullmatch(r"\$\d+|\d[\d.]*|'(?:[^']|'')*'(?:::[\w ]+)?|[\w.]+(?:\([^()]*(?:\(\))?[^()]*\))?", value)
    return value if simple or re.fullmatch(r"%\(\w+\)s", value) else f"({value})"
