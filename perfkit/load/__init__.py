"""Sending load: what is sent (plan), how (senders), by whom (worker, crew), what it costs alone (null)."""
