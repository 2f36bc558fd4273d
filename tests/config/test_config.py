"""Tests of perfkit.toml: one validated model, which reports all mistakes at once, one line each."""
# ruff: noqa: E501

from pathlib import Path

import pytest

from perfkit import config
from perfkit.base.errors import UsageError
from perfkit.base.resources import CHECKOUT

MINIMAL = """
title = "A query"
[database]
prepare = ["schema.sql"]
[parameters]
ids = "ids.sql"
[[query]]
name = "by_id"
file = "by_id.sql"
parameters = "ids"
[[scenario]]
name = "alone"
label = "1"
send = ["by_id"]
[[arm]]
name = "before"
role = "before"
"""


@pytest.fixture
def write(tmp_path: Path):
    for name in ("schema.sql", "ids.sql", "by_id.sql"):
        (tmp_path / name).write_text("SELECT 1")

    def write(text: str) -> Path:
        path = tmp_path / "perfkit.toml"
        path.write_text(text)
        return path

    return write


def lines(path: Path) -> list[str]:
    with pytest.raises(UsageError) as caught:
        config.load(path)
    return str(caught.value).splitlines()


def test_the_booking_system_is_an_ordinary_configuration():
    booking = config.load()
    assert [arm.name for arm in booking.arm] == ["before", "control", "after-index", "after-full"]
    assert {scenario.name: scenario.users for scenario in booking.scenario} == {
        "single": 1, "ramp-up": 5, "ten": 10, "burst": 30, "sustained": 5, "queries": 1,
    }  # fmt: skip
    assert booking.profiles == {"quick": 6, "standard": 12, "thorough": 24}
    assert (booking.thresholds.p95_ms, booking.thresholds.error_rate, booking.margin) == (500, 0.001, 0.05)
    assert booking.database.scales["standard"]["appointments"] >= 500_000
    assert [check.group for check in booking.check].count("smoke") == 3
    assert [check.group for check in booking.check].count("acceptance") == 4


def test_paths_are_relative_to_the_file(write):
    path = write(MINIMAL)
    assert config.load(path).query[0].file == path.parent / "by_id.sql"


def test_a_file_of_perfkit_itself_is_named_with_its_prefix(write):
    found = config.load(write(MINIMAL.replace('"schema.sql"', '"perfkit:sql/booking/schema.sql"')))
    assert found.database.prepare[0] == CHECKOUT / "sql/booking/schema.sql"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"by_id.sql"', '"gone.sql"', "query.0.file = 'gone.sql'; expected: an existing file"),
        ('"by_id.sql"', '"."', "expected: an existing file"),
        ('title = "A query"', 'title = "A query"\ntitel = 1', "titel: unknown key"),
        ('title = "A query"', "", "title: missing; expected a value"),
        ('label = "1"', 'label = "1"\nusers = 0', "scenario.0.users = 0; expected: "),
        ('send = ["by_id"]', 'send = ["by_ids"]', "scenario 'alone': send = 'by_ids'; expected one of: by_id"),
        ('parameters = "ids"', 'parameters = "idz"', "query 'by_id': parameters = 'idz'; expected one of: ids"),
        ('role = "before"', 'role = "after"', "arm: expected exactly one with role = 'before'"),
        ('name = "before"', 'name = "floor"', "arm 'floor' has the name of the target that does nothing"),
        ('role = "before"', 'role = "before"\n[[arm]]\nname = "control"\nrole = "control"\nwarmup = 1', "arm 'control' is a control but differs from 'before'"),
        ('name = "alone"', 'name = "Not A Name!"', "scenario.0.name = 'Not A Name!'; expected: "),
        ('prepare = ["schema.sql"]', 'prepare = ["schema.sql"]\npostgres = 17', "database.postgres = 17; expected: Input should be 16 or 18"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_file_key_value_and_expectation(write, old, new, expected):
    path = write(MINIMAL.replace(old, new, 1))
    assert len(found := lines(path)) == 1
    assert found[0].startswith(f"{path}: ")
    assert expected in found[0]


def test_all_mistakes_come_at_once(write):
    text = MINIMAL.replace('title = "A query"', "").replace('label = "1"', 'label = "1"\nrequests = -1')
    assert len(lines(write(text))) == 2
    text = MINIMAL.replace('send = ["by_id"]', 'send = ["a", "b"]').replace('"ids"', '"idz"')
    assert len(lines(write(text))) == 3


@pytest.mark.parametrize("text", ["title = ", "[database\n", "\x00", "title = 'é"])
def test_broken_toml_is_one_line(write, text):
    assert len(lines(write(text))) == 1


def test_a_missing_file_is_one_line(tmp_path):
    assert lines(tmp_path / "no.toml") == [f"{tmp_path}/no.toml: no such file; expected a perfkit.toml"]


def test_a_file_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "perfkit.toml").write_bytes(b"\xff\xfe\x00")
    assert len(lines(tmp_path / "perfkit.toml")) == 1
    assert len(lines(tmp_path)) == 1


