"""Every version of the package has a folder of its own, `build/docs/0.1.0/`; beside them are a list, a first page, and
404.html, which servers show for addresses where nothing is.

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
# It may be shown at any depth of folders, so it asks for no other file, and finds the first page by its own address.
MISSING = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Not found - ddim</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 1.1rem/1.6 system-ui, sans-serif; max-width: 34rem; margin: 15vh auto; padding: 0 1.2rem; }}
  a {{ color: light-dark(#7a3aa3, #d3a6f0); }}
  input {{ font: inherit; width: 100%; box-sizing: border-box; padding: .4rem .7rem; }}
</style>
<h1>There is no such page</h1>
<p>It may have another name in this version of ddim, or the address may be misspelt.</p>
<form action="{newest}/search.html"><input name="q" type="search" placeholder="Search the documentation"
  aria-label="Search the documentation"></form>
<p><a href="{newest}/index.html">To the first page</a></p>
<script>
  // The folder that has the versions: all before the first part of the address that is a version's number.
  const top = location.pathname.replace(/\\/\\d+(\\.\\d+)+\\/.*$|\\/[^/]*$/, "/");
  document.querySelector("a").href = top + "{newest}/index.html";
  const form = document.querySelector("form");
  form.action = top + "{newest}/search.html";
  form.querySelector("input").value = location.pathname.split("/").pop().replace(/\\.html$/, "").replace(/[-_]/g, " ");
</script>
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
        for name, page in (("index.html", FIRST), ("404.html", MISSING)):
            (site / name).write_text(page.format(newest=found[0]), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", write)
    return {"parallel_read_safe": True}
