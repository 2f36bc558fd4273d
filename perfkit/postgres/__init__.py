"""PostgreSQL: the embedded server, databases and clones, catalogue queries, the relay."""
