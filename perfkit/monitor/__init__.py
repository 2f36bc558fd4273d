"""Watching a live target: probes at a low rate, what the server says, rules that fire and clear, a record on disk."""
