"""The examples of docs/watch.md fit what perfkit does: metrics, limits, options, a webhook."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.request import urlopen

import documents
import pytest
import watching
import yaml
from prometheus_client.parser import text_string_to_metric_families

from perfkit import config
from perfkit.base.resources import CHECKOUT
from perfkit.config import WatchRule
from perfkit.monitor.metrics import BUCKETS, Metrics
from perfkit.monitor.model import Event

ROOT = CHECKOUT
PAGE = (ROOT / "docs/watch.md").read_text()
EXAMPLES = ROOT / "docs/examples/monitoring"
ALERTS = {"latency-600": 0.6, "errors-1-percent": 0.01, "throughput-drop": 0.3}


@pytest.fixture(scope="module")
def known() -> dict[str, dict[str, set[str]]]:
    """Of every metric that is served its labels and their values."""
    metrics = Metrics(watching.about())
    with closing(metrics):
        metrics.update(watching.quiet(0.1)[-1], [])
        with urlopen(f"http://127.0.0.1:{metrics.serve()}/metrics", timeout=10) as reply:
            text = reply.read().decode()
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


def rules() -> list[dict[str, Any]]:
    return [
        rule
        for group in yaml.safe_load((EXAMPLES / "perfkit.rules.yml").read_text())["groups"]
        for rule in group["rules"]
    ]


def expressions() -> list[str]:
    board = json.loads((EXAMPLES / "grafana-dashboard.json").read_text())
    return [*(t["expr"] for p in board["panels"] for t in p["targets"]), *(rule["expr"] for rule in rules())]


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_uses_metrics_and_labels_that_exist(
    expression: str, known: dict[str, dict[str, set[str]]]
) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = re.findall(r"perfkit[_:][a-z0-9_:]+", expression)
    assert used and set(used) <= known.keys() | recorded
    for metric, matchers in re.findall(r"(perfkit_[a-z_]+)\{([^}]*)\}", expression):
        for label, value in re.findall(r'(\w+)="([^"]*)"', matchers):
            assert value in known[metric][label]
    by = [name.strip() for names in re.findall(r"by \(([^)]*)\)", expression) for name in names.split(",")]
    assert set(by) <= {"instance", "le"}


@pytest.mark.parametrize(("name", "expected"), ALERTS.items())
def test_the_three_alerts_are_those_of_the_configuration(name: str, expected: float) -> None:
    own: WatchRule = next(rule for rule in config.load().watch.rule if rule.name == name)
    alert = next(rule for rule in rules() if rule.get("alert") == name)
    scale = 1000 if own.metric == "p95_ms" else 1
    limit = float(alert["expr"].rsplit(">", 1)[1])
    assert limit == expected and limit * scale == own.above
    assert alert["labels"]["level"] == own.level and own.action in alert["annotations"]["summary"]
    assert alert["for"] == f"{own.for_s / 60:g}m"


def test_limits_in_seconds_are_ends_of_buckets() -> None:
    limits = [rule.above for rule in config.load().watch.rule if rule.metric == "p95_ms"]
    assert {limit / 1000 for limit in limits if limit} <= set(BUCKETS)


def test_the_board_has_the_five_panels() -> None:
    board = json.loads((EXAMPLES / "grafana-dashboard.json").read_text())
    titles = [panel["title"] for panel in board["panels"] if panel["type"] == "timeseries"]
    assert titles == ["P50 latency", "P95 latency", "P99 latency", "Error rate", "Throughput"]


def test_prometheus_reads_the_rules_beside_it_and_the_port_of_the_page() -> None:
    found = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())
    assert all((EXAMPLES / name).is_file() for name in found["rule_files"])
    (target,) = found["scrape_configs"][0]["static_configs"][0]["targets"]
    assert f"http://{target}/metrics" in PAGE


def test_the_units_command_takes_its_options() -> None:
    unit = re.search(r"^ExecStart=(.*)$", (EXAMPLES / "perfkit-watch.service").read_text(), re.MULTILINE)
    assert unit
    documents.parse(unit[1], whole=True)


class _Chat(BaseHTTPRequestHandler):
    said: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def chat() -> Iterator[HTTPServer]:
    _Chat.said = []
    with HTTPServer(("127.0.0.1", 0), _Chat) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.process
def test_a_chat_is_told_of_an_alert(chat: HTTPServer) -> None:
    event = Event("raised", "e1", 60, watching.BEGAN, "p95 712 ms, above 600 ms", "latency-600", "P2")
    named = set(re.findall(r"`(\w+)`", PAGE[PAGE.index("The event has") : PAGE.index("## Prometheus")]))
    assert named - {"cleared"} == set(asdict(event))
    url = f"http://127.0.0.1:{chat.server_port}/"
    done = subprocess.run(
        [sys.executable, EXAMPLES / "tell_chat.py"],
        input=event.line(),
        text=True,
        env={**os.environ, "CHAT_WEBHOOK": url},
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert _Chat.said == [{"text": "P2 raised: p95 712 ms, above 600 ms"}]
