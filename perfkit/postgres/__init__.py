"""Servers, databases, private copies, guards, SQL text, server logs, index sets as SQL."""

# Modules that other rooms may import.
__all__ = [
    "capabilities",
    "catalog",
    "commands",
    "copies",
    "databases",
    "embedded",
    "guards",
    "index_builds",
    "index_sets",
    "parser",
    "servers",
    "sqltext",
    "values",
]
