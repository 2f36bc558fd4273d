"""Slow statements from statistics, logs and activity."""
