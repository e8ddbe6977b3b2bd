"""Formulas as MathML, which browsers show by themselves: no script from another host, and none of our own."""

from __future__ import annotations

import html
import re
from xml.etree import ElementTree

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

MATHML = "http://www.w3.org/1998/Math/MathML"


def mathml(tex: str, *, as_block: bool) -> str:
    """LaTeX as MathML, in which the index of a letter with a bar stands beside it and not below it."""
    ElementTree.register_namespace("", MATHML)
    made = tex2mathml(tex, as_block=as_block)
    # Names of characters that HTML has and XML has not, such as &nbsp;.
    math = ElementTree.fromstring(re.sub(r"&(?!lt;|gt;|amp;|#)\w+;", lambda name: html.unescape(name[0]), made))
    for both in math.iter(f"{{{MATHML}}}munderover"):
        letter, index, accent = both
        if accent.tag == f"{{{MATHML}}}mo":
            barred = ElementTree.Element(f"{{{MATHML}}}mover", accent="true")
            barred.extend([letter, accent])
            both.tag = f"{{{MATHML}}}msub"
            both[:] = [barred, index]
    return ElementTree.tostring(math, encoding="unicode")


def inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{mathml(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True}
