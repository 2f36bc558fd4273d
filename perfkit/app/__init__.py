"""Command line, Python API, magics, session, starter."""

# Modules that other rooms may import.
__all__ = ["api", "cli", "magics"]
