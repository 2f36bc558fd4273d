"""A service probed over days: record, alerts, dashboard, review."""

# Modules that other rooms may import.
__all__ = ["loop", "model", "review_report", "store"]
