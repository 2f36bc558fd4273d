"""A bundle to estimates, comparisons, decision, caveats, tables, report.

`run_analysis.analyse` reads a bundle and calls the others; `perfkit.base.stats` computes every interval (of a p95 or
p99: `stats.tail`). `results` has the records and the comparisons, `policy` the rules and the decision, `caveats` what
limits the result, `claims` what was expected beforehand. `tables`, `sections` and `charts` show it; `report` writes it.
"""

# Modules that other rooms may import.
__all__ = ["caveats", "claims", "policy", "report", "results", "run_analysis", "tables"]
