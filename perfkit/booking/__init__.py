"""The reference system that perfkit measures: a clinic-booking webhook with two handlers."""
