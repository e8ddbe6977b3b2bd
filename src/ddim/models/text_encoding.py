"""What a call of the tokenizer is asked for, and what it gives: transformers' arguments and results.

`ddim.models.tokenizer` makes the ids in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

# What asks for texts to be left as they are.
KEEP = (False, "do_not_pad", "do_not_truncate")
# Arguments of transformers' tokenizer that are not implemented, with the values that ask for nothing.
_NOT_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "is_split_into_words": (False,),
    "pair": (None, False),
    "return_overflowing_tokens": (False,),
    "split_special_tokens": (False, None),
    "stride": (0,),
    "text_pair": (None,),
    "text_pair_target": (None,),
    "text_target": (None,),
    "token_ids_1": (None,),
    "tokenizer_kwargs": (None,),
}


class TextEncoding(dict[str, Any]):
    """What a call of the tokenizer gives: `input_ids`, `attention_mask` and what else was asked for.

    All of it can be read by key and by attribute. Each is a list (of lists, if several texts were given), or a tensor
    or array (b s).
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the encoding has no {name!r}; it has {', '.join(self)}") from None

    @property
    def data(self) -> dict[str, Any]:
        """The same as a plain dict."""
        return dict(self)

    def to(self, device: str | torch.device | int, *, non_blocking: bool = False) -> Self:
        """Move the tensors to a device, in this object.

        Raises:
            TypeError: `device` is a type, and ids have to stay integers.
        """
        if isinstance(device, torch.dtype):
            raise TypeError(f"an encoding can be moved to a device, but not converted to {device}")
        for name, value in self.items():
            if isinstance(value, Tensor):
                self[name] = value.to(device, non_blocking=non_blocking)
        return self

    def __reduce__(self) -> tuple[type[TextEncoding], tuple[dict[str, Any]]]:
        return TextEncoding, (dict(self),)


def refuse_arguments(**given: Any) -> None:
    """Raise a TypeError if one of these arguments is unknown, or asks for what is not implemented."""
    for name, value in given.items():
        if name not in _NOT_IMPLEMENTED:
            raise TypeError(f"CLIPTokenizer has no argument {name!r:.50}")
        if value not in _NOT_IMPLEMENTED[name]:
            raise TypeError(
                f"{name} is not implemented: CLIP reads one text at a time, and its end is cut off for good"
            )


def choice(value: Any, name: str, known: Mapping[Any, Any], nothing: Sequence[Any]) -> Any:
    """What an argument stands for, and False for what asks for nothing; a ValueError if it is not known."""
    value = getattr(value, "value", value)  # transformers' enumerations
    if isinstance(value, (bool, str)) and value in nothing:
        return False
    if not isinstance(value, (bool, str)) or value not in known:
        words = ", ".join(repr(each) for each in [*known, False])
        raise ValueError(f"{name}={value!r:.50} is none of {words}")
    return known[value]


def width_of(rows: Sequence[Sequence[Any]], pads: Any, length: int) -> int | None:
    """How many tokens rows are filled up to; None if they are left as they are."""
    if not pads:
        return None
    return length if pads == "max_length" else max(map(len, rows), default=0)


def id_lists(value: Any) -> list[Any]:
    """Ids as lists: of one id, of a list, array or tensor of them, or of a list of those."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, int):
        return [value]
    return [id_lists(each) if np.ndim(each) else int(each) for each in value]


def as_tensors(encoding: TextEncoding, kind: str | None) -> TextEncoding:
    """The lists of an encoding as tensors ("pt") or arrays ("np"); a ValueError if their lengths differ."""
    kind = getattr(kind, "value", kind)
    if kind is None:
        return encoding
    makers: dict[str, Callable[[Any], Any]] = {
        "pt": lambda rows: torch.tensor(rows, dtype=torch.int64),
        "np": lambda rows: np.array(rows, dtype=np.int64),
    }
    if kind not in makers:
        raise ValueError(f"return_tensors={kind!r:.50} is none of 'pt', 'np' and None")
    lengths = {len(row) for row in encoding.input_ids}
    if len(lengths) > 1:
        raise ValueError(
            f"the texts have from {min(lengths)} to {max(lengths)} tokens, which make no tensor: give padding=True, or "
            "padding='max_length' and truncation=True"
        )
    return TextEncoding({name: makers[kind](rows) for name, rows in encoding.items()})
