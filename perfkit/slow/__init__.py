"""Slow statements: where they are found, behind one table."""
