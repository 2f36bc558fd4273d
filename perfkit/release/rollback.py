"""Whether a system is as it was before its indexes were built: what is looked at, and what that comes to. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from perfkit.analysis.results import Comparison
from perfkit.explain.diff import diff
from perfkit.explain.facts import NO_FACTS, PlanFacts
from perfkit.explain.plan import Plan
from perfkit.numbers import count, percent, ratio, seconds, size
from perfkit.stats import Verdict

if TYPE_CHECKING:
    from perfkit.indexes.apply import Dropped
    from perfkit.indexes.examine import Found

FORMAT = 1
FILE = "rollback.json"
SLOWER_BY = 0.25  # an inconclusive median counts as not slower where its interval excludes this much
_SAID = 3  # reasons in the sentence
_HELD = {
    "indexes": "indexes of the set that are gone: {}",
    "plans": "plans as before: {}",
    "sizes": "tables as large as before, with the indexes that they still have: {}",
    "latency": "comparisons that are not slower: {}",
}
LARGER_BY = 0.1  # what a table or its indexes may have grown by
_PAGES = 8 * 8192  # which no table is too small for


class Word(StrEnum):
    """What is said of one thing that was looked at, and of all of them."""

    SAME = "as before"
    DIFFERENT = "not as before"
    OPEN = "not settled"


EXIT: Mapping[Word, int] = {Word.SAME: 0, Word.DIFFERENT: 99, Word.OPEN: 100}


@dataclass(frozen=True, slots=True)
class RollbackItem:
    """One thing that was looked at, in a sentence; without a word it is shown and decides nothing."""

    group: str  # one of `_HELD`
    name: str
    word: Word | None
    text: str


@dataclass(frozen=True, slots=True)
class Rollback:
    """What was taken back, where, and whether all is as before; `unseen` is what was not looked at, in sentences."""

    where: str
    indexes: tuple[str, ...]  # names of the set
    items: tuple[RollbackItem, ...]
    unseen: tuple[str, ...] = ()

    @property
    def word(self) -> Word:
        """Not as before where one thing is not; not settled where one thing is not."""
        words = {item.word for item in self.items}
        return next((word for word in (Word.DIFFERENT, Word.OPEN) if word in words), Word.SAME)

    @property
    def sentence(self) -> str:
        """What is in the way of it, and what held."""
        worst = [item for word in (Word.DIFFERENT, Word.OPEN) for item in self.items if item.word is word]
        against = [item.text.partition(";")[0].rstrip(".") for item in worst]
        more = f"; and {len(against) - _SAID} more" if len(against) > _SAID else ""
        judged = [item.group for item in self.items if item.word is Word.SAME]
        held = "; ".join(_HELD[group].format(judged.count(group)) for group in dict.fromkeys(judged))
        said = [f"{'; '.join(against[:_SAID])}{more}"] if against else []
        said += [f"{held[0].upper()}{held[1:]}"] if held else []
        return f"{'. '.join(said) or 'Nothing was looked at'}."

    def as_dict(self) -> dict[str, Any]:
        """For rollback.json and the bundle."""
        return {"format": FORMAT, "word": str(self.word), "sentence": self.sentence, **asdict(self)}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Self:
        """From what `as_dict` gave. Raises KeyError, TypeError, ValueError for what is none."""
        items = tuple(RollbackItem(**{**i, "word": Word(i["word"]) if i["word"] else None}) for i in said["items"])
        return cls(said["where"], tuple(said["indexes"]), items, tuple(said["unseen"]))


def index_items(found: Sequence[Found], gone: Sequence[Dropped]) -> Iterator[RollbackItem]:
    """Whether one of a set's indexes is left, as `look` found them afterwards; `gone` is what was done."""
    dropped = {own.name: own for own in gone if own.how == "dropped"}
    for own in found:
        name = own.index.name
        if own.state == "impossible":
            yield RollbackItem("indexes", name, Word.OPEN, f"{name}: {own.undroppable or own.problem}.")
        elif own.state == "missing":
            done = dropped.get(name)
            how = f"dropped in {seconds(done.seconds)}, {size(done.bytes)} freed" if done else "was not there"
            yield RollbackItem("indexes", name, Word.SAME, f"{name}: {how}.")
        else:
            valid = " and invalid" if own.state == "invalid" else ""
            why = f": {own.undroppable}" if own.undroppable else ""
            yield RollbackItem("indexes", name, Word.DIFFERENT, f"{name} is left{valid}{why}.")


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """A query's plan once the indexes are gone, and the one before they were built where that is known."""

    query: str
    after: Plan
    facts: PlanFacts = NO_FACTS
    before: Plan | None = None
    before_facts: PlanFacts = NO_FACTS
    with_set: Plan | None = None  # the one while the indexes were there
    unlike: str = ""  # what kept the two from being planned alike


