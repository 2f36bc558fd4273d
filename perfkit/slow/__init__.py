"""Slow statements from statistics, logs and activity."""

# Modules that other rooms may import.
__all__ = ["activity", "examples", "log_sources", "query_logging", "statements", "tables"]
