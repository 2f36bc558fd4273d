"""The way through JupyterLab itself, in a real browser: open the notebook, run all, see the table and the plan."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from browser import Page, browser, needs_browser
from hosted import free_port

from perfkit.base.resources import CHECKOUT

NOTEBOOK = CHECKOUT / "notebooks" / "explore_slow_queries.ipynb"
CELLS = "jupyterapp.shell.currentWidget.content.widgets"
pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    needs_browser,
]


@contextmanager
def jupyterlab(root: Path, home: Path, own: Path) -> Iterator[str]:
    """JupyterLab as `make lab` starts it, with what it writes in a folder of its own; gives the address of `root`."""
    port, token = free_port(), secrets.token_hex()
    folders = ("CONFIG", "DATA", "RUNTIME")
    news = own / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text(json.dumps({"fetchNews": "false"}))  # or it asks, in front of everything else
    environment = {
        **os.environ,
        "PERFKIT_HOME": str(home),
        "IPYTHONDIR": str(own / "ipython"),
        **{f"JUPYTER_{name}_DIR": str(own / name.lower()) for name in folders},
        **{f"JUPYTERLAB_{name}_DIR": str(own / name.lower()) for name in ("SETTINGS", "WORKSPACES")},
    }
    command = [
        *(sys.executable, "-m", "jupyter", "lab", "--no-browser", "--expose-app-in-browser"),
        *("--allow-root" for _ in [0] if os.geteuid() == 0),
        *(f"--notebook-dir={root}", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
        *(f"--IdentityProvider.token={token}", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"),
    ]
    with (own / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for_answer(process, f"http://127.0.0.1:{port}/api", own / "log")
            yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}"
        finally:
            process.terminate()  # it ends its kernels, and these their servers
            process.wait(30)


def wait_for_answer(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urlopen(url, timeout=5):
                return
        except URLError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def wait_until(tab: Page, expression: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not tab.evaluate(f"try {{ Boolean({expression}) }} catch (error) {{ false }}"):
        assert time.monotonic() < deadline, tab.evaluate("document.body.innerText")
        time.sleep(0.2)


def outputs(tab: Page) -> list[dict]:
    """Every output of the notebook that is open."""
    found = f"{CELLS}.flatMap(cell => cell.model.type === 'code' ? cell.model.outputs.toJSON() : [])"
    return json.loads(tab.evaluate(f"JSON.stringify({found})"))


def test_run_all_shows_the_table_and_the_plan(tmp_path: Path, server_home: Path) -> None:
    root, own = tmp_path / "notebooks", tmp_path / "own"
    root.mkdir(), own.mkdir()
    text = NOTEBOOK.read_text()
    assert "measure: bool = True" in text
    (root / NOTEBOOK.name).write_text(text.replace("measure: bool = True", "measure: bool = False"))
    with jupyterlab(root, server_home, own) as address, browser(tmp_path / "profile") as tab:
        tab.open(address.format(NOTEBOOK.name), height=12_000)  # all of it in view: what is not may not be drawn
        tab.call("Emulation.setFocusEmulationEnabled", enabled=True)
        opened = "[...jupyterapp.shell.widgets('main')].find(widget => widget.context?.isReady)"
        wait_until(tab, opened, 60)
        tab.evaluate(f"jupyterapp.shell.activateById({opened}.id)")
        wait_until(tab, "jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'", 60)
        tab.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
        wait_until(tab, f"{CELLS}.every(cell => cell.model.type !== 'code' || cell.model.executionCount)", 120)
        assert [o for o in outputs(tab) if o["output_type"] == "error"] == []
        assert "Statements by total time" in tab.evaluate("document.querySelector('.jp-OutputArea caption').innerText")
        shown = "[...document.querySelectorAll('.jp-OutputArea {}')].filter(e => e.getBoundingClientRect().height > 0)"
        assert tab.evaluate(f"{shown.format('.shares')}.length") == 1
        assert "Seq Scan on" in tab.evaluate(f"{shown.format('.plan .tree')}.map(e => e.innerText).join()")
        assert "contact_id" in tab.evaluate("document.body.innerText.match(/CREATE INDEX \\w+ ON [^;]*/)[0]")
