"""A run from start to end: server, data, arms, plans, checks, blocks; into a bundle as it goes.

Setting up, cloning and resetting services happen between rounds; nothing but load happens inside one.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perfkit import host
from perfkit.arms import Relay, Stage, parameters
from perfkit.block import Block, Clock, Ground, Progress, Rows
from perfkit.bundle import Bundle
from perfkit.checks import CheckResult, run_checks
from perfkit.config import Arm
from perfkit.errors import Interrupted, LoadError, PerfkitError
from perfkit.explain.capture import explain, typical_parameters
from perfkit.load.crew import Crew, http_target
from perfkit.load.plan import Draw
from perfkit.postgres import databases, embedded
from perfkit.process import alone, spawn, stop
from perfkit.selection import Selection

PLANNED = 15  # parameter rows that are planned to find the plan most of them get


def measure(chosen: Selection, folder: Path, progress: Progress = lambda _: None) -> Bundle:
    """Run the experiment into a new bundle in `folder`.

    Whatever happens, the bundle stays readable and says how far it came, and nothing is left running.
    Raises PerfkitError; Interrupted when the user stopped it.
    """
    experiment = Experiment(chosen, progress)
    bundle = Bundle.create(folder, {"started": _now(), **experiment.describe()})
    try:
        experiment.run(bundle)
        bundle.update(status="complete", finished=_now())
    except KeyboardInterrupt:
        bundle.update(status="interrupted", finished=_now(), message="stopped by the user")
        raise Interrupted(f"stopped; what was measured so far is in {folder}") from None
    except PerfkitError as error:
        bundle.update(status="failed", finished=_now(), message=_homeless(str(error)))
        raise
    except BaseException as error:
        bundle.update(status="failed", finished=_now(), message=_homeless(f"{type(error).__name__}: {error}"))
        raise
    finally:
        progress("")
    return bundle


class Experiment:
    """One run of a selection; everything random comes from its seed."""

    def __init__(self, chosen: Selection, progress: Progress) -> None:
        self._chosen, self._progress, self._clock = chosen, progress, Clock()

    def describe(self) -> dict[str, Any]:
        """What `run.json` says before anything ran."""
        return self._chosen.describe()

    def run(self, bundle: Bundle) -> None:
        """Set up, check, measure every block."""
        chosen, clock = self._chosen, self._clock
        with ExitStack() as stack:
            stack.enter_context(alone(self._progress))
            with clock.timed("server"):
                stage = self._stage(stack)
            rows = self._set_up(stage, bundle)
            with clock.timed("workers"):
                crew = stack.enter_context(Crew(host.cores(), stage.require_alive))
                null = stack.enter_context(_null_service()) if chosen.config.service else ""
            checks = self._checks(stage, crew, rows)
            bundle.update(
                workers=len(crew),
                checks={arm: [check.as_dict() for check in own] for arm, own in checks.items()},
            )
            ground = Ground(chosen, stage, crew, null, rows, clock, self._progress)
            for number in range(chosen.blocks):
                Block(ground, number).run(bundle)
                bundle.update(timings=dict(clock.seconds))

    def check(self) -> dict[str, list[CheckResult]]:
        """Only the functional checks, by arm."""
        with ExitStack() as stack:
            stack.enter_context(alone(self._progress))
            stage = self._stage(stack)
            self._progress(f"making the data ({self._chosen.scale})")
            rows = parameters(stage, self._chosen.config, stage.base(self._chosen.scale))
            for arm in self._chosen.arms:
                stage.template(arm)
            return self._checks(stage, stack.enter_context(Crew(host.cores(), stage.require_alive)), rows)

    def _stage(self, stack: ExitStack) -> Stage:
        """The server, this process's use of it, and the place for the run's databases and services."""
        self._progress("starting PostgreSQL")
        chosen = self._chosen
        server = stack.enter_context(embedded.start(chosen.postgres, chosen.config.database.settings))
        relay = Relay(chosen.options.rtt_ms, chosen.options.connect_rtts)
        return stack.enter_context(Stage(server, chosen.config, secrets.token_hex(3), relay))

    def _set_up(self, stage: Stage, bundle: Bundle) -> Rows:
        """Base database, parameters, templates with their indexes, and every arm's plans."""
        chosen, clock = self._chosen, self._clock
        with clock.timed("data"):
            self._progress(f"making the data ({chosen.scale})")
            base = stage.base(chosen.scale)
        rows = parameters(stage, chosen.config, base)
        sizes = databases.sizes(stage.server, base)
        bundle.update(
            server={
                "kind": "embedded",
                "version": databases.server_version(stage.server),
                "settings": databases.settings(stage.server),
            },
            database={
                "scale": chosen.scale,
                "rows": {table: size["rows"] for table, size in sizes.items()},
                "bytes": {table: size["bytes"] for table, size in sizes.items()},
                "seconds": round(clock.seconds["data"], 2),
            },
        )
        arms = {arm.name: self._prepare(stage, arm, rows, bundle) for arm in chosen.arms}
        bundle.update(arms=arms)
        return rows

    def _prepare(self, stage: Stage, arm: Arm, rows: Rows, bundle: Bundle) -> dict[str, Any]:
        """An arm's template with its indexes, and the plan of every query on it."""
        self._progress(f"preparing {arm.name}")
        with self._clock.timed("indexes"):
            template, built = stage.template(arm)
        with self._clock.timed("plans"):
            conninfo, limit = stage.server.conninfo(template), self._chosen.config.limits.statement_timeout_s
            for query in self._chosen.config.query:
                sql = self._chosen.sql[query.name]
                typical = typical_parameters(conninfo, sql, rows[query.parameters][:PLANNED])
                bundle.add_plan(arm.name, query.name, explain(conninfo, sql, typical, timeout_s=limit))
        sizes = databases.sizes(stage.server, template)
        return {
            "title": arm.title,
            "role": arm.role,
            "indexes": [index.as_dict() for index in built],
            "expected_indexes": self._chosen.expected_indexes[arm.name],
            "table_bytes": {table: size["bytes"] for table, size in sizes.items()},
        }

    def _checks(self, stage: Stage, crew: Crew, rows: Rows) -> dict[str, list[CheckResult]]:
        """Functional checks of every arm but the control, on clones that no round will use."""
        config = self._chosen.config
        if config.service is None or not config.check:
            return {}
        arms = [arm for arm in self._chosen.arms if arm.role != "control"]
        results = {}
        with self._clock.timed("checks"):
            self._progress("functional checks")
            for arm in arms:
                stage.clone(arm)
            stage.serve(arms)
            for arm in arms:
                target = http_target(stage.services[arm.name].base, config.limits.request_timeout_s)
                draw = Draw(rows, f"{self._chosen.options.seed}/checks")
                results[arm.name] = run_checks(config, target, crew, draw)
        return results


@contextmanager
def _null_service() -> Iterator[str]:
    """A service that does nothing, for the floor; yields where it answers."""
    process = spawn(
        [sys.executable, "-m", "perfkit.load.null"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        if not line:
            raise LoadError("the null service did not start; expected its port")
        yield f"http://127.0.0.1:{json.loads(line)['port']}"
    finally:
        stop(process)


def _homeless(text: str) -> str:
    """A message without the name of anybody's home folder, for what is mailed."""
    return text.replace(str(Path.home()), "~")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