# A database, a service and arms of the user's own


TARGET = 'prepare = ["schema.sql"]'
BEFORE = 'name = "before"\nrole = "before"\n'
IN_PLACE = 'target = "service=staging"\nway = "in-place"'
SERVICE = '[service]\nurl = "https://staging.example"\n'
REQUEST = '[[request]]\nname = "r"\npath = "/r"\n'


def changed(*changes: tuple[str, str], more: str = "") -> str:
    """Return the smallest configuration with some texts replaced and more text at its end."""
    text = MINIMAL
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text + more


def arm(role: str, *lines: str) -> str:
    return "\n".join(("[[arm]]", f'name = "{role}"', f'role = "{role}"', *lines, ""))


def drawn(columns: str) -> str:
    return changed(('ids = "ids.sql"', f"[parameters.ids]\ncolumns = {{ {columns} }}"))


WRONG = {
    # the database
    "both origins": (changed((TARGET, f'{TARGET}\ntarget = "service=x"')), "database: expected either 'prepare' (SQL files) or 'target' (a database of yours)"),
    "no origin": (changed((TARGET, "tls = true")), "database: expected either 'prepare' (SQL files) or 'target'"),
    "no database": (changed(("[database]", ""), (TARGET, "")), "[database] is missing; expected one because queries"),
    "a target without a way": (changed((TARGET, 'target = "service=x"')), "database: expected way 'made' to fit: 'made' without a target, whole, sample, generated, clone or in-place with one"),
    "a way without a target": (changed((TARGET, f'{TARGET}\nway = "clone"')), "database: expected way 'clone' to fit"),
    "an unknown way": (changed((TARGET, f'{TARGET}\nway = "copy"')), "database.way = 'copy'; expected: Input should be 'made', 'whole'"),
    "a password": (changed((TARGET, 'target = "host=h password=hunter2"\nway = "whole"')), "database.target: expected no password in it: use ~/.pgpass"),
    "a password in a URI": (changed((TARGET, 'target = "postgres://me:hunter2@h/d"\nway = "whole"')), "database.target: expected no password in it"),
    "a password in what is no conninfo": (changed((TARGET, 'target = "hunter2@h"\nway = "whole"')), "database.target: expected a libpq connection string"),
    "scales without files": (changed((TARGET, f"{IN_PLACE}\nscales = {{ small = {{ n = 1 }} }}")), "database: expected no 'scales' without 'prepare' files"),
    "settings of another's server": (changed((TARGET, f'{IN_PLACE}\nsettings = {{ work_mem = "1MB" }}')), "database: expected no 'settings' for a server that perfkit does not start"),
    "an unknown scale": (changed((TARGET, f'{TARGET}\nscale = "big"\nscales = {{ small = {{ n = 1 }} }}')), "database: scale = 'big'; expected one of: small"),
    # arms
    "indexes in place without a control": (changed((TARGET, IN_PLACE), more=arm("after", 'indexes = "schema.sql"')), "arm: expected one with role = 'control' in place: 'before' again, at the end"),
    "prepare in place": (changed((TARGET, IN_PLACE), more=arm("after", 'prepare = ["schema.sql"]')), "arm 'after': prepare cannot be undone in place; expected only indexes"),
    "another version in place": (changed((TARGET, IN_PLACE), more=arm("after", "postgres = 16")), "arm 'after': postgres = 16; expected a server that perfkit starts"),
    "a database for a copy": (changed(more=arm("after", 'database = "service=x"')), "arm 'after': database; expected only with way = 'in-place'"),
    "a password of an arm": (changed((TARGET, IN_PLACE), more=arm("after", 'database = "postgres://me:hunter2@h/d"')), "arm.1.database: expected no password in it"),
    "a url without a service": (changed(more=arm("after", 'url = "https://x"')), "arm 'after': url; expected a [service] with a url of its own"),
    "a url with a name and password": (changed(more=SERVICE + arm("after", 'url = "https://me:hunter2@x"')), "arm.1.url: expected http(s)://host[:port] and nothing more"),
    "values without a command": (changed(more=SERVICE + arm("after", 'service = { handler = "x" }')), "arm 'after': service; expected a [service] with a command to fill its values in"),
    "a rewrite of nothing": (changed(more=arm("after", 'rewrite = { gone = "by_id.sql" }')), "arm 'after': rewrite = 'gone'; expected one of: by_id"),
    "a rewrite that is gone": (changed(more=arm("after", 'rewrite = { by_id = "gone.sql" }')), "arm.1.rewrite.by_id = 'gone.sql'; expected: an existing file"),
    "a warm-up without end": (changed((BEFORE, f"{BEFORE}warmup = 10001\n")), "arm.0.warmup = 10001; expected: "),
    # the service and its requests
    "a command and a url": (changed(more=f'{SERVICE}command = ["x"]\n'), "service: expected either a command or a url"),
    "neither": (changed(more="[service]\n"), "service: expected either a command or a url"),
    "a url with a path": (changed(more='[service]\nurl = "https://x/y"\n'), "service.url: expected http(s)://host[:port] and nothing more"),
    "another scheme": (changed(more='[service]\nurl = "ftp://x"\n'), "service.url: expected http(s)://host[:port] and nothing more"),
    "requests to nobody": (changed(more=REQUEST), "requests are defined, but no [service]; expected its command or url"),
    "a path to elsewhere": (changed(more=SERVICE + REQUEST.replace('"/r"', '"//evil.example/r"')), "request.0: expected path '//evil.example/r' to begin with one '/'"),
    "a whole url as path": (changed(more=SERVICE + REQUEST.replace('"/r"', '"https://evil.example"')), "request.0: expected path 'https://evil.example' to begin with one '/'"),
    "a path of two lines": (changed(more=SERVICE + REQUEST.replace('"/r"', '"/r\\r\\nHost: x"')), "request.0: expected path '/r\\r\\nHost: x' to begin with one '/'"),
    "a header of two lines": (changed(more=f'{SERVICE}{REQUEST}headers = {{ X = "1\\r\\nHost: x" }}\n'), "request.0: expected header 'X' of letters, digits"),
    "a header with a colon": (changed(more=f'{SERVICE}{REQUEST}headers = {{ "X: y" = "1" }}\n'), "request.0: expected header 'X: y' of letters, digits"),
    "a host header": (changed(more=f'{SERVICE}{REQUEST}headers = {{ hOSt = "x" }}\n'), "request.0: expected no header 'hOSt': the client sets this header"),
    "an unknown method": (changed(more=f'{SERVICE}{REQUEST}method = "TRACE"\n'), "request.0.method = 'TRACE'; expected: "),
    "queries and requests at once": (changed(('send = ["by_id"]', 'send = ["by_id", "r"]'), more=SERVICE + REQUEST), "scenario 'alone': send mixes requests and queries; expected one kind"),
    "turns of several users": (changed(('send = ["by_id"]', 'send = ["by_id"]\nalternate = true\nusers = 2')), "scenario.0: expected alternate with one user and one batch"),
    "turns of requests": (changed(('send = ["by_id"]', 'send = ["r"]\nalternate = true'), more=SERVICE + REQUEST), "scenario 'alone': alternate; expected queries on arms that can take turns"),
    "a level of unknown arms": (changed(('send = ["by_id"]', 'send = ["by_id"]\narms = ["before", "gone"]')), "scenario 'alone': arms = 'gone'; expected one of: before"),
    "a level without the first arm": (changed(('send = ["by_id"]', 'send = ["by_id"]\narms = ["after"]'), more=arm("after")), "scenario 'alone': arms; expected 'before' among them, to compare with"),
    "a claim of an unknown query": (changed(more='[[claim]]\ntext = "fast"\nmeasure = "latency_ms"\nquery = "gone"\nhigh = 1\n'), "claim 'fast': query = 'gone'; expected one of: by_id"),
    "a claim without a number": (changed(more='[[claim]]\ntext = "fast"\nmeasure = "build_s"\n'), "claim.0: expected low, high or both"),
    "a claim about everything": (changed(more='[[claim]]\ntext = "fast"\nmeasure = "build_s"\nquery = "by_id"\nhigh = 1\n'), "claim.0: expected build_s with neither query nor scenario"),
    # generators
    "no kind": (drawn("id = {}"), "parameters.ids.columns.id: expected exactly one of integer, number, choice, date, uuid"),
    "two kinds": (drawn("id = { uuid = true, integer = [1, 2] }"), "parameters.ids.columns.id: expected exactly one of integer"),
    "a reversed range": (drawn("id = { integer = [2, 1] }"), "parameters.ids.columns.id: expected integer from the smaller to the larger"),
    "reversed days": (drawn("id = { date = [2026-01-02, 2026-01-01] }"), "parameters.ids.columns.id: expected date from the smaller to the larger"),
    "half a range": (drawn("id = { integer = [1] }"), "parameters.ids.columns.id.integer.1: missing; expected a value"),
    "no choice": (drawn("id = { choice = [] }"), "parameters.ids.columns.id.choice = []; expected: "),
    "no columns": (drawn(""), "parameters.ids.columns: expected "),
    "a range without end": (drawn("id = { number = [1.0, inf] }"), "parameters.ids.columns.id.number.1 = inf; expected: Input should be a finite number"),
    "uuid = false": (drawn("id = { uuid = false }"), "parameters.ids.columns.id.uuid = False; expected: Input should be True"),
    # bounds
    "no end of time": (changed(more="[limits]\nseconds = inf\n"), "limits.seconds = inf; expected: Input should be a finite number"),
    "no margin": (changed(("[database]", "margin = 0\n[database]")), "margin = 0; expected: Input should be greater than 0"),
    "half a breaker": (changed(more="[limits]\nbreaker_errors = 1.5\n"), "limits.breaker_errors = 1.5; expected: "),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=list(WRONG))
