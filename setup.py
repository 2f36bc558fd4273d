"""The build step that pyproject.toml cannot express: the package carries copies of sql/, notebooks/ and an example."""

import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = runpy.run_path("perfkit/base/resources.py")["FOLDERS"]
KINDS = {".sql", ".ipynb", ".toml"}  # and no checkpoints or reports, which a working folder gathers
FILES = sorted(
    file
    for folder in FOLDERS
    for file in Path(folder).rglob("*")
    if file.suffix in KINDS and not {".ipynb_checkpoints", "reports"} & set(file.parts)
)


class BuildWithData(build_py):
    """Builds the package with its data; an editable install reads the checkout's folders instead."""

    def run(self) -> None:
        """Build the modules, then copy the data beside them."""
        super().run()
        if self.editable_mode:
            return
        copies = Path(self.build_lib, "perfkit", "_data")
        shutil.rmtree(copies, ignore_errors=True)  # an earlier build may have left files that are gone since
        for file in FILES:
            (copies / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copies / file)

    def get_source_files(self) -> list[str]:
        """Return the files that a source distribution must carry for this build."""
        return [*super().get_source_files(), "requirements.txt", *map(str, FILES)]


setup(cmdclass={"build_py": BuildWithData})
