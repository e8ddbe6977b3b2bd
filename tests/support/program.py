"""The programs under scripts/, as modules: they are no package, so they are loaded by their path."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


def script(name: str) -> ModuleType:
    """`script("figures/table1")`, made anew at each call."""
    path = SCRIPTS / name if (SCRIPTS / name).is_file() else SCRIPTS / f"{name}.py"
    title = f"script_{name.replace('/', '_')}"
    spec = importlib.util.spec_from_loader(title, importlib.machinery.SourceFileLoader(title, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
