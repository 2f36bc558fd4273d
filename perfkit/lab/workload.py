"""A configuration's queries with the parameters that give most of them their plan."""

from __future__ import annotations

from perfkit import sources
from perfkit.config import Config
from perfkit.explain.capture import PLANNED, Parameters, typical_parameters
from perfkit.postgres.place import Database
from perfkit.postgres.statements import read


def workload(settings: Config, place: Database, seed: int) -> dict[str, tuple[str, Parameters]]:
    """By query, its text and typical parameters. Raises UsageError, PlanError, ServerError."""
    found: dict[str, tuple[str, Parameters]] = {}
    for query in settings.query:
        text, rows = read(query.file), []
        if query.parameters:
            rows = sources.rows(query.parameters, settings.parameters[query.parameters], place, str(seed))[:PLANNED]
        found[query.name] = (text, typical_parameters(place.session, text, rows) if rows else None)
    return found
