"""The booking service and its data."""
