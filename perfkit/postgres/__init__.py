"""Servers, databases, private copies, guards, SQL text, server logs, index sets as SQL."""
