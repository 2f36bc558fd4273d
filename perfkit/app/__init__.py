"""Command line, Python API, magics, session, starter."""
