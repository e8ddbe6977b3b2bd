"""Formulas as MathML, which browsers show by themselves: no script from another host, and none of our own."""

from __future__ import annotations

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def mathml(tex: str, *, as_block: bool) -> str:
    """A letter under a bar is put into braces, so that its index stands beside it and not below it."""
    return str(tex2mathml(re.sub(r"\\(?:bar|hat)\\[A-Za-z]+", r"{\g<0>}", tex), as_block=as_block))


def inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{mathml(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True}