def plan_item(planned: RollbackPlan, names: Collection[str]) -> RollbackItem:
    """Whether a plan is the same as before; `names` are the set's indexes, none of which may be in it."""
    query, before = planned.query, planned.before
    used = dict.fromkeys(name for node in planned.after.nodes for name in node.texts("Index Name") if name in names)
    if used:
        return RollbackItem("plans", query, Word.DIFFERENT, f"{query}: the plan still uses {', '.join(used)}.")
    if before is None:
        change = f"{diff(planned.with_set, planned.after).sentence}; " if planned.with_set else ""
        said = f"{change}no index of the set is in the plan; what it was before them is not known"
        return RollbackItem("plans", query, None, f"{query}: {said}.")
    found = diff(before, planned.after)
    if found.same:
        return RollbackItem("plans", query, Word.SAME, f"{query}: the same plan as before.")
    why = "no index of the set is in it: " + (_elsewise(planned) or "statistics, data or settings are others")
    if planned.unlike:
        return RollbackItem(
            "plans", query, Word.OPEN, f"{query}: {found.sentence}; {planned.unlike}, so that may be why."
        )
    return RollbackItem("plans", query, Word.DIFFERENT, f"{query}: {found.sentence}; {why}.")


def _elsewise(planned: RollbackPlan) -> str:
    """What the catalogue said of the plan's tables then and now, where that is not the same."""
    said = []
    for after in planned.facts.tables:
        if (before := planned.before_facts.named(after.name, after.schema)) is None:
            continue
        if not _near(before.rows, after.rows, 0.01) or not _near(before.pages, after.pages, 0.01):
            then, now = (f"{count(own.rows)} rows in {count(own.pages)} pages" for own in (before, after))
            said.append(f"the statistics of {after.name} say {now}, before {then}")
        elif before.analyzed and [c.distinct for c in before.columns] != [c.distinct for c in after.columns]:
            said.append(f"{after.name} was analysed anew, and its columns' values are counted otherwise")
        there, was = ({index.name: index.definition for index in own.indexes} for own in (after, before))
        said += [f"{name} is new on {after.name}" for name in there if name not in was]
        said += [f"{name} is no longer on {after.name}" for name in was if name not in there]
    return "; ".join(said)


Sizes = Mapping[str, Mapping[str, int]]  # by table: bytes of it, index_bytes of its indexes


def size_items(before: Sizes, after: Sizes) -> Iterator[RollbackItem]:
    """Whether tables, and what indexes they still have, are as large as before, to a tenth or 64 kB."""
    for table in dict.fromkeys([*before, *after]):
        then, now = before.get(table, {}), after.get(table, {})
        said, alike = [], True
        for key, what in (("bytes", "the table"), ("index_bytes", "its indexes")):
            was, is_now = then.get(key, 0), now.get(key, 0)
            alike &= _near(was, is_now, LARGER_BY) or abs(is_now - was) <= _PAGES
            said.append(f"{what} {size(is_now)}" + (f", before {size(was)}" if was != is_now else " as before"))
        if not alike and now.get("index_bytes", 0) > then.get("index_bytes", 0):
            said.append("what rows changed meanwhile left in them goes with REINDEX TABLE CONCURRENTLY")
        yield RollbackItem("sizes", table, Word.SAME if alike else Word.DIFFERENT, f"{table}: {'; '.join(said)}.")


def latency_item(found: Comparison, blocks: int) -> RollbackItem:
    """Whether one comparison with before shows a slowdown, by its interval."""
    name = f"{found.scenario}: {found.item}, {found.metric}"
    if found.ratio is None:
        return RollbackItem("latency", name, Word.OPEN, f"{name}: the rounds are too few or unhealthy to be compared.")
    value, interval = ratio(found.ratio)
    numbers = f"{name}: {value} of before {interval}"
    if found.verdict is Verdict.INCONCLUSIVE:
        enough = f"about {count(found.blocks_needed)} blocks" if found.blocks_needed else "more than 1,000 blocks"
        needed = f"{enough} in place of {blocks} would tell whether it is equivalent"
        slower = percent(max(0.0, found.ratio.hi - 1))
        if found.ratio.hi <= 1 + SLOWER_BY:
            return RollbackItem("latency", name, Word.SAME, f"{numbers}: not slower by more than {slower}; {needed}.")
        word = Word.OPEN if found.metric == "p50" else None
        return RollbackItem(
            "latency", name, word, f"{numbers}: inconclusive, slower by {slower} is possible; {needed}."
        )
    word, said = {
        Verdict.EQUIVALENT: (Word.SAME, f"equivalent within {percent(found.margin)}"),
        Verdict.FASTER: (Word.SAME, "faster, and so not slower"),
        Verdict.SLOWER: (Word.DIFFERENT, "slower"),
    }.get(found.verdict, (Word.OPEN, "the rounds are too few or unhealthy to be compared"))
    return RollbackItem("latency", name, word, f"{numbers}: {said}.")


def _near(before: float, after: float, share: float) -> bool:
    return abs(after - before) <= share * before
