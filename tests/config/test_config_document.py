"""Tests of what the model generates: a configuration with its defaults, and the reference of every key."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from perfkit import config
from perfkit.base.resources import CHECKOUT
from perfkit.config import model as document

TREE = [config.BOOKING, *sorted(CHECKOUT.glob("docs/examples/*/perfkit.toml"))]


def perfkit(*args: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "perfkit", *map(str, args)], capture_output=True, text=True, check=True
    )
    return done.stdout


def again(folder: Path, settings: config.Config) -> config.Config:
    """Write the configuration to a file in another folder, and load that file."""
    path = folder / "shown.toml"
    path.write_text(document.show(settings))
    return config.load(path)


@pytest.mark.parametrize("path", TREE, ids=lambda path: path.parent.name)
def test_what_is_shown_means_the_same_wherever_it_is(tmp_path: Path, path: Path) -> None:
    copy = Path(shutil.copytree(path.parent, tmp_path / "copy")) / "perfkit.toml"
    if "schema.py" in (names := {file.name for file in copy.parent.iterdir()}) and "schema.sql" not in names:
        (copy.parent / "schema.sql").write_text("")  # which a user makes with it
    settings = config.load(copy)
    shown = again(tmp_path, settings)
    assert shown == settings
    assert document.show(shown) == document.show(settings)


FULL = """
title = 'Ünïcode "quoted" /work \\ backslash'
[database]
target = "service=staging"
way = "in-place"
volatile = ["my_now"]
[service]
command = ["{python}", "{folder}/app.py", "{{literal}}"]
[parameters]
values = "values.csv"
[parameters.drawn]
rows = 5
columns = { day = { date = [2026-01-01, 2026-01-31] }, kind = { choice = [1, "a", 2026-01-01, [1.5]] } }
[[query]]
name = "q"
file = "q.sql"
parameters = "drawn"
[[request]]
name = "r"
path = "/x/{day}"
method = "POST"
headers = { Authorization = "Bearer {env:TOKEN}" }
body = { day = "{day}", at = 2026-01-01T00:00:00Z, deep = { list = [1, { x = 2026-01-02 }] } }
[[scenario]]
name = "s"
label = "S"
send = ["q"]
seconds = 2
[[arm]]
name = "before"
role = "before"
settings = { "my.setting" = "1" }
[[check]]
name = "c"
group = "smoke"
parameters = "drawn"
[[check.step]]
request = "r"
expect = { 200 = 1, 409 = 4 }
"""


def test_a_file_with_every_kind_of_value_comes_back_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "mine {x} 'quoted'"
    folder.mkdir()
    for name in ("values.csv", "q.sql"):
        (folder / name).write_text("")
    (folder / "perfkit.toml").write_text(FULL)
    settings = config.load(folder / "perfkit.toml")
    assert again(tmp_path, settings) == settings
    assert settings.request[0].body == {
        "day": "{day}", "at": "2026-01-01T00:00:00+00:00", "deep": {"list": [1, {"x": "2026-01-02"}]},
    }  # fmt: skip


def test_a_command_below_perfkits_own_folder_stays_a_path(tmp_path: Path) -> None:
    """Only the name of a file may begin with `perfkit:`; the system cannot find a program by such a name."""
    settings = config.load()
    program = f"{CHECKOUT}/app.py"
    changed = settings.model_copy(update={"service": config.ServiceConfig(command=(program,)), "title": f'"{program}'})
    shown = tomllib.loads(document.show(changed))
    assert (shown["service"]["command"], shown["title"]) == ([program], f'"{program}')
    assert shown["database"]["prepare"][0] == "perfkit:sql/booking/schema.sql"


@pytest.mark.process
def test_every_key_that_has_a_value_is_shown() -> None:
    shown = tomllib.loads(perfkit("config", "show"))
    assert shown["limits"] == config.Limits().model_dump()
    assert shown["margin"] == 0.05 and shown["profiles"]["quick"] >= 1
    missing = set(config.Arm.model_fields) - set(shown["arm"][0])
    assert missing == {"indexes", "postgres"}  # nothing there, which TOML cannot say


# The reference


@pytest.mark.process
def test_the_reference_is_kept() -> None:
    kept = (CHECKOUT / "docs" / "configuration.md").read_text()
    assert kept == perfkit("config", "reference"), "perfkit config reference > docs/configuration.md"


@pytest.mark.parametrize("name", document.TABLES)
def test_every_key_has_a_row_with_a_type_and_a_meaning(name: str) -> None:
    model = document.TABLES[name]
    text = document.reference()
    heading = f"## `{name}`" if name else "## At the top"
    section = text.partition(f"{heading}\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert [row[0].removeprefix("| ").strip("`") for row in rows] == list(model.model_fields)
    for key, kind, _, meaning in rows:
        assert kind not in ("", "any"), key
        assert meaning.removesuffix(" |").endswith("."), key


def test_every_table_of_the_model_has_a_section() -> None:
    tables = {model.__name__ for model in document.TABLES.values()}
    assert {"Config", *config.Config.model_json_schema()["$defs"]} == tables


def test_a_default_in_the_reference_is_the_models() -> None:
    text = document.reference()
    assert "| `margin` | number over 0 under 1 | `0.05` |" in text
    assert '| `way` | `"made"`, `"whole"`, `"sample"`, `"generated"`, `"clone"`, `"in-place"` | `"made"` |' in text
    assert "| `uuid` | `true` |  |" in text
    assert "| `integer` | two of whole number |  |" in text
    assert "| `title` | text | required |" in text


def test_the_examples_are_one_configuration_that_could_be_used(tmp_path: Path) -> None:
    (tmp_path / "perfkit.toml").write_text(document.EXAMPLE.read_text())
    for name in ("customers.sql", "products.csv", "open_orders.sql", "faster.sql", "indexes.sql"):
        (tmp_path / name).write_text("")
    settings = config.load(tmp_path / "perfkit.toml")
    assert again(tmp_path, settings) == settings
    text = document.reference()
    assert all(part in text for part in document.EXAMPLE.read_text().strip().split("\n\n"))
    assert (
        text.count("```toml\n") == len(document.TABLES) - 4
    )  # a check has its steps with it, a scenario its stages and search, a review its targets
