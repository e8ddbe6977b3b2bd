"""Everything this package raises on purpose.

    DDIMError
    ├── ConfigError           (ValueError)           settings that cannot work, alone or together
    ├── CheckpointError       (OSError)              a file that is missing, broken, hostile or of another kind
    │   └── WeightsError                             weights whose keys or shapes are not the model's
    ├── DataError             (ValueError)           training data that cannot be used
    ├── NonFiniteError        (ArithmeticError)      a model or a loss gave NaN or infinity
    └── MissingExtraError     (ImportError)          an optional library is not installed

A wrong argument to one function, by contrast, is Python's own `TypeError` or `ValueError`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DDIMError",
    "DataError",
    "MissingExtraError",
    "NonFiniteError",
    "WeightsError",
]


class DDIMError(Exception):
    """Base class: `except ddim.errors.DDIMError` catches all that this package raises on purpose."""


class ConfigError(DDIMError, ValueError):
    """Settings that cannot work, alone or together; the message names the one to change."""


class CheckpointError(DDIMError, OSError):
    """A checkpoint's file is missing, broken, hostile or of another kind."""


class WeightsError(CheckpointError):
    """The keys or shapes of stored weights are not the model's; the message lists every one."""


class DataError(DDIMError, ValueError):
    """Training data that cannot be used."""


class NonFiniteError(DDIMError, ArithmeticError):
    """A model or a loss gave NaN or infinity; the message names the step."""


class MissingExtraError(DDIMError, ImportError):
    """An optional library is not installed; the message is the pip command."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional library.

    Raises:
        MissingExtraError: it is not installed; says which extra brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise  # it is installed, and something it needs is not: that error says more
        name = module.partition(".")[0]
        raise MissingExtraError(f"this needs {name}, which is not installed: pip install 'ddim[{extra}]'") from error
