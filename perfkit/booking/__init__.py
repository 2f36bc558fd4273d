"""The demo: a clinic-booking service, its database and its configuration."""
