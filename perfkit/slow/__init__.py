"""Slow statements from statistics, logs and activity."""

# Modules that other rooms may import.
__all__ = ["examples", "logs", "query_logging", "statements", "tables"]
