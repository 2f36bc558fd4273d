"""A clinic at work: the booking system's data under the statements that a day brings, so that something is slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from random import Random

from perfkit import config as configuration
from perfkit import sources
from perfkit.base import resources
from perfkit.load.crew import WorkerPool, sql_target
from perfkit.load.plan import Arrivals, Draw, Message
from perfkit.postgres.statements import read, split
from perfkit.query import Session, made
from perfkit.slow.lent_settings import Where
from perfkit.slow.query_logging import LoggingSpec, logging_on

RATE, USERS = 60.0, 4  # statements a second, and how many of them may be in flight
TIMEOUT_S = 30.0
#: What happens how often: patients look most, the front desk often, few book and fewer cancel.
SHARES = {
    "upcoming_for_contact": 45,
    "clinic_day": 18,
    "book": 14,
    "conflict_check": 12,
    "cancel": 6,
    "status_counts": 5,
}
EVENTS = 1000
Say = Callable[[str], None]
Work = Callable[[float], Counter[str]]


def clinic_session(scale: str = "small", seconds: float = 8.0, seed: int = 1, *, say: Say) -> Session:
    """A session in the booking system's data, without its indexes, in which a clinic has worked for so long.

    What it did is in the server's log: `session.slow()` shows it. Raises UsageError, ServerError, LoadError.
    """
    session = made(scale=scale, arm="before", say=say)
    try:
        say(f"a clinic works for {seconds:g} s")
        with clinic(session, seed) as work:
            work(seconds)
    except BaseException:
        session.close()
        raise
    return session


@contextmanager
def clinic(session: Session, seed: int = 1) -> Iterator[Work]:
    """A function that lets a clinic work for so many seconds and counts its statements; all of them are logged.

    `session` is one in the booking system's data. Raises ServerError, and the function LoadError.
    """
    target = sql_target(session.place.conninfo(), TIMEOUT_S, TIMEOUT_S)
    messages, turn = tuple(_day(session, seed)), count()

    def work(seconds: float) -> Counter[str]:
        arrivals = Arrivals(messages, ((RATE, RATE, seconds),), USERS, f"{seed}/{next(turn)}")
        return Counter({item: n for (item, _), n in crew.run(target, [arrivals]).counts().items()})

    site, database = session.place.site, session.place.name
    who = Where("perfkit", database)  # as whom the load comes; those who look at the log come as the superuser
    with logging_on(site, database, LoggingSpec(ms=0.0, plans=False), who), WorkerPool(1) as crew:
        yield work


def _day(session: Session, seed: int) -> Iterator[Message]:
    """What happens, in a random order and in its shares, with parameters as the booking system's workload has them."""
    settings, random = configuration.load(), Random(seed)
    files = {query.name: (query.file, query.parameters or "") for query in settings.query}
    files |= {path.stem: (path, "bookings") for path in resources.path("sql/demo").glob("*.sql")}
    kinds = {name: (split(read(path))[0].text, source) for name, (path, source) in files.items()}  # an application's
    rows = {name: sources.rows(name, source, session.place, str(seed)) for name, source in settings.parameters.items()}
    draw = Draw(rows, str(seed))
    booked = draw("bookings")
    for name in random.choices(list(SHARES), list(SHARES.values()), k=EVENTS):
        row = booked if name == "cancel" else draw(kinds[name][1])
        if name == "book":  # nobody books without looking whether the slot is free
            booked = row
            yield {"item": "conflict_check", "sql": kinds["conflict_check"][0], "params": row}
        yield {"item": name, "sql": kinds[name][0], "params": row}
