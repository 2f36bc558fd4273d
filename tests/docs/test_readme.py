"""The README is short, and the first steps that it shows work."""

import os
import re
import shutil
import subprocess
import sys

import pytest

import perfkit
from perfkit import config
from perfkit.app.evidence import SlowQuery
from perfkit.base.resources import CHECKOUT as ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_has_at_most_8000_bytes():
    assert len(README.encode()) <= 8_000


@pytest.mark.slow
def test_the_example_to_copy_gives_a_report(tmp_path, server_home):
    shutil.copytree(ROOT / "docs/examples/orders", tmp_path / "mine")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "perfkit", "report", "--config", "mine/perfkit.toml"),
            *("--profile", "quick", "--reports", "runs"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PERFKIT_HOME": str(server_home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("GO: ")
    page = next((tmp_path / "runs").glob("*/report.html")).read_text()
    assert "orders_customer_date" in page


def test_the_profiles_it_promises_exist():
    assert "PROFILE=quick" in README and "quick" in config.load().profiles


def test_the_calls_of_its_example_exist():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    compile(example, "README.md", "exec")
    assert {"demo", "connect"} <= set(perfkit.__all__)
    for name in re.findall(r"^slow\[1\]\.(\w+)\(", example, re.MULTILINE):
        assert callable(getattr(SlowQuery, name)), name
