"""A review as a notebook shows it, and the files that are kept of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from perfkit.bundle import Bundle, require_spare, write_atomically
from perfkit.config import load
from perfkit.display import review as shown
from perfkit.display.html import Block, OpenedPage
from perfkit.display.table import Table, markdown
from perfkit.errors import BundleError, UsageError
from perfkit.monitor.before_release import before_release
from perfkit.monitor.period import stamp
from perfkit.monitor.review import Reviewed, review
from perfkit.monitor.rows import values_of
from perfkit.monitor.store import read
from perfkit.report.files import finite

FORMAT = 1


@dataclass(frozen=True, slots=True, repr=False)
class Review(OpenedPage):
    """A watch held against its targets; nothing here measures. `asked` is what its notebook is given."""

    folder: Path
    found: Reviewed
    asked: Mapping[str, str]

    def render(self, out: Path | None = None) -> Path:
        """Write review.html, review.json and review.md into the watch's folder, or `out` and two beside it.

        Returns the page. The same record gives the same bytes. Raises BundleError, UsageError.
        """
        from perfkit.report.render import REVIEW, page_of

        out = require_spare(out or self.folder / "review.html", "review")
        if out.suffix != ".html":
            raise UsageError(f"{out}; expected a name that ends in .html")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BundleError(f"{out}: cannot be written ({error.strerror}); expected a writable folder") from None
        title = f"{self.found.recommendation.headline}: {self.found.about.title}"
        page_of(REVIEW, {"folder": str(self.folder.resolve()), **self.asked}, out, title)  # a second or two: first
        write_atomically(out.with_suffix(".json"), as_json(self.found))
        write_atomically(out.with_suffix(".md"), as_markdown(self.found))
        return out

    @property
    def recommendation(self) -> Block:
        """What to do, and why."""
        return shown.recommendation(self.found)

    @property
    def table(self) -> Table:
        """Targets and actuals."""
        return shown.review_table(self.found)

    @property
    def incidents(self) -> Block:
        """What happened, and when nobody watched."""
        return shown.incidents(self.found)

    @property
    def against(self) -> Table:
        """Before the release and since."""
        return shown.against(self.found)

    @property
    def latency_over_time(self) -> Block:
        """Percentiles of every half hour."""
        from perfkit.report import review_chart  # matplotlib takes a second to import

        return review_chart.latency_over_time(self.found)

    @property
    def availability(self) -> Block:
        """When it was down."""
        from perfkit.report import review_chart

        return review_chart.availability(self.found)

    @property
    def method(self) -> Block:
        """How it was judged."""
        return shown.method(self.found)

    def __repr__(self) -> str:
        return f"{self.found.about.title}: review of {shown.when(self.found)}, in {self.folder}"


def as_json(found: Reviewed) -> str:
    """The review for machines: times on the wall clock in ISO 8601, shares of one, null where there is no number."""
    period = found.period

    def at(t: float | None) -> str | None:
        return None if t is None else f"{stamp(period.wall(t)).replace(' ', 'T')}Z"

    told = {
        "format": FORMAT,
        "title": found.about.title,
        "watch": found.about.id,
        "target": found.about.target,
        "from": at(period.start),
        "until": at(period.end),
        "seconds": period.seconds,
        "watched_s": period.watched,
        "recommendation": asdict(found.recommendation),
        "rows": [
            {
                "target": row.target.model_dump(),
                "actual": asdict(row.actual),
                "result": row.result,
                "takes": row.takes,
            }
            for row in found.rows
        ],
        "incidents": [
            {
                "level": own.level,
                "began": at(own.since),
                "noticed": at(own.noticed),
                "eased": at(own.eased),
                "ended": at(own.ended),
                "seconds": own.lasted(period.end),
                "rules": [alert.rule for alert in own.alerts],
                "alerts": [alert.id for alert in own.alerts],
                "actions": list(own.actions),
                "timeline": [{"at": at(m.t), "stage": m.stage, "text": m.text} for m in own.timeline()],
            }
            for own in found.incidents
        ],
        "gaps": [{"from": at(start), "until": at(end)} for start, end in found.gaps],
        "cautions": list(found.cautions),
        "before": {"run": found.before.name, "arm": found.before.arm} if found.before else None,
        "beside": [asdict(own) for own in found.beside],
    }
    return json.dumps(finite(told), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_markdown(found: Reviewed) -> str:
    """The recommendation, the table and the incidents as Markdown."""
    lines = [
        f"**{markdown(found.recommendation.headline)}** · {markdown(found.about.title)}",
        "",
        shown.summary(found),
        "",
    ]
    why = shown.reasons(found)
    lines += [
        *(f"- {markdown(reason)}" for reason in why),
        *([""] if why else []),
        markdown(shown.when(found)),
        "",
    ]
    tables = [shown.review_table(found), shown.incident_table(found), *([shown.against(found)] if found.before else [])]
    for table in tables:
        lines += [table.caption, "", table.to_markdown(), ""] if table.rows else [f"{table.caption}: {table.note}", ""]
    return "\n".join(lines).rstrip() + "\n"


def opened(
    folder: Path,
    *,
    against: str = "",
    arm: str = "",
    values: str = "",
    by: str = "",
    config: str = "",
    since: str = "",
    until: str = "",
    last: str = "",
) -> Review:
    """A watch's folder held against its targets, or those of a configuration.

    `values` are lines of NAME=X. Raises BundleError for a folder that is no watch's, UsageError for wrong values.
    """
    if (folder / "run.json").exists() and not (folder / "watch.json").exists():
        raise BundleError(f"{folder}: the folder of a run; expected that of a watch, and a run as --against")
    if arm and not against:
        raise UsageError(f"arm = '{arm}'; expected with it the run that it is of: --against RUN")
    record = read(folder)
    found = review(
        record,
        values=values_of(values, by),
        before=before_release(Bundle.open(Path(against)), arm) if against else None,
        settings=load(Path(config)) if config else None,
        since=since,
        until=until,
        last=last,
    )
    asked = {"values": values, "by": by, "arm": arm, "since": since, "until": until, "last": last}
    paths = {"against": against, "config": config}  # the notebook runs elsewhere
    whole = {name: str(Path(path).resolve()) if path else "" for name, path in paths.items()}
    return Review(folder, found, {**asked, **whole})
