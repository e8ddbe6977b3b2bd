"""Every version of the package has a folder of its own, `build/docs/0.1.0/`; beside them are a list and a first page.

The list is a script, so that pages read it from files as well. It names the folders that are there, so a page of an old
version knows of the newer ones: to publish a version, build it into the folder that has the others.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from sphinx.application import Sphinx

FIRST = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>ddim</title>
<meta http-equiv="refresh" content="0; url={newest}/index.html">
<p>The documentation of ddim is in <a href="{newest}/index.html">{newest}/</a>.</p>
"""


def versions(site: Path) -> list[str]:
    """The versions that are built there, the newest first.

    >>> from tempfile import mkdtemp
    >>> site = Path(mkdtemp())
    >>> for name in ("0.2.0", "0.10.0", "assets"):
    ...     (site / name).mkdir()
    ...     _ = (site / name / "index.html").write_text("")
    >>> versions(site)
    ['0.10.0', '0.2.0']
    """
    found = [path.parent.name for path in site.glob("*/index.html") if re.match(r"\d+(\.\d+)+", path.parent.name)]
    return sorted(found, key=lambda name: [int(part) for part in re.findall(r"\d+", name)], reverse=True)


def write(app: Sphinx, error: Exception | None) -> None:
    site = Path(app.outdir).parent
    found = versions(site)
    if error is None and app.builder.name == "html" and found:
        (site / "versions.js").write_text(f"window.ddimVersions = {json.dumps(found)};\n", encoding="utf-8")
        (site / "index.html").write_text(FIRST.format(newest=found[0]), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", write)
    return {"parallel_read_safe": True}
