"""Notebooks: steps that may fail, execution by papermill, and one HTML page from the outputs."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from subprocess import DEVNULL
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from perfkit.base import resources
from perfkit.base.bundle import write_atomically
from perfkit.base.errors import Interrupted, PerfkitError, visible
from perfkit.show.html import Paragraph, escape, note, style

if TYPE_CHECKING:
    from nbformat import NotebookNode

R = TypeVar("R")
P = TypeVar("P")
NOTEBOOK = resources.path("notebooks/before_after_index.ipynb")
LOAD = resources.path("notebooks/load_scenarios.ipynb")
LAB = resources.path("notebooks/index_lab.ipynb")
GATE = resources.path("notebooks/go_no_go.ipynb")
REVIEW = resources.path("notebooks/post_deployment_review.ipynb")
TEMPLATES = resources.PACKAGE / "show" / "templates"
DISPLAY = resources.PACKAGE / "show"  # the folder of style.css, which the template includes


class OpenedPage:
    """The result of a notebook's first cell: its text and, in HTML, the style sheet for the cells below."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f"<style>{style()}</style><div class='pk'><p>{escape(self)}</p></div>"


class shown(property, Generic[R, P]):  # used like property
    """A property of an opened result: what a function makes of the result's `subject`, documented by the function."""

    def __init__(self, make: Callable[[R], P]) -> None:
        super().__init__(lambda result: make(result.subject), doc=make.__doc__)

    if TYPE_CHECKING:

        def __get__(self, result: object, owner: type | None = None) -> P: ...  # type: ignore[override]


def attempt(step: Callable[[], P], *, unless: str = "") -> P | Paragraph:
    """Return the result of a step, or its error as a line to show, so that the rest of the page can follow.

    With `unless`, a reason for skipping the step, show the reason instead. Raises Interrupted.
    """
    try:
        return note(unless) if unless else step()
    except Interrupted:
        raise
    except PerfkitError as error:
        return note(str(error))


def page_of(notebook: Path, parameters: Mapping[str, object], out: Path, title: str, keep: Path | None = None) -> Path:
    """Execute a notebook and write its outputs as one page; return the page's path.

    Raises PerfkitError if a cell fails or the page cannot be written.
    """
    _papermill()
    with ThreadPoolExecutor(1) as importer:
        importer.submit(import_module, "nbconvert")  # takes a second: import it while the kernel works
        executed = execute(notebook, parameters, keep)
    write_atomically(out, page(executed, title))
    return out


def execute(notebook: Path, parameters: Mapping[str, object], keep: Path | None = None) -> NotebookNode:
    """Execute a notebook with this interpreter and return the notebook with its outputs; `keep` is a file to store it.

    Raises PerfkitError with the error's last line if a cell fails, and if the kernel does not start or dies.
    """
    # Jupyter's packages take long to import, and commands that only print a help text import this module too.
    papermill = _papermill()
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets.config import Config

    class ThisInterpreter(AsyncKernelManager):
        """A kernel in the running interpreter; another kernel may be installed under the name python3."""

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(**get_kernel_dict(python_arguments=["-Xfrozen_modules=off"]))

        def start_kernel(self, **options: Any) -> Any:
            return super().start_kernel(**options, stderr=DEVNULL)  # errors of cells arrive through the protocol

    with tempfile.TemporaryDirectory() as scratch:
        try:
            executed: NotebookNode = papermill.execute_notebook(
                str(notebook),
                str(keep or Path(scratch) / "out.ipynb"),
                parameters,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                request_save_on_cell_execute=False,
                autosave_cell_every=0,
                cwd=scratch,
                kernel_manager_class=ThisInterpreter,
                shutdown_kernel="immediate",
                config=Config({"KernelManager": {"transport_encryption": "auto"}}),
            )
            return executed
        except papermill.PapermillExecutionError as error:
            raise PerfkitError(f"the report's notebook failed: {error.ename}: {error.evalue}") from None
        except (RuntimeError, OSError) as error:  # Jupyter has no class of its own for a kernel that does not start
            expected = f"expected {sys.executable} -m ipykernel to start, and memory for a second Python"
            raise PerfkitError(f"the report's notebook did not run: {visible(str(error))}; {expected}") from None


def _papermill() -> ModuleType:
    """Import papermill without its grammar of IRIs, which takes jsonschema a second to compile and is never used."""
    modules: Any = sys.modules
    not_imported = modules.setdefault("rfc3987_syntax") is None
    try:
        return import_module("papermill")
    finally:
        if not_imported:
            modules.pop("rfc3987_syntax", None)


def page(notebook: NotebookNode, title: str) -> str:
    """Return an executed notebook as one HTML page that requests nothing and runs nothing."""
    import nbconvert  # takes a second
    from traitlets.config import Config

    config = Config()
    config.TagRemovePreprocessor.enabled = True
    config.TagRemovePreprocessor.remove_cell_tags = ("remove-cell", "parameters", "injected-parameters")
    html_exporter: Any = nbconvert.HTMLExporter  # untyped
    exporter = html_exporter(
        config=config,
        template_name="report",
        extra_template_basedirs=[str(TEMPLATES)],
        extra_template_paths=[str(DISPLAY)],
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    notebook.metadata["title"] = visible(title)
    html, _ = exporter.from_notebook_node(notebook)
    return str(html)
