"""The notebooks of docs/notebooks are run from their first cell to their last, by a kernel of Jupyter's.

One that fails is a warning, and so an error of `make docs`. What comes out is not kept: the page beside each has it.
"""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


def run(app: Sphinx) -> None:
    if app.builder.name != "html":
        return
    os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
    for path in sorted(Path(app.srcdir, "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        try:
            NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
        except CellExecutionError as error:
            LOGGER.warning("%s", error, location=str(path), type="notebooks")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", run)
    return {"parallel_read_safe": True}
