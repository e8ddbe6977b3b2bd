"""Calls with their arguments in another order, for the pipelines that are another's call: their signatures, and
what they were given.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any


def signature_of(
    pipeline: type, order: Sequence[str], returns: Any, without: Sequence[str] = (), **defaults: Any
) -> inspect.Signature:
    """The signature of a pipeline's call, with these arguments first and in this order.

    Args:
        pipeline: whose call it is.
        order: names of arguments; the others are by name only.
        returns: what the call is annotated to return.
        without: names of arguments to leave out.
        defaults: take the place of the call's own.
    """
    own = dict(inspect.signature(pipeline.__call__).parameters)
    own = {name: parameter for name, parameter in own.items() if name not in without}
    own |= {name: own[name].replace(default=default) for name, default in defaults.items()}
    first = [own[name].replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *order)]
    rest = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, parameter in own.items()]
    rest = [parameter for parameter in rest if parameter.name not in ("self", *order)]
    return inspect.Signature([*first, *rest], return_annotation=returns)


def named(pipe: Any, args: tuple[Any, ...], options: dict[str, Any], *needed: str) -> dict[str, Any]:
    """The arguments of a pipeline's call by their names.

    Raises:
        ValueError: one of those that are needed is missing.
    """
    given = inspect.signature(type(pipe).__call__).bind(pipe, *args, **options).arguments
    missing = [name for name in needed if given.get(name) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing")
    return {name: value for name, value in given.items() if name != "self"}
