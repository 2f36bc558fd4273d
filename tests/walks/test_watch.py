"""One probe of a watch is followed through few modules: to its alert, to the dashboard, and to the review."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tracing import traced
from watched import Web, permission, web, written

from perfkit import config
from perfkit.monitor import dashboard, review_report
from perfkit.monitor.alerts import Alerts
from perfkit.monitor.loop import Loop, Notes
from perfkit.monitor.model import About
from perfkit.monitor.prober import Prober, open_target, plan_probes
from perfkit.monitor.store import Store, read
from perfkit.postgres.guards import Audit

MOST = 12  # modules outside `base` on each part of the way
PAGE = """
[[request]]
name = "page"
path = "/page"
[watch]
every_s = 0.5
rate = 20
send = ["page"]
[[watch.rule]]
name = "any"
level = "P2"
metric = "error_rate"
above = 0
for_s = 0
"""


@pytest.fixture
def service() -> Iterator[Web]:
    with web() as running:
        running.status = 500
        yield running


def test_a_probe_that_fails_is_an_alert_on_the_dashboard_and_in_the_review(tmp_path: Path, service: Web) -> None:
    settings = config.load(written(tmp_path, PAGE, http=service.port, sql=1, first="page"))
    watch, folder = settings.watch, tmp_path / "watch"
    stored = {"watch": watch.model_dump(mode="json")}
    about = About(
        id="w", title="t", target="x", began=1e9, every_s=0.5, kinds={"page": "request"}, rate=20, settings=stored
    )
    store = Store.open(folder, about)
    plan = plan_probes(settings, permission(service.port, 1))
    with open_target(plan, Audit(tmp_path / "audit.jsonl"), lambda _: None) as target, traced() as modules:
        prober = Prober(replace(target, reach=None), watch, lambda *_: None, Notes())
        prober.start()
        Loop(watch, store, Alerts(watch, about), prober, None, Notes()).run(1.0)
        prober.close()
        store.close()
    assert [event.rule for event in read(folder).active] == ["any"]
    assert len(modules) <= MOST, " ".join(sorted(modules))
    with traced() as modules:
        page = dashboard.write(folder).read_text()
    assert "P2 any" in page and len(modules) <= MOST, " ".join(sorted(modules))
    with traced() as modules:
        recommendation = repr(review_report.open_review(folder).recommendation)
    assert "P2 any is still active" in recommendation and len(modules) <= MOST, " ".join(sorted(modules))