def test_what_does_not_go_together_is_one_line_without_a_secret(write, text, expected):
    path = write(text)
    (found,) = lines(path)
    assert found.startswith(f"{path}: {expected}")
    assert "hunter2" not in found


def test_an_arm_of_a_service_alone_has_no_database_to_change(write):
    text = changed(("[database]", ""), (TARGET, ""), ('send = ["by_id"]', 'send = ["r"]'), more=SERVICE + REQUEST)
    text = text.replace('[[query]]\nname = "by_id"\nfile = "by_id.sql"\nparameters = "ids"\n', "")
    assert config.load(write(text)).database is None
    more = arm("after", 'indexes = "schema.sql"', 'settings = { work_mem = "1MB" }', 'prepare = ["schema.sql"]')
    found = lines(path := write(text + more))
    assert [line.removeprefix(f"{path}: arm 'after': ").split(";")[0] for line in found] == [
        "prepare", "indexes", "settings",
    ]  # fmt: skip
    assert all(line.endswith("expected a [database] for this key") for line in found)


def test_mistakes_of_every_table_come_at_once(write):
    text = changed(
        ('title = "A query"', "margin = 2"),
        (TARGET, 'target = "host=h password=hunter2"\nway = "copy"'),
        ('"by_id.sql"', '"gone.sql"'),
        (BEFORE, f"{BEFORE}settings = {{ work_mem = 64 }}\n"),
        more=f'{SERVICE}healthy = "/"\n{REQUEST}headers = {{ Host = "x" }}\n[limits]\nrate = -1\n',
    )
    keys = sorted(line.split(": ")[1].split(" = ")[0] for line in lines(write(text)))
    assert keys == sorted([
        "title", "margin", "database.target", "database.way", "query.0.file", "arm.0.settings.work_mem",
        "service.healthy", "request.0", "limits.rate",
    ])  # fmt: skip
