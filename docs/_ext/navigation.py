"""The navigation beside a page of the code is made once for each depth of folders, and not for each of 130 pages.

These pages are in no list of contents, so that but for the way up to the other pages it is the same everywhere.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

MADE: dict[tuple[int, tuple[tuple[str, Any], ...]], str] = {}


def keep(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    make = context.get("toctree")
    if make is None or not page.startswith("_modules/"):
        return

    def kept(**how: Any) -> str:
        key = (page.count("/"), tuple(sorted(how.items())))
        if key not in MADE:
            MADE[key] = make(**how)
        return MADE[key]

    context["toctree"] = kept


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", keep, priority=100)  # before Furo, which asks for it
    return {"parallel_read_safe": True}
