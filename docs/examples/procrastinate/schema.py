"""Prints the tables, functions and triggers of the installed procrastinate, as the library itself would make them."""

from procrastinate.schema import SchemaManager

print(SchemaManager.get_schema())
