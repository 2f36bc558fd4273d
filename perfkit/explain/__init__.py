"""Plans: capturing EXPLAIN's JSON and reading it."""
