"""The pages of the reference: a line `.. public:: ddim.plan` stands for all that is in the module's `__all__`.

`.. public:: ddim.serving.*` stands for all modules of a room whose `__init__.py` does not name them. An object is
described once, by the shortest name under which somebody can import it: `ddim.DDIMScheduler`. Other lists that have it
too link there.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import types
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

import ddim

LOGGER = logging.getLogger(__name__)
PACKAGE = Path(ddim.__file__).parent
NAMES = re.compile(r"^\.\. names:: (\S+)$", flags=re.MULTILINE)
LINE = re.compile(r"^\.\. public:: (\S+)$", flags=re.MULTILINE)
# Whose methods are not shown again by the classes that inherit them.
FOREIGN = "ABC, BaseException, BaseModel, Enum, Exception, FastAPI, Generic, Module, Protocol, Thread, dict, str, tuple"


@cache
def public_modules() -> tuple[str, ...]:
    """All modules that have an `__all__`, without importing them."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if re.search(r"^__all__", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            found.append(".".join(part for part in parts if part != "__init__"))
    return tuple(found)


def modules(pattern: str) -> list[str]:
    """Those that a line of a page stands for."""
    if not pattern.endswith(".*"):
        return [pattern]
    return [name for name in public_modules() if name.startswith(pattern[:-1])]


@cache
def names() -> dict[str, str]:
    """`ddim.scheduler.DDIMScheduler` -> `ddim.DDIMScheduler`, for each name of each `__all__`."""
    every = [
        (f"{module}.{name}", getattr(importlib.import_module(module), name))
        for module in public_modules()
        for name in importlib.import_module(module).__all__
    ]
    best: dict[tuple[str, int], str] = {}
    for full, value in every:
        one = full.rpartition(".")[2], id(value)
        best[one] = min(best.get(one, full), full, key=lambda name: (name.count("."), len(name), name))
    return {full: best[full.rpartition(".")[2], id(value)] for full, value in every}


@cache
def homes() -> dict[str, str]:
    """`ddim.DDIMScheduler` -> `ddim.scheduler`: the module under whose heading it is described."""
    found: dict[str, str] = {}
    for full, best in names().items():
        module = full.rpartition(".")[0]
        if module != "ddim":
            found[best] = min(found.get(best, module), module, key=lambda name: (name.count("."), len(name), name))
    return found


def is_described(value: object) -> bool:
    """Whether it is a class or a function, which is the same one wherever it is imported."""
    return isinstance(value, type | types.FunctionType)


def described(module: str) -> str:
    """A module's part of a page, as reStructuredText: what it is, links to its names, and these."""
    loaded = importlib.import_module(module)
    best = {name: names()[f"{module}.{name}"] for name in loaded.__all__}
    links = " · ".join(f":py:obj:`{name} <{full}>`" for name, full in best.items())
    parts = [f"{module}\n{'-' * len(module)}", f".. automodule:: {module}\n   :no-members:", links]
    for name, full in best.items():
        value = getattr(loaded, name)
        if homes()[full] != module:
            continue  # it is described there
        if isinstance(value, type):
            parts.append(
                f".. autoclass:: {full}\n   :members:\n   :special-members: __call__\n   :inherited-members: {FOREIGN}"
            )
        elif is_described(value):
            parts.append(f".. autofunction:: {full}")
        else:
            parts.append(f".. py:data:: {full}\n   :module:\n\n   {comment(module, name)}")
    return "\n\n".join(parts) + "\n"


def comment(module: str, name: str) -> str:
    """What the source says of a constant: the comment behind it, or the lines above it."""
    from docstrings import escaped

    source = inspect.getsource(importlib.import_module(module))
    lines = source.splitlines()
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            behind = re.search(r"  # (.*)$", lines[node.lineno - 1])
            above = node.lineno - 2
            while above >= 0 and lines[above].startswith("# "):
                above -= 1
            text = behind[1] if behind else " ".join(line[2:] for line in lines[above + 1 : node.lineno - 1])
            value = ast.unparse(node.value) if isinstance(node, ast.Assign | ast.AnnAssign) and node.value else ""
            shown = f"``{value}``" if value and len(value) <= 150 and "`" not in value else ""
            return escaped(text) + (f"\n\n   {shown}" if shown else "")
    for node in ast.parse(source).body:  # imported from elsewhere
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            return comment(node.module, name)
    return ""


def put_in(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the lines of a page."""

    def replaced(found: re.Match[str]) -> str:
        return "\n\n".join(described(module) for module in modules(found[1]))

    if page.startswith("reference/"):
        source[0] = NAMES.sub(listed, LINE.sub(replaced, source[0]))


def listed(found: re.Match[str]) -> str:
    """A list of links to the names of a module."""
    listed = sorted({best for full, best in names().items() if full.rpartition(".")[0] == found[1]})
    return "\n".join(f"- :py:obj:`{name}`" for name in listed if name in homes())


def find(app: Sphinx, env: Any, node: nodes.Element, content: nodes.Element) -> nodes.reference | None:
    """Link what a docstring calls by the end of its name, as `SamplingPlan.shortened`, if only one has it."""
    if node.get("refdomain") != "py":
        return None
    domain, wanted = env.get_domain("py"), node["reftarget"]
    exact = names().get(wanted)
    found = [exact] if exact else [name for name in domain.objects if name.endswith(f".{wanted}")]
    found = sorted({name for name in found if name in domain.objects and not domain.objects[name].aliased})
    if len(found) != 1:
        if exact:
            LOGGER.warning("%s is not described by any page of the reference", exact, location=node)
        return None
    entry = domain.objects[found[0]]
    uri = app.builder.get_relative_uri(node.get("refdoc", env.docname), entry.docname)
    return nodes.reference("", "", content, internal=True, refuri=f"{uri}#{entry.node_id}", reftitle=found[0])


def also(app: Sphinx, tree: nodes.document) -> None:
    """Let links find an object by each name under which it, or another one of the same file, is described."""
    for sign in tree.findall(addnodes.desc_signature):
        module, name = sign.get("module"), sign.get("fullname", "")
        value = getattr(importlib.import_module(module), name.partition(".")[0], None) if module else None
        for prefix in prefixes().get(getattr(value, "__module__", ""), ()):
            if f"{prefix}.{name}" not in sign["ids"]:
                sign["ids"].append(f"{prefix}.{name}")


def back(app: Sphinx, env: Any) -> None:
    """Let the pages of the code link back by these names: Sphinx takes the first one under which it met the file."""
    for module, entry in env._viewcode_modules.items():
        if entry and module in prefixes():
            env._viewcode_modules[module] = (*entry[:3], min(prefixes()[module]))


@cache
def prefixes() -> dict[str, set[str]]:
    """The modules by whose names the objects of each file are described."""
    found: dict[str, set[str]] = {}
    for best in set(names().values()):
        module, _, name = best.rpartition(".")
        value = getattr(importlib.import_module(module), name)
        if is_described(value):
            found.setdefault(value.__module__, set()).add(module)
    return found


def aliases(app: Sphinx, config: Any) -> None:
    """Types that have a name are called by it in signatures."""
    config.autodoc_type_aliases = {
        full.rpartition(".")[2]: best
        for full, best in names().items()
        if not is_described(getattr(importlib.import_module(full.rpartition(".")[0]), full.rpartition(".")[2]))
    }


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", aliases)
    app.connect("source-read", put_in)
    app.connect("doctree-read", also)
    app.connect("env-updated", back)
    app.connect("missing-reference", find)
    return {"parallel_read_safe": True}
