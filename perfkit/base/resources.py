"""Files that come with perfkit and are not modules: SQL, notebooks, and an example to start from.

A built package contains copies; a checkout, and so an editable install, has the original folders.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent  # of an installed package: site-packages
IN_CHECKOUT = "sql/catalog/settings.sql"  # only a checkout has this file; site-packages does not
FOLDERS = ("sql", "notebooks", "docs/examples/orders")  # setup.py copies them into a built package
PREFIX = "perfkit:"  # how a configuration names one of these files


def path(name: str) -> Path:
    """Return the path of a file or folder that comes with perfkit.

    >>> path("sql/catalog/settings.sql").is_file()
    True
    """
    return _root() / name


def name_of(file: Path) -> str | None:
    """Return the name by which a configuration refers to a file that comes with perfkit; None for other files.

    >>> name_of(path("sql/booking/schema.sql"))
    'perfkit:sql/booking/schema.sql'
    """
    if any(file.is_relative_to(path(folder)) for folder in FOLDERS):
        return PREFIX + file.relative_to(_root()).as_posix()
    return None


def _root() -> Path:
    copies = PACKAGE / "_data"
    return copies if copies.is_dir() else CHECKOUT
