"""Each page says in its head what it is about, for search engines and previews of links: by its first sentences."""

from __future__ import annotations

import html
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

LONGEST = 160  # letters that search engines show
# Pages that no text of ours is on.
OTHERS = {"genindex": "An index of every public name of ddim.", "search": "Search the documentation of ddim."}


def shortened(text: str) -> str:
    """A text in one line that ends at a word, in at most LONGEST letters.

    >>> shortened("One sentence.  Another\\none.")
    'One sentence. Another one.'
    >>> shortened("some word, " * 20)[-11:], len(shortened("some word, " * 20)) <= LONGEST
    ('word, some…', True)
    """
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1].rpartition(" ")[0].rstrip(",;:") + "…"


def about(page: str, tree: nodes.document | None) -> str:
    """What a page says first, or what it is."""
    if tree is None:
        return OTHERS.get(page, f"The code of {page.removeprefix('_modules/').replace('/', '.')}.")
    texts = (node.astext() for node in tree.findall(nodes.paragraph) if isinstance(node.parent, nodes.section))
    return shortened(next(texts, ""))


def describe(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: nodes.document | None) -> None:
    said = about(page, tree)
    if said:
        context["metatags"] = context.get("metatags", "") + f'\n<meta name="description" content="{html.escape(said)}">'


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", describe)
    return {"parallel_read_safe": True}
