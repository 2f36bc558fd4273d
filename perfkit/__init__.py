"""perfkit: did the index make it faster? Measured evidence for PostgreSQL."""

__version__ = "0.1.0"
