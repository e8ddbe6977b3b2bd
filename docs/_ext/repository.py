"""Pages link to the code as on GitHub, `[process.py](../src/ddim/process.py)`: in the site it is the code's page.

Code that has no page there, as no public name comes from it, is a file to download.
"""

from __future__ import annotations

import re

from reference import prefixes
from sphinx.application import Sphinx

LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./)+src/(ddim/[\w/]+)\.py\)")


def link(app: Sphinx, page: str, source: list[str]) -> None:
    up = "../" * page.count("/")

    def replaced(found: re.Match[str]) -> str:
        if found[2].replace("/", ".").removesuffix(".__init__") not in prefixes():
            return found[0]
        return f'<a class="reference internal" href="{up}_modules/{found[2]}.html">{found[1]}</a>'

    source[0] = LINK.sub(replaced, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", link)
    return {"parallel_read_safe": True}
