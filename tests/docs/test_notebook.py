"""The lines of docs/notebook.md that use frames and pictures do what it says."""

import re
from pathlib import Path

import pytest
from matplotlib import pyplot
from synthetic import make_run

from perfkit.base.resources import CHECKOUT

PAGE = (CHECKOUT / "docs" / "notebook.md").read_text(encoding="utf-8")


def test_ten_lines_of_ones_own_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    section = PAGE[PAGE.index("## Your own tables and pictures") :]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    folder = "reports/20260301-090000-standard"
    assert folder in code and len([line for line in code.splitlines() if line]) == 10
    run = make_run(tmp_path / "run")
    names: dict[str, object] = {}
    exec(compile(code.replace(folder, str(run.path)), "notebook.md", "exec"), names)
    left, right = pyplot.gcf().axes
    assert left.get_xlabel() == "response time, ms" and left.get_title() == "30 at once"
    assert len(right.patches) == len(run.run.parameters.arms) * len(right.get_yticklabels()) == 4 * 5  # arms, loads
    assert (tmp_path / "arms.svg").stat().st_size > 10_000
    assert "after-full" in capsys.readouterr().out
    pyplot.close("all")


@pytest.mark.parametrize("name", ["levels", "thresholds", "checks", "index_costs", "errors"])
def test_every_table_of_a_run_has_a_frame(name: str, tmp_path: Path) -> None:
    from perfkit.analysis.report import Run

    table = getattr(Run(make_run(tmp_path / "run")), name)
    assert len(table.frame) == len(table.rows)
