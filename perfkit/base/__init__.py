"""Errors, units, statistics, files and processes; knows nothing of PostgreSQL."""
