"""A bundle to estimates, comparisons, decision, caveats, tables, report."""
