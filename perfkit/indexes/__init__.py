"""What an index is worth: advice, cost, what-if, lab."""

# Modules that other rooms may import.
__all__ = ["advice", "coverage", "designs", "lab", "lab_tables", "search", "trial", "use", "writes"]
