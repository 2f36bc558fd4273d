"""Metrics for Prometheus: names and units by its conventions, bounded, and no scraper ever holds up the watch."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from urllib.request import Request, urlopen

import pytest
import watching
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_plain
from prometheus_client.samples import Sample

from perfkit.base.errors import UsageError
from perfkit.monitor.metrics import OUTCOMES, Metrics, endpoint
from perfkit.monitor.model import SERVER, Event

OPEN = "application/openmetrics-text; version=1.0.0; charset=utf-8"
HOSTILE = '"} 1\nperfkit_up{x="\\\x1b[31m\u202e<script>'


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    own = Metrics(watching.about())
    yield own
    own.close()


def scrape(port: int, accept: str = OPEN) -> str:
    with urlopen(Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept}), timeout=10) as reply:
        assert accept.split(";")[0] in reply.headers["Content-Type"]
        return reply.read().decode()


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Values by name and the values of labels, as Prometheus reads them."""
    families = list(parse_open(text) if text.endswith("# EOF\n") else parse_plain(text))
    found: list[Sample] = [sample for family in families for sample in family.samples]
    return {(s.name, *(v for _, v in sorted(s.labels.items()))): s.value for s in found}


def raised(rule: str, level: str) -> Event:
    return Event("raised", "e1", 60.0, watching.BEGAN + 60, f"{rule} broken", rule, level)


@pytest.mark.parametrize("accept", [OPEN, "text/plain;version=0.0.4"])
def test_probes_are_counted_by_item_and_outcome(metrics: Metrics, accept: str) -> None:
    for _ in range(3):
        metrics.observe("book", "ok", 0.19)
    metrics.observe("book", "timeout", 5.0)
    found = samples(scrape(metrics.serve(), accept))
    assert found["perfkit_probes_total", "book", "request", "ok"] == 3
    assert found["perfkit_probes_total", "book", "request", "timeout"] == 1
    assert found["perfkit_probes_total", "conflict_check", "query", "ok"] == 0


def test_response_times_are_histograms_that_can_be_added_up(metrics: Metrics) -> None:
    for ms in (4, 590, 610, 40_000):
        metrics.observe("book", "ok", ms / 1000)
    metrics.observe("upcoming", "ok", 0.004)
    metrics.observe("book", "timeout", 5.0)  # no response, no response time
    found = samples(scrape(metrics.serve()))
    name = "perfkit_probe_duration_seconds"
    below = {le: found[f"{name}_bucket", "book", "request", le] for le in ("0.005", "0.6", "0.8", "30.0", "+Inf")}
    assert below == {"0.005": 1, "0.6": 2, "0.8": 3, "30.0": 3, "+Inf": 4}
    assert found[f"{name}_sum", "book", "request"] == pytest.approx(41.204)
    buckets = {key[-1] for key in found if key[:2] == (f"{name}_bucket", "book")}
    assert buckets == {key[-1] for key in found if key[:2] == (f"{name}_bucket", "upcoming")}


def test_the_servers_figures_are_those_of_the_last_interval(metrics: Metrics) -> None:
    tick = watching.quiet(0.1)[-1]
    port = metrics.serve()
    assert "perfkit_server" not in scrape(port)
    metrics.update(tick, [])
    found = samples(scrape(port))
    assert tick.server
    assert found[("perfkit_server_connections",)] == tick.server["connections"]
    assert found[("perfkit_server_commits_total",)] == tick.server["commits"]
    assert found[("perfkit_service_up",)] == found[("perfkit_database_up",)] == 1
    assert found[("perfkit_watch_interval_end_timestamp_seconds",)] == tick.at
    metrics.update(replace(tick, server=None), [])
    found = samples(scrape(port))
    assert found[("perfkit_database_up",)] == 1  # the queries were answered
    assert not [key for key in found if key[0].startswith("perfkit_server")]


def test_every_figure_of_the_server_has_a_metric(metrics: Metrics) -> None:
    metrics.update(replace(watching.quiet(0.1)[-1], server=dict.fromkeys(SERVER, 1.0)), [])
    found = samples(scrape(metrics.serve()))
    assert len([key for key in found if key[0].startswith("perfkit_server_")]) == len(SERVER)


@pytest.mark.parametrize(("kind", "down"), [("service-down", "service"), ("database-down", "database")])
def test_what_is_down_is_0(metrics: Metrics, kind: watching.Incident, down: str) -> None:
    metrics.update(watching.with_incident(watching.quiet(0.1), kind, 100, 300)[-1], [])
    assert samples(scrape(metrics.serve()))[(f"perfkit_{down}_up",)] == 0


