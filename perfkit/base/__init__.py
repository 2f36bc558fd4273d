"""What every other room builds on; knows nothing of PostgreSQL."""
