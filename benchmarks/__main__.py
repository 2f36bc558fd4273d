"""`python -m benchmarks [NAME ...]`: run them and exit 1 where a figure is missed."""

from __future__ import annotations

import importlib
import sys

NAMES = ("plans", "phases", "compare", "lab", "sql", "http", "open_model", "verdicts", "alike", "place", "logs")


def main() -> int:
    """Run the named benchmarks, or all."""
    names = sys.argv[1:] or NAMES
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        sys.stderr.write(f"benchmarks: {unknown[0]} is unknown; expected: {', '.join(NAMES)}\n")
        return 2
    missed = [name for name in names if not importlib.import_module(f"benchmarks.{name}").main()]
    print(f"missed: {', '.join(missed)}" if missed else "every figure met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
