"""The tree of exceptions, and the message about a library that is not installed."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from ddim import errors


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    lines = [line[4:] for line in (errors.__doc__ or "").splitlines() if line.startswith("    ")]
    drawn: dict[str, tuple[str, str]] = {}
    parents: list[str] = []
    for line in lines:
        name = line.lstrip(" │├└─").split()[0]
        depth = line.index(name) // 4
        parents[depth:] = [name]
        builtin = line.partition("(")[2].partition(")")[0]
        drawn[name] = (parents[depth - 1] if depth else "Exception", builtin)
    classes = {name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, Exception)}
    assert set(classes) == set(drawn)
    for name, (parent, builtin) in drawn.items():
        bases = [base.__name__ for base in classes[name].__bases__]
        assert bases == [parent, *([builtin] if builtin else [])]


def test_everything_is_caught_by_one_name() -> None:
    for cls in (errors.ConfigError, errors.WeightsError, errors.DataError, errors.NonFiniteError):
        with pytest.raises(errors.DDIMError, match="why"):
            raise cls("why")


def test_require_imports() -> None:
    assert errors.require("json", "plot") is sys.modules["json"]
    assert errors.require("os.path", "plot") is sys.modules["os.path"]


@pytest.mark.parametrize("module", ["not_there_at_all", "not_there_at_all.deep.inside"])
def test_a_missing_library_is_the_pip_command(module: str) -> None:
    with pytest.raises(errors.MissingExtraError) as caught:
        errors.require(module, "train")
    assert str(caught.value) == "this needs not_there_at_all, which is not installed: pip install 'ddim[train]'"


def test_a_broken_library_says_itself_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_library.py").write_text("import something_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_needs") as caught:
        errors.require("broken_library", "train")
    assert not isinstance(caught.value, errors.MissingExtraError)
