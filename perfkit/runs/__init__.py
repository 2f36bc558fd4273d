"""Interleaved rounds of arms, into a bundle.

`selection` states what is measured, `experiment` runs it from start to end, `arms` provides databases and services,
`block` sends one round per arm and scenario, `rounds` reads the bundle back.
"""

# Modules that other rooms may import.
__all__ = ["arms", "experiment", "records", "rounds", "selection", "service", "targets"]
