"""The built package, installed away from the checkout and not activated: a user's first commands work there."""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import perfkit
from perfkit.base import resources
from perfkit.base.resources import CHECKOUT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # builds, installs every dependency, measures

GENERATED = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "*.egg-info", "reports")
Call = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True, slots=True)
class Installed:
    """A virtual environment with the wheel and its dependencies, and what it held before anything ran."""

    bin: Path
    site: Path
    files: frozenset[tuple[str, int]]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout: a build leaves files behind."""
    return Path(shutil.copytree(CHECKOUT, tmp_path_factory.mktemp("build") / "checkout", ignore=GENERATED))


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("build_sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the source distribution alone, as `python -m build` does it."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return built("build_wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed") / "env"
    constraints = ["--constraint", str(CHECKOUT / "requirements.lock")]
    if uv := shutil.which("uv"):
        done(uv, "venv", "--quiet", "--python", sys.executable, folder)
        done(uv, "pip", "install", "--quiet", "--python", folder / "bin/python", *constraints, wheel)
    else:
        done(sys.executable, "-m", "venv", folder)
        done(folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-compile", *constraints, wheel)
    (site,) = folder.glob("lib/python*/site-packages")
    return Installed(folder / "bin", site, files_of(site))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, empty at first; the home beside it has a kernel of another Python."""
    folder = tmp_path_factory.mktemp("user") / "project"
    folder.mkdir()
    kernel = folder.parent / "home" / ".local/share/jupyter/kernels/python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text('{"argv": ["false"], "display_name": "another", "language": "python"}')
    return folder


