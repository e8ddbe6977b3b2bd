"""The errors of this package. In brackets is the class of Python's own that each is as well.

    DDIMError
    ├── ConfigError           (ValueError)           settings that cannot work, alone or together
    ├── CheckpointError       (OSError)              a file that is missing, broken, hostile or of another kind
    │   └── WeightsError                             weights whose names or shapes are not the model's
    ├── DataError             (ValueError)           training data that cannot be used
    ├── NonFiniteError        (ArithmeticError)      a model or a loss gave NaN or infinity
    ├── MissingExtraError     (ImportError)          an optional library is not installed
    ├── QueueFullError        (RuntimeError)         as many requests wait as may: ask again later
    ├── DeadlineExceededError (TimeoutError)         a request took longer than it said it may
    └── EngineClosedError     (RuntimeError)         an engine that was closed takes no more requests

An argument of a wrong type or shape, by contrast, is Python's own `TypeError` or `ValueError`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DDIMError",
    "DataError",
    "DeadlineExceededError",
    "EngineClosedError",
    "MissingExtraError",
    "NonFiniteError",
    "QueueFullError",
    "WeightsError",
]


class DDIMError(Exception):
    """The base class: `except ddim.errors.DDIMError` catches all errors in this module."""


class ConfigError(DDIMError, ValueError):
    """Settings cannot work, alone or together; the message names the one to change."""


class CheckpointError(DDIMError, OSError):
    """A checkpoint's file is missing, broken, hostile or of another kind."""


class WeightsError(CheckpointError):
    """The names or shapes of stored weights are not the model's; the message lists all differences."""


class DataError(DDIMError, ValueError):
    """Training data cannot be used; the message says which and why."""


class NonFiniteError(DDIMError, ArithmeticError):
    """A model or a loss gave NaN or infinity; the message names the step."""


class MissingExtraError(DDIMError, ImportError):
    """An optional library is not installed; the message has the pip command that installs it."""


class QueueFullError(DDIMError, RuntimeError):
    """As many requests wait already as may; the same request may be taken later."""


class DeadlineExceededError(DDIMError, TimeoutError):
    """A request was not finished within the time that it allowed."""


class EngineClosedError(DDIMError, RuntimeError):
    """An engine was closed, and takes no more requests."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional library.

    Args:
        module: the module to import, such as "sklearn.datasets".
        extra: the extra of this package that installs the library, such as "train".

    Returns:
        The module.

    Raises:
        MissingExtraError: the library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise  # the library is installed, but one that it needs is not, which this error says
        raise _missing(module, extra) from error


def check_installed(module: str, extra: str) -> None:
    """Check that an optional library is installed, without importing it.

    Args:
        module, extra: as in `require`.

    Raises:
        MissingExtraError: the library is not installed.
    """
    name = module.partition(".")[0]
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        raise _missing(module, extra)


def _missing(module: str, extra: str) -> MissingExtraError:
    name = module.partition(".")[0]
    return MissingExtraError(f"this needs {name}, which is not installed: pip install 'ddim[{extra}]'")
