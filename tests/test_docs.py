"""What the documentation names is there: modules, public names, attributes and files; and the site has it all."""

from __future__ import annotations

import ast
import importlib
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import ddim

ROOT = Path(__file__).parent.parent
PACKAGE = Path(ddim.__file__).parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("data/*.md"), *ROOT.glob("src/**/*.md")])
FOLDERS = ("benchmarks", "data", "docs", "scripts", "src", "tests")
# What pages call an object whose module has the same name.
VARIABLES = {"plan": "ddim.SamplingPlan", "scheduler": "ddim.DDIMScheduler"}
# diffusers' own programs, which docs/training.md compares with.
FOREIGN = {
    "train_controlnet.py",
    "train_controlnet_sdxl.py",
    "train_text_to_image.py",
    "train_text_to_image_lora.py",
    "train_unconditional.py",
}


def names_in(text: str) -> Iterator[str]:
    """The dotted names of this package that a page uses, each beginning with `ddim`.

    They are what its Python examples import or reach from `ddim`; what reads `ddim.x` in any other place; and what is
    written as code and begins with one of the modules or of the names at the top: `process.add_noise`.
    """
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        yield from names_in_code(block)
    prose = re.sub(r"```python\n.*?```", "", text, flags=re.DOTALL)
    yield from re.findall(r"(?<![\w./-])ddim(?:\.[A-Za-z_]\w*)+", prose)
    for code in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", prose, flags=re.DOTALL)):
        found = re.match(r"([A-Za-z_]\w*)((?:\.[A-Za-z_]\w*)+)(?!\w)", code)
        if found and not code.endswith((".py", ".md", ".json")):
            head, rest = found.groups()
            if head != "ddim" and (is_module(f"ddim.{head}") or head in ddim.__all__):
                yield f"ddim.{head}{rest}"


def names_in_code(code: str) -> Iterator[str]:
    """The dotted names of this package that a piece of Python imports, or reaches from `ddim`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "ddim":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "ddim")
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("ddim."):
            yield ast.unparse(node)


def is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def is_public(name: str) -> bool:
    """A module, a name in its module's `__all__`, or an attribute of such a name."""
    parts = name.split(".")
    inside = 1
    while inside < len(parts) and is_module(".".join(parts[: inside + 1])):
        inside += 1
    if inside == len(parts):
        return True
    module = importlib.import_module(".".join(parts[:inside]))
    if parts[inside] in getattr(module, "__all__", ()):
        return has_attributes(getattr(module, parts[inside]), parts[inside + 1 :])
    if inside == 2 and parts[1] in VARIABLES:
        return is_public(".".join([VARIABLES[parts[1]], *parts[2:]]))
    return False


def has_attributes(value: object, names: list[str]) -> bool:
    for name in names:
        if isinstance(value, type) and name in typing.get_type_hints(value):
            return True  # of an instance: a field
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


def files_in(text: str) -> Iterator[str]:
    """The paths in this repository that a page names: those in a folder of it, and Python files written as code."""
    folders = "|".join(FOLDERS)
    yield from re.findall(rf"(?<![\w./~-])(?:{folders})/[\w./-]*[\w/]", text)
    yield from re.findall(r"`([\w./-]+\.py)`", text)


