"""What callers give: names and texts, one or several; and the new folder that a result goes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from perfkit.base import resources
from perfkit.errors import BundleError

if TYPE_CHECKING:
    from perfkit.comparison import Text
    from perfkit.selection import Selection
    from perfkit.targets import Targets

Names = str | Sequence[str]
Ask = Callable[[str], str]


def reports_folder() -> Path:
    """Return the folder for runs if none is named: `reports/` of the project that the working folder is in.

    A project is the nearest folder, from the working folder upward, with a `perfkit.toml` or a checkout of perfkit;
    without one it is the working folder itself. Raises BundleError if the working folder no longer exists.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise BundleError("reports: the working folder no longer exists; expected --reports FOLDER") from None
    return next((folder for folder in (here, *here.parents) if _is_project(folder)), here) / "reports"


def _is_project(folder: Path) -> bool:
    """Whether a folder has a configuration or is a checkout; a folder that cannot be searched is neither."""
    try:
        return any((folder / name).is_file() for name in ("perfkit.toml", resources.IN_CHECKOUT))
    except OSError:
        return False


def new_folder(reports: str | Path, profile: str) -> Path:
    """Create a folder for a run, named by UTC time and profile, in `reports` or else `reports_folder()`.

    Raises BundleError.
    """
    parent = Path(reports) if reports else reports_folder()
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{profile}"
    for path in [parent / name, *(parent / f"{name}-{n}" for n in range(2, 100))]:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise BundleError(f"{path}: cannot be created ({error.strerror}); expected a writable folder") from None
        return path
    raise BundleError(f"{parent}: a hundred runs began this second; expected fewer")


def names(given: Names) -> tuple[str, ...]:
    """One name or several; papermill can pass a text only, with commas."""
    parts = given.split(",") if isinstance(given, str) else given
    return tuple(part.strip() for part in parts if part.strip())


def texts(given: Text | Sequence[Text]) -> tuple[Text, ...]:
    """One text or several, as several."""
    return (given,) if isinstance(given, str | Path) else tuple(given)


def admitted_by(chosen: Selection, confirm: Names, production: Names, ask: Ask | None) -> Targets:
    """The targets of a selection, let through the guards. Raises TargetRefused, UsageError."""
    from perfkit.guards.admission import Permission
    from perfkit.targets import admitted

    permission = Permission(confirm=names(confirm), production=names(production), ask=ask)
    return admitted(chosen.config, chosen.arms, permission)
