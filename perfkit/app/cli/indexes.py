"""Commands on indexes: use, apply, rollback, ablate, cost, advise."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from perfkit import app
from perfkit import config as configuration
from perfkit.app.cli import echo, options
from perfkit.app.cli.plans import opened
from perfkit.app.specs import DB, AblateSpec, AdviseSpec, CostSpec, DatabaseSpec
from perfkit.base.bundle import dumps, write_atomically
from perfkit.base.errors import UsageError
from perfkit.base.options import Names, Option, command, narrowed, option, texts
from perfkit.base.process import progress
from perfkit.base.units import seconds, size
from perfkit.indexes import use as index_use
from perfkit.indexes.coverage import MIN_AGE
from perfkit.indexes.designs import ablation
from perfkit.postgres import index_builds, sqltext
from perfkit.postgres.index_sets import read_set, rollback_script, script
from perfkit.runs import targets
from perfkit.runs.targets import Janitor

if TYPE_CHECKING:
    from perfkit.postgres.index_builds import IndexOutcome
    from perfkit.postgres.servers import External


@click.group()
def indexes() -> None:
    """Measure, advise, build and drop indexes.

    \b
    Examples:
      perfkit indexes use --db service=staging
      perfkit indexes apply set.sql --db service=staging
    """  # noqa: D301 - click wants the character


@dataclass(frozen=True, slots=True, kw_only=True)
class UseSpec(DatabaseSpec):
    """Options of `perfkit indexes use`."""

    db: str = option("", replace(DB, required=True))
    plan: Names = option((), "File with plans of the workload's queries. Repeatable.", "PATH")
    standby: Names = option((), "Standby whose use of the indexes counts too. Repeatable.", "CONNINFO")
    min_age: float = option(MIN_AGE, Option("Days of statistics that dropping an unused index requires.", least=0))
    json: bool = option(False, "Print JSON.")


@indexes.command()
@options(UseSpec)
def use(spec: UseSpec) -> None:
    """List duplicate, redundant, unused, broken and missing indexes.

    perfkit changes nothing. The printed statements may be run together. No statement drops an unused index if the
    statistics are too young, or if the database has standbys that --standby does not name.

    \b
    Examples:
      perfkit indexes use --db service=staging
      perfkit indexes use --db service=primary --standby service=standby
      perfkit indexes use --db service=staging --plan slow.json --json
    """  # noqa: D301 - click wants the character
    plans = [explained.plan for path in spec.plan for explained in app.api.plans(Path(path))]
    facts = index_use.ask(opened(spec, spec.db))
    others = {name: index_use.ask(opened(spec, name)) for name in spec.standby}
    facts = index_use.joined(facts, others)
    remarks = index_use.judge(facts, plans, spec.min_age)
    if spec.json:
        counters = {name: value for name, value in asdict(facts.counters).items() if name not in ("database", "server")}
        keys = ("name", "table", "bytes", "scans", "definition")
        present = [{key: getattr(index, key) for key in keys} for index in facts.indexes]
        document = {"counters": counters, "indexes": present, "remarks": [asdict(remark) for remark in remarks]}
        click.echo(dumps(document, ascii_only=True))
    else:
        echo(repr(index_use.remarks_block(facts, remarks)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSpec(DatabaseSpec):
    """Options of `perfkit indexes rollback`; `apply` takes the same."""

    file: str = option("", Option(metavar="SET.sql", argument=True, required=True))
    db: str = option("", DB)
    dry_run: bool = option(False, "Print the SQL for psql; with --db, only for indexes that exist.")

    def database(self) -> External | None:
        """Open the database; None for a dry run without one. Raises UsageError, TargetRefused, ServerError."""
        if not self.db and not self.dry_run:
            raise UsageError("no database; expected --db CONNINFO, or --dry-run to see the SQL")
        return opened(self, self.db) if self.db else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplySpec(SetSpec):
    """Options of `perfkit indexes apply`."""

    dry_run: bool = option(False, "Print the SQL for psql; with --db, only for indexes that are missing or invalid.")


@indexes.command()
@options(ApplySpec)
def apply(spec: ApplySpec) -> None:
    """Build the indexes of a file CONCURRENTLY, in a database in use.

    The file holds CREATE INDEX and ANALYZE statements, which perfkit first tries on empty tables. It leaves an index
    that exists with the same definition, and rebuilds an invalid one; so the command can be repeated at any time. The
    owner permits it with perfkit allow --ddl.

    \b
    Examples:
      perfkit indexes apply set.sql --dry-run
      perfkit indexes apply set.sql --db service=staging
    """  # noqa: D301 - click wants the character
    index_set = read_set(Path(spec.file))
    external = spec.database()
    if external is None or spec.dry_run:
        present = index_builds.survey(external, external.address.dbname, index_set) if external else None
        click.echo(script(index_set, present), nl=False)
        return
    janitor = Janitor()
    try:
        with progress() as say:
            applied = index_builds.apply(external, external.address.dbname, index_set, say, keeper=janitor)
    finally:
        janitor.close()
    for index in applied:
        echo(_applied(index))
    echo(f"to drop them again: {command(('perfkit', 'indexes', 'rollback'), spec)}")


@indexes.command()
@options(SetSpec)
def rollback(spec: SetSpec) -> None:
    """Drop the indexes of a file CONCURRENTLY, in a database in use.

    perfkit leaves, and reports, an index of that name with another definition.

    \b
    Examples:
      perfkit indexes rollback set.sql --dry-run
      perfkit indexes rollback set.sql --db service=staging
    """  # noqa: D301 - click wants the character
    index_set = read_set(Path(spec.file))
    external = spec.database()
    if external is None or spec.dry_run:
        present = index_builds.inspect_set(external, external.address.dbname, index_set) if external else None
        click.echo(rollback_script(index_set, present), nl=False)
        return
    with progress() as say:
        dropped = index_builds.rollback(external, external.address.dbname, index_set, say)
    for index in dropped:
        echo(_dropped(index))


def _applied(index: IndexOutcome) -> str:
    if index.how == "there":
        return f"{index.name} on {index.table}: already exists, {size(index.bytes)}"
    replaced = ", replaces an invalid one" if index.how == "rebuilt" else ""
    return f"{index.name} on {index.table}: built in {seconds(index.seconds)}, {size(index.bytes)}{replaced}"


def _dropped(index: IndexOutcome) -> str:
    if index.how == "dropped":
        return f"{index.name}: dropped, {size(index.bytes)}"
    return f"{index.name}: " + ("does not exist" if index.how == "absent" else f"left alone: {index.why}")


@click.command()
@options(AblateSpec)
def ablate(spec: AblateSpec) -> None:
    """Measure which indexes of a set the workload needs.

    The workload runs without an index, with each alone, with all but one, and with all. The result says which to keep.

    \b
    Examples:
      perfkit indexes ablate                        the booking system's seven, about 11 minutes
      perfkit indexes ablate --profile quick        6 blocks, about 5 minutes
      perfkit indexes ablate mine.sql --db service=staging --query slow.sql --query other.sql
      perfkit indexes ablate --bundle reports/LAB   render again, measure nothing
    """  # noqa: D301 - click wants the character
    _measured(spec)


@click.command()
@options(CostSpec)
def cost(spec: CostSpec) -> None:
    """Measure what each index costs: size, build time, and writes.

    Inserts, updates and deletes are measured with each index alone and with all.

    \b
    Examples:
      perfkit indexes cost --profile quick
      perfkit indexes cost mine.sql --config mine/perfkit.toml
    """  # noqa: D301 - click wants the character
    _measured(narrowed(AblateSpec, spec, reads=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviseCommand(AdviseSpec):
    """Options of `perfkit indexes advise`."""

    output: Path | None = option(None, "Write the index set to this file.", "FILE")
    dry_run: bool = option(False, "Print the SQL that would be run; run nothing.")


@click.command()
@options(AdviseCommand)
def advise(spec: AdviseCommand) -> None:
    """Propose indexes for a workload.

    For a query that no index helps, the answer says why.

    \b
    Examples:
      perfkit indexes advise                                      the booking system's queries
      perfkit indexes advise --db service=staging --query slow.sql --output set.sql
      perfkit indexes advise --db service=staging --query slow.sql --way whole
    """  # noqa: D301 - click wants the character
    if spec.db and not spec.query:
        raise UsageError("no query; expected at least one --query beside --db")
    if spec.dry_run:
        if spec.db:
            statements = [targets.sql_of(query) for query in texts(spec.query)]
        else:
            statements = [sqltext.read(query.file) for query in configuration.load(spec.config).query]
        built = not spec.db or spec.way
        how = "ANALYZE, " if built or spec.analyze else ""
        for text in statements:
            echo(f"EXPLAIN ({how}FORMAT JSON)\n{text.strip().rstrip(';')};")
        trial = "BEGIN; CREATE INDEX ...; EXPLAIN ...; ROLLBACK;" if built else "SELECT hypopg_create_index('...');"
        echo(f"-- and for every candidate: {trial}")
        return
    advice = app.api.advise(spec)
    echo(repr(advice))
    if spec.output and advice.proposals:
        write_atomically(spec.output, advice.sql)
        echo(str(spec.output))


def _measured(spec: AblateSpec) -> None:
    """Measure an index set and print the answer; with --dry-run, print every set, as statements that create it."""
    if not spec.dry_run:
        lab = app.api.ablate(spec)
        page = lab.render()
        echo(repr(lab.answer))
        echo(str(page))
        return
    if spec.db and not spec.indexes:
        raise UsageError("no index set; expected SET.sql beside --db")
    with tempfile.TemporaryDirectory() as folder:
        index_set = targets.index_set(configuration.load(spec.config), spec.indexes, Path(folder))
    by_name = {index.name: index.sql(concurrently=False) for index in index_set.indexes}
    for arm in ablation(index_set):
        echo(f"-- {arm.name}")
        for name in arm.indexes:
            echo(f"{by_name[name]};")


for each in (ablate, cost, advise):
    indexes.add_command(each)
