"""Docstrings are written as plain text, and Sphinx reads them as reStructuredText: this stands between the two.

What reStructuredText would take for markup (`|x|`, `*`, `name_`) is escaped, and an indented block that is no part of a
section such as `Args:` is shown as it stands.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.domains.python._object import PyObject
from sphinx.ext.autodoc._dynamic import _signatures
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.pycode import ModuleAnalyzer

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Warns|Example|Examples|Note|Notes|References):$")
COLUMNS = re.compile(r"\S.*\S {2,}\S")  # a line of a table
CODE = re.compile(r"(``.+?``|`[^`]+`)")


def plain(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText.

    >>> print("\\n".join(plain(["Ways:", "", "one    by hand", "other  by |x|", "", "Args:", "    x_: a *number*."])))
    Ways:
    <BLANKLINE>
    .. code-block:: none
    <BLANKLINE>
        one    by hand
        other  by |x|
    <BLANKLINE>
    Args:
        x\\_: a \\*number\\*.
    """
    made: list[str] = []
    literal = section = False
    for index, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        after_blank = not made or not made[-1].strip()
        if COLUMNS.match(line) and after_blank and COLUMNS.match("".join(lines[index + 1 : index + 2])):
            literal, section = True, False
            made += [".. code-block:: none", ""]
        elif line.strip() and not indent and not (literal and COLUMNS.match(line)):
            if literal and not after_blank:
                made.append("")
            literal, section = False, bool(SECTION.match(line))
        elif line.strip() and indent and after_blank and not section and not literal:
            literal = True
            made += ["::", ""]
        example = line.lstrip().startswith((">>>", "..."))
        if literal and not indent and line.strip():
            line = f"    {line}"
        made.append(line if literal or example else escaped(line))
    return made


def escaped(line: str) -> str:
    parts = CODE.split(line)
    # What is code: a link to what is documented, if its text is a name or the call of one; else as it stands.
    parts[1::2] = [
        code if re.fullmatch(r"`[A-Za-z_][\w.]*`", code) else f"``{code.strip('`')}``" for code in parts[1::2]
    ]
    parts[::2] = [re.sub(r"(?<!\w)_(?=\w)|(?<=\w)_(?!\w)|[*|]", r"\\\g<0>", text) for text in parts[::2]]
    # reStructuredText ends code only before a space or punctuation.
    for index in range(1, len(parts), 2):
        if re.match(r"\w", parts[index + 1]):
            parts[index] += "\\ "
        if re.search(r"[\w√]$", parts[index - 1]):
            parts[index] = "\\ " + parts[index]
    return "".join(parts)


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = plain(lines)


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, which their docstring describes: Python's own texts say nothing of them."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def _without_overloads(analyze: Any) -> Any:
    """So that an overloaded function is shown once, by the signature that takes everything."""

    def analyzed(self: ModuleAnalyzer) -> None:
        analyze(self)
        self.overloads = {}

    return analyzed


def _a_line(self: GoogleDocstring) -> tuple[str, list[str]]:
    """The docstring of a property is a sentence, and what stands before a colon in it is no type."""
    line = self._lines.next()
    return "", self.__class__([line, *self._dedent(self._consume_to_end())], self._config).lines()


def name_types(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Name a type of ours in a union by its name alone, as everywhere else."""
    named = [text and re.sub(r"TypeAliasForwardRef\('([\w.]+)'\)", r"\1", text) for text in (signature, returns)]
    return named[0], named[1]


def setup(app: Sphinx) -> dict[str, bool]:
    # Before napoleon, which makes lists of the sections.
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("autodoc-process-signature", name_types)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("autodoc-skip-member", skip)
    # What a pipeline takes, its `__init__` says: its `__new__` takes anything.
    _signatures._CLASS_NEW_BLACKLIST |= {"ddim.pipelines.base.DiffusionPipeline.__new__"}
    GoogleDocstring._consume_inline_attribute = _a_line  # type: ignore[method-assign]
    ModuleAnalyzer.analyze = _without_overloads(ModuleAnalyzer.analyze)  # type: ignore[method-assign]
    return {"parallel_read_safe": True}
