"""Calls with their arguments in another order, for the pipelines that are another's call: their signatures, and
what they were given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar, overload

from ddim.pipelines.outputs import PlainOutput

Arrays_co = TypeVar("Arrays_co", covariant=True)
Tensors_co = TypeVar("Tensors_co", covariant=True)
Images_co = TypeVar("Images_co", covariant=True)


class Call(Protocol[Arrays_co, Tensors_co, Images_co]):
    """Such a pipeline's call, to type checkers: what comes out goes by `output_type` and `return_dict`."""

    @overload
    def __call__(self, *args: Any, return_dict: Literal[False], **options: Any) -> PlainOutput: ...
    @overload
    def __call__(self, *args: Any, output_type: Literal["np"], **options: Any) -> Arrays_co: ...
    @overload
    def __call__(self, *args: Any, output_type: Literal["pt", "latent"], **options: Any) -> Tensors_co: ...
    @overload
    def __call__(self, *args: Any, **options: Any) -> Images_co: ...


def signed(signature: inspect.Signature) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function, so that it says of itself that it has this signature."""

    def decorate(call: Callable[..., Any]) -> Any:
        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return decorate


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
