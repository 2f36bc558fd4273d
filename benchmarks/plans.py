"""How fast plans are read, judged, fingerprinted and drawn: plans as a server gave them, of 30 and 400 nodes."""

from __future__ import annotations

import gc
import json
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import psycopg

from perfkit.base.bundle import loads
from perfkit.explain.comparison import fingerprint
from perfkit.explain.findings import findings
from perfkit.explain.html import PlanView
from perfkit.explain.plan import read_plan
from perfkit.postgres import databases, embedded

DATABASE = "perfkit_plans"
PLANS = 300  # each with constants of its own, as no two executions have the same
ROUNDS = 5  # the best counts: others use the machine too
LIMITS = {"plans a second": 1_000.0, "drawing (ms)": 200.0, "drawing (kB)": 400.0}
DATA = """
CREATE TABLE clinics (id int PRIMARY KEY, name text, city int);
INSERT INTO clinics SELECT n, 'clinic ' || n, n % 20 FROM generate_series(1, 200) n;
CREATE TABLE people (id int PRIMARY KEY, name text, born int);
INSERT INTO people SELECT n, 'person ' || n, 1930 + n % 90 FROM generate_series(1, 5000) n;
CREATE TABLE visits (id int PRIMARY KEY, clinic_id int, person_id int, day int, note text);
INSERT INTO visits SELECT n, n % 200 + 1, n % 5000 + 1, n % 365, repeat('x', 40) FROM generate_series(1, 30000) n;
CREATE INDEX visits_clinic ON visits (clinic_id, day);
CREATE TABLE bills (id int, visit_id int, cents int, day int) PARTITION BY RANGE (day);
DO $$ BEGIN FOR n IN 0..98 LOOP
  EXECUTE format('CREATE TABLE bills_%s PARTITION OF bills FOR VALUES FROM (%s) TO (%s)', n, n, n + 1);
END LOOP; END $$;
INSERT INTO bills SELECT n, n, n % 9000, n % 99 FROM generate_series(1, 20000) n;
ANALYZE;
"""
SUBQUERIES = """
WITH busy AS MATERIALIZED (
  SELECT clinic_id, count(*) AS n FROM visits WHERE day < 200 GROUP BY clinic_id HAVING count(*) > 3),
late AS MATERIALIZED (SELECT v.* FROM visits v JOIN clinics c ON c.id = v.clinic_id WHERE c.city = 3 AND v.day > 180)
SELECT c.name, b.n, (SELECT max(day) FROM visits v WHERE v.clinic_id = c.id) AS last, 0
FROM clinics c JOIN busy b ON b.clinic_id = c.id
WHERE b.n > (SELECT avg(n) FROM busy) AND EXISTS (SELECT FROM late l WHERE l.clinic_id = c.id AND l.note LIKE 'x%')
UNION ALL
SELECT p.name, count(*), min(v.day), sum(v.id)
FROM people p JOIN visits v ON v.person_id = p.id
WHERE p.born > 1990 AND v.note = 'x' AND v.clinic_id = ANY (ARRAY(SELECT id FROM clinics WHERE city < 5))
GROUP BY p.id ORDER BY 2 DESC, 1 LIMIT 40
"""
JOINS = """
SELECT c.name, p.name, count(*), sum(b.cents)
FROM visits v JOIN clinics c ON c.id = v.clinic_id JOIN people p ON p.id = v.person_id
JOIN bills_7 b ON b.visit_id = v.id
WHERE v.day BETWEEN 20 AND 220 AND p.born < 1980 GROUP BY 1, 2 HAVING sum(b.cents) > 10
UNION ALL
SELECT c.name, p.name, count(*), min(v.day)
FROM visits v JOIN clinics c ON c.id = v.clinic_id JOIN people p ON p.id = v.person_id
WHERE c.city = 7 AND v.day > 100 GROUP BY 1, 2
UNION ALL
SELECT c.name, '', count(DISTINCT v.person_id), 0
FROM clinics c JOIN visits v ON v.clinic_id = c.id WHERE v.note LIKE 'x%' AND v.day < 300 GROUP BY 1
ORDER BY 3 DESC, 1 LIMIT 50
"""
FOUR_HUNDRED = "SELECT a.day, count(*) FROM bills a JOIN bills b USING (id, day) WHERE a.cents > 4000 GROUP BY a.day"
EXPLAIN = "EXPLAIN (ANALYZE, BUFFERS, VERBOSE, SETTINGS, WAL, FORMAT JSON) "


def main() -> bool:
    """Print each figure beside its limit; True where all hold."""
    with embedded.start(18) as server:
        databases.create(server, DATABASE)
        try:
            with server.connect(DATABASE) as connection:
                _fill(connection)
                thirty = [json.dumps(_explained(connection, sql)) for sql in (SUBQUERIES, JOINS)]
                large = _explained(connection, FOUR_HUNDRED)
        finally:
            databases.drop(server, DATABASE)
    texts = [_varied(thirty[n % 2], n) for n in range(PLANS)]
    documents = [loads(text) for text in texts]
    plans = [read_plan(document) for document in documents]
    gc.freeze()  # these would be looked through again and again for garbage, as nobody's are
    found = {
        "JSON": _seconds(loads, texts),
        "read": _seconds(read_plan, documents),
        "judged": _seconds(findings, plans),
        "fingerprinted": _seconds(fingerprint, plans),
    }
    whole = sum(found.values())
    view = PlanView(read_plan(large), findings(read_plan(large)))
    figures = {
        "plans a second": PLANS / whole,
        "drawing (ms)": 1000 * _seconds(lambda shown: shown.html(), [view]),
        "drawing (kB)": len(view.html().encode()) / 1000,
    }
    print(f"plans    {'nodes':14} {len(plans[0].nodes):7d}, {len(plans[1].nodes)} and {len(view.plan.nodes)}")
    for name, value in found.items():
        print(f"plans    {name:14} {1000 * value / PLANS:7.3f} ms each")
    for name, value in figures.items():
        print(f"plans    {name:14} {value:7.0f}  (limit {LIMITS[name]:g})")
    return (
        figures["plans a second"] >= LIMITS["plans a second"]
        and figures["drawing (ms)"] <= LIMITS["drawing (ms)"]
        and figures["drawing (kB)"] <= LIMITS["drawing (kB)"]
    )


def _fill(connection: psycopg.Connection[Any]) -> None:
    psycopg.Cursor(connection).execute(DATA.encode())  # several statements, which perfkit's own cursors do not take
    connection.execute("SET enable_partitionwise_join = on")


def _explained(connection: psycopg.Connection[Any], sql: str) -> Any:
    row = connection.execute(f"{EXPLAIN}{sql}".encode()).fetchone()
    return next(iter(dict(row or {}).values()))


def _varied(text: str, n: int) -> str:
    """The same plan with other constants in its conditions."""
    return re.sub(r"(?<=[<>=] )\d+(?=\))", lambda m: str(int(m[0]) + n), text)


def _seconds(work: Callable[[Any], object], items: Iterable[Any]) -> float:
    """What the work takes for all items, at best, in processor time."""
    items = list(items)
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        for item in items:
            work(item)
        best = min(best, time.process_time() - start)
    return best
