"""Errors, units, statistics, files and processes; knows nothing of PostgreSQL."""

# Modules that other rooms may import.
__all__ = ["bundle", "errors", "process", "refusals", "resources", "stats", "units"]
