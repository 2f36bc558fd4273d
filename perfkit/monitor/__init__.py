"""A service probed over days: record, alerts, dashboard, review."""
