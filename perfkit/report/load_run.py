"""One arm under load as a notebook shows it: a run without the comparison, and what only load tests ask for."""

from __future__ import annotations

from perfkit.display import load
from perfkit.display.html import Block
from perfkit.display.table import Table
from perfkit.report.run import Run


class LoadRun(Run):
    """A run of one arm from its bundle; nothing here measures or writes."""

    @property
    def levels(self) -> Table:
        """Percentiles and errors by load level."""
        return load.levels(self.subject)

    @property
    def parts(self) -> Table:
        """What response times are made of: schedule lag, waiting for a connection, service."""
        return load.parts(self.subject)

    @property
    def capacity(self) -> Block:
        """The highest rate that held, where one was searched for."""
        return load.capacity(self.subject)

    @property
    def health(self) -> Table:
        """What the client, the server and the machine did meanwhile."""
        return load.health(self.subject, self.rounds)

    @property
    def latency_over_time(self) -> Block:
        """Every load level's response times in the order of time."""
        from perfkit.report import time_chart  # matplotlib takes a second to import

        return time_chart.latency_over_time(self.subject, self.rounds)
