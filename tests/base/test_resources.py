"""Tests of the files that come with perfkit, in a checkout and a built package, and of the folder for runs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from perfkit import config
from perfkit.app import api
from perfkit.app.cli import main
from perfkit.app.starter import reports_folder
from perfkit.base import resources

Chdir = Callable[[Path], Path]


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that carries copies, of which one file is shown; the checkout's folders are out of its sight."""
    copy = tmp_path / "site-packages" / "perfkit" / "_data" / "sql" / "catalog" / "settings.sql"
    copy.parent.mkdir(parents=True)
    copy.write_text("-- the copy")
    monkeypatch.setattr(resources, "PACKAGE", tmp_path / "site-packages" / "perfkit")
    return copy


class TestAFileThatComesWithPerfkit:
    def test_is_the_checkouts_own_where_the_package_has_no_copies(self) -> None:
        assert resources.path("sql/catalog/settings.sql") == resources.CHECKOUT / "sql/catalog/settings.sql"
        assert all(resources.path(folder).is_dir() for folder in resources.FOLDERS)

    def test_is_the_packages_copy_where_it_has_one(self, built: Path) -> None:
        assert resources.path("sql/catalog/settings.sql").read_text() == "-- the copy"
        assert resources.name_of(built) == "perfkit:sql/catalog/settings.sql"

    @pytest.mark.process
    def test_is_found_by_an_install_whose_folder_is_not_the_working_folder(self, tmp_path: Path) -> None:
        said = subprocess.run([sys.executable, "-m", "perfkit", "config", "show"], cwd=tmp_path, capture_output=True)
        assert said.returncode == 0 and b'"perfkit:sql/booking/schema.sql"' in said.stdout

    @pytest.mark.parametrize("name", ["docs/examples/tpch/data.sql", "mine/query.sql", "perfkit/base/errors.py"])
    def test_has_a_name_of_its_own_and_no_other_file_of_the_checkout_does(self, name: str) -> None:
        """Another machine's installed package would not find it by that name."""
        assert resources.name_of(resources.CHECKOUT / name) is None


class TestRunsGoTo:
    @pytest.fixture
    def below(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Two folders deep in one that becomes the project; the working folder."""
        folder = tmp_path / "project" / "deep" / "deeper"
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        return folder

    def test_reports_of_the_working_folder(self, below: Path) -> None:
        assert reports_folder() == below / "reports"

    def test_reports_of_the_nearest_folder_upward_that_has_a_configuration(self, below: Path, tmp_path: Path) -> None:
        (tmp_path / "perfkit.toml").touch()
        assert reports_folder() == tmp_path / "reports"
        (below.parent / "perfkit.toml").touch()
        assert reports_folder() == below.parent / "reports"
        (below / "perfkit.toml").touch()
        assert reports_folder() == below / "reports"

    @pytest.mark.parametrize("folder", ["", "notebooks", "tests/plans/18"])
    def test_reports_of_the_checkout_from_anywhere_in_it(self, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(resources.CHECKOUT / folder)
        assert reports_folder() == resources.CHECKOUT / "reports"

    def test_the_working_folder_from_within_an_installed_package(
        self, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`site-packages` is no checkout, though it has a folder `perfkit`."""
        monkeypatch.chdir(tmp_path / "site-packages")
        assert reports_folder() == tmp_path / "site-packages" / "reports"
        assert not (tmp_path / "site-packages" / resources.IN_CHECKOUT).exists()

    def test_the_folder_that_is_named(self, below: Path, tmp_path: Path) -> None:
        (tmp_path / "perfkit.toml").touch()
        assert api.new_folder("here", "quick").parent.resolve() == below / "here"
        assert api.new_folder("", "quick").parent == tmp_path / "reports"

    def test_one_line_of_refusal_where_the_working_folder_is_gone(self, below: Path) -> None:
        below.rmdir()
        done = perfkit("report", "--scale", "seed")
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr == "perfkit: reports: the working folder no longer exists; expected --reports FOLDER\n"

    @pytest.mark.parametrize(
        "command", ["report", "compare", "measure", "watch", "rollback", "slow report", "indexes ablate"]
    )
    def test_what_the_help_of_each_command_says(self, command: str) -> None:
        said = " ".join(perfkit(*command.split(), "--help").output.split())
        assert "reports/ of the nearest folder, from the working folder upward, that has a perfkit.toml" in said


class TestNotebooks:
    def test_are_copied_and_said_how_to_run(self, tmp_path: Path) -> None:
        done = perfkit("notebooks", str(tmp_path / "my own"))
        copies = sorted((tmp_path / "my own").iterdir())
        assert [path.name for path in copies] == sorted(p.name for p in resources.path("notebooks").glob("*.ipynb"))
        *written, summary, papermill, lab = done.output.splitlines()
        assert written == list(map(str, copies)) and summary.startswith(f"{len(copies)} notebooks copied to ")
        assert papermill.endswith(f"papermill '{copies[0]}' out.ipynb -p profile quick")
        assert lab.endswith(f"'{tmp_path / 'my own'}'") and "jupyter" in lab

    def test_are_the_same_in_the_copy_and_can_be_changed(self, tmp_path: Path) -> None:
        perfkit("notebooks", str(tmp_path))
        for path in tmp_path.iterdir():
            assert json.loads(path.read_text()) == json.loads((resources.path("notebooks") / path.name).read_text())
            assert path.stat().st_mode & 0o200

    def test_overwrite_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "index_lab.ipynb").write_text("my work")
        done = perfkit("notebooks", str(tmp_path))
        assert done.exit_code == 2
        assert done.stderr == f"perfkit: {tmp_path}/index_lab.ipynb already exists; expected a folder without it\n"
        assert [path.read_text() for path in tmp_path.iterdir()] == ["my work"]


def test_a_configuration_names_a_shipped_file_and_finds_it(built: Path, tmp_path: Path) -> None:
    (tmp_path / "perfkit.toml").write_text(
        'title = "q"\n[parameters]\nsettings = "perfkit:sql/catalog/settings.sql"\n'
        '[[query]]\nname = "q"\nfile = "perfkit:sql/catalog/settings.sql"\nparameters = "settings"\n'
        '[[scenario]]\nname = "one"\nlabel = "one"\nsend = ["q"]\n'
        '[[arm]]\nname = "before"\nrole = "before"\n[[arm]]\nname = "after"\nrole = "after"\n'
        '[database]\nprepare = ["perfkit:sql/catalog/settings.sql"]\n'
    )
    assert config.load(tmp_path / "perfkit.toml").query[0].file == built


def perfkit(*args: str) -> Result:
    return CliRunner().invoke(main, args)
