"""EXPLAIN captured, modelled, judged, compared, drawn."""

# Modules that other rooms may import.
__all__ = ["candidates", "capture", "comparison", "conditions", "facts", "findings", "html", "plan", "rewrites"]
