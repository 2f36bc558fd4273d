"""Commands about the decision to ship: gate makes it, verify holds a decision against its files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import click

from perfkit.cli.group import echo
from perfkit.cli.runs import GATE, INVALID, exit_code


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--arm", default="", help="Only this arm is to be shipped.")
@click.option("--watch", default="", metavar="FOLDER", help="The folder of a watch, which must be running.")
@click.option(
    "--answer", "answers", multiple=True, metavar="QUESTION=yes|no", help="What a person says; several times."
)
@click.option("--by", default="", metavar="NAME", help="Who says it.")
@click.option("--junit", default="", metavar="FILE", help="Write the items as JUnit XML too.")
@click.option("--json", "as_json", default="", metavar="FILE", help="Write the decision as JSON too.")
def gate(run: Path, arm: str, watch: str, answers: tuple[str, ...], by: str, junit: str, as_json: str) -> None:
    """Decide whether to ship: exit 0 on GO, 99 NO-GO, 96 NO BENEFIT, 100 INCONCLUSIVE, 98 invalid.

    The rules of a run on disk, its checks, its database, a watch, and what people answer, as one table. Writes
    decision.html and decision.json into the run's folder, and seals it. Of one arm alone, which is compared with
    nothing: 0 where its limits hold, 99 broken, 100 unproven.

    \b
    Examples:
      perfkit gate reports/20260115-090000-standard
      perfkit gate reports/RUN --arm after-index --watch reports/watch
      perfkit gate reports/RUN --answer "Team ready for launch=yes" --by "Ops Lead"
      perfkit gate reports/RUN --junit gate.xml --json gate.json
    """  # noqa: D301 - click wants the character
    from perfkit import api
    from perfkit.bundle import Bundle
    from perfkit.display.subject import is_alone

    if is_alone(Bundle.open(run).run):
        _alone(run)
    made = api.decide(run, arm, watch, answers, by, junit=junit, json=as_json)
    page, decided = made.render(), made.decided
    echo(f"{decided.gate.decision}: {decided.headline}")
    for reason in decided.gate.reasons:
        echo(f"- {reason}")
    echo(f"\n{made.items!r}\n\n{page}\ncontent hash {made.seal.content}")
    code = GATE[str(decided.gate.decision)]
    sys.exit(INVALID if decided.invalid and code == GATE["INCONCLUSIVE"] else code)


def _alone(run: Path) -> NoReturn:
    """One arm, compared with nothing: whether its limits hold."""
    from perfkit.bundle import Bundle
    from perfkit.report.run import Run

    found = Run(Bundle.open(run)).subject
    echo(f"{found.word}: {found.analysis.headline}")
    sys.exit(exit_code(found))


@click.command()
@click.argument("path", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option("--hash", "digits", default="", metavar="DIGITS", help="The content hash on a page, or its beginning.")
def verify(path: Path, digits: str) -> None:
    """Say whether a decision's folder, or its page, is as it was sealed: exit 0 when unchanged, else 1.

    A checksum and no signature: whoever can change the folder can seal it anew. Only the hash on a signed page
    tells that: give it with --hash.

    \b
    Examples:
      perfkit verify reports/20260115-090000-standard
      perfkit verify reports/RUN/decision.html
      perfkit verify reports/RUN --hash 4f0c9a7be210
    """  # noqa: D301 - click wants the character
    from perfkit.release import seal

    wanted = seal.require_hash(digits) if digits else ""
    found = seal.verify(path)
    for what in ("differ", "missing", "new"):
        for name in getattr(found, what):
            echo(f"{'differs' if what == 'differ' else what}: {name}")
    fits = found.content.startswith(wanted)
    if not fits:
        echo(f"content hash is {found.content}, which does not begin with {wanted}")
    if fits and found.unchanged:
        count = len(found.seal.files) + len(found.seal.pages)
        echo(f"unchanged since {found.seal.on}: {count} files, content hash {found.content}")
        sys.exit(0)
    echo(f"not what was sealed at {found.seal.on} with the content hash {found.seal.content}")
    sys.exit(1)
