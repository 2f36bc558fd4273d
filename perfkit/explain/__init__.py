"""EXPLAIN captured, modelled, judged, compared, drawn."""
