"""Prints the tables, functions and triggers of the installed procrastinate, as the library itself would make them."""

import sys

from procrastinate.schema import SchemaManager

sys.stdout.write(SchemaManager.get_schema())