@pytest.fixture(scope="module")
def call(installed: Installed, project: Path, server_home: Path) -> Call:
    """Run a program of the environment, which is on no PATH, in the project or a folder of it."""
    home = str(project.parent / "home")
    env = {"PATH": "/usr/bin:/bin", "HOME": home, "PERFKIT_HOME": str(server_home), "LANG": "C.UTF-8"}

    def call(program: str, *args: object, cwd: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        (project / cwd).mkdir(parents=True, exist_ok=True)
        return done(installed.bin / program, *args, cwd=project / cwd, env={**env, **more})

    return call


@pytest.fixture(scope="module")
def run(call: Call) -> Path:
    """The folder of a quick run, as the command's last line names it."""
    return Path(call("perfkit", "report", "--profile", "quick", "--scale", "seed").stdout.splitlines()[-1]).parent


def done(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, which must be a good one."""
    found = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert found.returncode == 0, found.stdout + found.stderr
    return found


def built(hook: str, source: Path, folder: Path) -> Path:
    """Call a hook of the build backend, as every installer does, without a network."""
    code = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
    return folder / done(sys.executable, "-c", code, hook, folder, cwd=source).stdout.splitlines()[-1]


def files_of(site: Path) -> frozenset[tuple[str, int]]:
    """Every file with its time of change, but for the bytecode that Python itself keeps."""
    paths = (path for path in site.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return frozenset((str(path), path.stat().st_mtime_ns) for path in paths)


class TestTheWheel:
    def test_carries_every_file_of_the_package_and_what_comes_with_it(self, wheel: Path) -> None:
        found = set(zipfile.ZipFile(wheel).namelist())
        package = {path for path in (CHECKOUT / "perfkit").rglob("*") if "__pycache__" not in path.parts}
        assert {str(path.relative_to(CHECKOUT)) for path in package if path.is_file()} <= found
        kinds = ("*.sql", "*.ipynb", "*.toml")
        data = {path for folder in resources.FOLDERS for kind in kinds for path in (CHECKOUT / folder).rglob(kind)}
        names = {f"perfkit/_data/{path.relative_to(CHECKOUT)}" for path in data if path.parent.name[0] != "."}
        assert len(names) > 80 and names == {name for name in found if name.startswith("perfkit/_data/")}

    def test_is_the_same_from_the_source_distribution_and_from_the_checkout(
        self, wheel: Path, checkout: Path, tmp_path: Path
    ) -> None:
        again = built("build_wheel", checkout, tmp_path)
        assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())

    def test_drops_what_an_earlier_build_left(self, checkout: Path, tmp_path: Path) -> None:
        stale = checkout / "build/lib/perfkit/_data/sql/gone.sql"
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.write_text("SELECT 1")
        assert not [n for n in zipfile.ZipFile(built("build_wheel", checkout, tmp_path)).namelist() if "gone" in n]


class TestInstalled:
    def test_it_is_the_wheel_and_not_this_checkout(self, call: Call, installed: Installed) -> None:
        found = call("python", "-c", "import perfkit; print(perfkit.__file__)").stdout.strip()
        assert Path(found) == installed.site / "perfkit" / "__init__.py"

    def test_the_command_and_the_module_say_the_version(self, call: Call) -> None:
        said = f"perfkit, version {perfkit.__version__}\n"
        assert call("perfkit", "--version").stdout == said
        assert call("python", "-m", "perfkit", "--version").stdout == said

    def test_the_checks_pass(self, call: Call) -> None:
        assert call("perfkit", "check", "--scale", "seed").stdout.endswith("21 of 21 checks passed\n")

    def test_a_plan_is_explained(self, call: Call, tmp_path: Path) -> None:
        plan = shutil.copy(CHECKOUT / "tests/plans/18/seq_scan.json", tmp_path)
        assert "Seq Scan" in call("perfkit", "explain", plan).stdout

    def test_a_first_configuration_is_written(self, call: Call, project: Path) -> None:
        call("perfkit", "init", "mine")
        call("perfkit", "config", "show", "mine/perfkit.toml")

    def test_a_report_is_written_into_the_working_folder(self, run: Path, project: Path) -> None:
        assert run.parent == project / "reports"
        assert json.loads((run / "verdict.json").read_text())["decision"] in ("GO", "NO-GO", "INCONCLUSIVE")
        assert (run / "report.html").stat().st_size > 50_000

    def test_a_report_is_written_by_this_interpreter_where_another_ones_kernel_comes_first(
        self, call: Call, run: Path
    ) -> None:
        first = call("jupyter", "kernelspec", "list", JUPYTER_PREFER_ENV_PATH="0").stdout
        assert "home/.local/share/jupyter/kernels/python3" in first
        before = (run / "report.html").read_bytes()
        page = call("perfkit", "report", "--bundle", run, JUPYTER_PREFER_ENV_PATH="0").stdout.splitlines()[-1]
        assert Path(page).read_bytes() == before

    def test_copied_notebooks_show_a_run_from_another_folder(self, call: Call, run: Path, project: Path) -> None:
        call("perfkit", "notebooks", "copies")
        out = project / "elsewhere" / "out.ipynb"
        call("papermill", "../copies/before_after_index.ipynb", out, "-p", "bundle", run, cwd="elsewhere")
        assert json.loads((run / "verdict.json").read_text())["decision"] in out.read_text()

    def test_copied_notebooks_measure_into_the_project_of_the_working_folder(self, call: Call, project: Path) -> None:
        call("perfkit", "notebooks", "shared")
        (project / "nested").mkdir()
        (project / "nested" / "perfkit.toml").touch()
        options = ["-p", "blocks", 1, "-p", "scale", "seed", "-p", "scenarios", "single"]
        call("papermill", "../../shared/load_scenarios.ipynb", "out.ipynb", *options, cwd="nested/deep")
        (folder,) = (project / "nested" / "reports").iterdir()
        assert (folder / "run.json").is_file()

    def test_the_command_for_a_notebook_is_one_that_works(self, call: Call, installed: Installed) -> None:
        """The environment is on no PATH, as with pipx and uv tool."""
        papermill = call("perfkit", "notebooks", "said").stdout.splitlines()[-2].split()
        assert papermill[:3] == [str(installed.bin / "python"), "-m", "papermill"]
        assert "Usage" in call("python", *papermill[1:3], "--help").stdout

    @pytest.mark.usefixtures("run")
    def test_nothing_was_written_into_the_package(self, installed: Installed) -> None:
        assert files_of(installed.site) == installed.files