def is_file(path: str) -> bool:
    every = (file.relative_to(ROOT).as_posix() for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    return path in FOREIGN or (ROOT / path).exists() or any(f"/{file}".endswith(f"/{path}") for file in every)


def title(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_name_of_a_page_is_public(page: Path) -> None:
    wrong = sorted({name for name in names_in(page.read_text(encoding="utf-8")) if not is_public(name)})
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    wrong = sorted({path for path in files_in(page.read_text(encoding="utf-8")) if not is_file(path)})
    assert not wrong


def test_the_pages_name_what_the_tests_look_for() -> None:
    """Else the two tests above would hold nothing."""
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    assert {"ddim.DDIMScheduler", "ddim.lora.add_lora", "ddim.process.add_noise", "ddim.plan.SamplingPlan"} <= {
        name for page in pages for name in names_in(page)
    }
    assert {"src/ddim/process.py", "scripts/figures/table1.py", "tests/test_structure.py", "process.py"} <= {
        path for page in pages for path in files_in(page)
    }


MADE_UP = """
Prose: ddim.lora.save_lora, `process.add_noise`, [`sampling.sample`](../src/ddim/sampling.py), ddim 0.1.0, `ddim info`,
`training.json`.

```python
from ddim import DDIMScheduler, Colour
from ddim.lora import (
    add_lora,
    _adapted,
)
import ddim.sources

ddim.settings.read(1)
plan = DDIMScheduler().plan(5)
```

`process._secret`, `process.Value`, `plan.timesteps`, `plan.colour`, `scheduler.add_noise(x, eps, t)`, `step.LARGE`,
`process.Prediction.x0`, `process.Prediction.colour`, `DDIMScheduler.from_config`, `DDIMScheduler.colour`, `x.y`,
`training/losses.py`, `training/diffusion.py`, `python scripts/judge_emoji.py`, src/ddim/sources.py, docs/design.md.
"""


def test_the_walk_finds_what_is_not_there() -> None:
    names, files = set(names_in(MADE_UP)), set(files_in(MADE_UP))
    assert {name for name in names if not is_public(name)} == {
        "ddim.Colour",
        "ddim.lora._adapted",
        "ddim.sources",
        "ddim.settings",
        "ddim.settings.read",
        "ddim.process._secret",
        "ddim.plan.colour",
        "ddim.step.LARGE",
        "ddim.process.Prediction.colour",
        "ddim.DDIMScheduler.colour",
    }
    assert {name for name in names if is_public(name)} == {
        "ddim.lora.save_lora",
        "ddim.process.add_noise",
        "ddim.sampling.sample",
        "ddim.DDIMScheduler",
        "ddim.lora.add_lora",
        "ddim.process.Value",
        "ddim.plan.timesteps",
        "ddim.scheduler.add_noise",
        "ddim.process.Prediction.x0",
        "ddim.DDIMScheduler.from_config",
    }
    assert {path for path in files if not is_file(path)} == {
        "training/losses.py",
        "scripts/judge_emoji.py",
        "src/ddim/sources.py",
    }
    assert {path for path in files if is_file(path)} == {"training/diffusion.py", "docs/design.md"}


# --- the site ---------------------------------------------------------------------------------------------------------

DOCS = ROOT / "docs"


def navigation(page: str) -> Iterator[str]:
    """The pages below one, by their names without a suffix, as its lists of contents have them."""
    text = next(path for path in DOCS.glob(f"{page}.*") if path.suffix in (".md", ".rst")).read_text(encoding="utf-8")
    for contents in re.findall(
        r"^(?:```\{toctree\}|\.\. toctree::)\n(.*?)(?:^```|\Z)", text, flags=re.DOTALL | re.MULTILINE
    ):
        for line in contents.splitlines():
            if line.strip() and not line.strip().startswith(":"):
                below = str(Path(page).parent / line.strip())
                yield below
                yield from navigation(below)


def test_every_page_is_in_the_navigation_once() -> None:
    """What is not has to be added to one of the lists in docs/index.md."""
    listed = ["index", *navigation("index")]
    assert sorted(listed) == sorted(
        page.relative_to(DOCS).with_suffix("").as_posix() for page in [*DOCS.rglob("*.md"), *DOCS.rglob("*.rst")]
    )


def test_every_public_name_is_in_the_reference() -> None:
    """A page of docs/reference has each module that has an `__all__`: by its name, or with all of its room."""
    pages = [page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.rst")]
    patterns = [
        name for text in pages for name in re.findall(r"^\.\. (?:public|names):: (\S+)$", text, flags=re.MULTILINE)
    ]
    modules = set()
    for file in PACKAGE.rglob("*.py"):
        if re.search(r"^__all__", file.read_text(encoding="utf-8"), flags=re.MULTILINE):
            parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
            modules.add(".".join(part for part in parts if part != "__init__"))
    missing = {name for name in modules if name not in patterns and f"{name.rpartition('.')[0]}.*" not in patterns}
    assert not missing, "docs/reference has no page for these"
    assert {name for name in patterns if not name.endswith(".*")} <= modules
