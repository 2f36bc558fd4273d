"""Folders that servers of another user can reach."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, removed when the servers in it have ended."""
    folder = Path(tempfile.mkdtemp(prefix="perfkit-test-"))
    folder.chmod(0o755)
    yield folder
    deadline = time.monotonic() + 10
    while any(folder.rglob("server-*/socket")) and time.monotonic() < deadline:
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)