def test_alerts_that_stand_are_1_and_every_other_rule_is_0(metrics: Metrics) -> None:
    port = metrics.serve()
    metrics.update(watching.quiet(0.1)[-1], [raised("latency-600", "P2")])
    found = samples(scrape(port))
    assert found["perfkit_alert_standing", "P2", "latency-600"] == 1
    assert found["perfkit_alert_standing", "P1", "database-down"] == 0
    metrics.update(watching.quiet(0.1)[-1], [])
    assert samples(scrape(port))["perfkit_alert_standing", "P2", "latency-600"] == 0


@pytest.mark.parametrize("accept", [OPEN, "text/plain;version=0.0.4"])
def test_hostile_names_stay_values_of_labels(accept: str) -> None:
    about = watching.about(title=HOSTILE).model_copy(update={"kinds": {HOSTILE: "request"}})
    metrics = Metrics(about)
    with closing(metrics):
        metrics.observe(HOSTILE, HOSTILE, 0.1)
        metrics.update(watching.quiet(0.1)[-1], [raised(HOSTILE, "P1")])
        text = scrape(metrics.serve(), accept)
        found = samples(text)
    assert not [key for key in found if key[0] == "perfkit_up"]
    assert not set("\x1b\u202e") & set(text)
    assert [value for key, value in found.items() if key[0] == "perfkit_alert_standing" and "script" in key[-1]] == [1]


def test_outcomes_beyond_a_bound_are_one(metrics: Metrics) -> None:
    for n in range(3 * OUTCOMES):
        metrics.observe("book", f"sqlstate_{n}", 0.1)
    counts = {
        key: v for key, v in samples(scrape(metrics.serve())).items() if key[:2] == ("perfkit_probes_total", "book")
    }
    assert len(counts) <= OUTCOMES + 1
    assert sum(counts.values()) == 3 * OUTCOMES


def test_it_is_reached_from_this_machine_only(metrics: Metrics) -> None:
    port = metrics.serve()
    with closing(socket.create_connection(("127.0.0.1", port))) as own:
        assert own.getpeername()[0] == "127.0.0.1"
    with pytest.raises(OSError), closing(socket.create_connection(("127.0.0.2", port), timeout=5)):
        pass


def test_a_port_in_use_is_one_line(metrics: Metrics) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            UsageError, match=rf"^metrics: 127\.0\.0\.1 port {port}: .+; expected an address and a free port"
        ) as caught:
            metrics.serve(port=port)
    assert "\n" not in str(caught.value)


def test_an_address_that_is_named_is_served_too(metrics: Metrics) -> None:
    port = metrics.serve(*reversed(endpoint("127.0.0.2:0")))
    with closing(socket.create_connection(("127.0.0.2", port), timeout=5)):
        pass


def test_a_port_that_cannot_be_is_one_line(metrics: Metrics) -> None:
    with pytest.raises(UsageError, match=r"^metrics: 127\.0\.0\.1 port 70000: [^\n]+$"):
        metrics.serve(70_000)


@pytest.mark.slow
def test_a_scraper_that_is_stuck_delays_neither_the_watch_nor_another(metrics: Metrics) -> None:
    port = metrics.serve()
    stuck = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for one in stuck[:10]:
        one.sendall(b"GET /metrics HTTP/1.1\r\n")  # and never the rest
    done = threading.Event()

    def watch() -> None:
        for n in range(1000):
            metrics.observe("book", "ok", n / 1000)
            metrics.update(watching_tick, [])
        done.set()

    watching_tick = watching.quiet(0.1)[-1]
    threading.Thread(target=watch, daemon=True).start()
    assert done.wait(60)
    assert samples(scrape(port))["perfkit_probes_total", "book", "request", "ok"] == 1000
    for one in stuck:
        one.close()


def test_a_scraper_that_hangs_up_says_nothing_on_the_terminal(
    metrics: Metrics, capfd: pytest.CaptureFixture[str]
) -> None:
    port = metrics.serve()
    for _ in range(5):
        with closing(socket.create_connection(("127.0.0.1", port))) as rude:
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            rude.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    scrape(port)
    metrics.close()
    assert capfd.readouterr() == ("", "")


def test_a_closed_port_is_free_again(metrics: Metrics) -> None:
    port = metrics.serve()
    scrape(port)
    metrics.close()
    assert metrics.serve(port=port) == port
