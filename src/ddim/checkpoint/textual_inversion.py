"""Files of learnt words (textual inversion, Gal et al. 2022): vectors that a text encoder is given for a new token.

Four layouts are read, each as `.safetensors` or as what `torch.save` wrote, of which only tensors are taken:

- {token: vectors}, as diffusers saves them;
- {"string_to_param": {"*": vectors}, "name": token}, as AUTOMATIC1111's web UI saves them;
- {"emb_params": vectors}, which has no name: the file's own is the token;
- {"clip_l": vectors, "clip_g": vectors}, for the two text encoders of Stable Diffusion XL; again without a name.

Vectors are (d,) or (n, d). Of a folder in which diffusers' training of Stable Diffusion XL has saved two files,
`learned_embeds.safetensors` is for the first text encoder and `learned_embeds_2.safetensors` for the second.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddim.checkpoint.files import read_pickle, read_tensors
from ddim.checkpoint.hub import Repository
from ddim.errors import CheckpointError, WeightsError

EMBEDS = "learned_embeds.safetensors"
EMBEDS_2 = "learned_embeds_2.safetensors"
# The files that are looked for in a folder, in this order.
NAMES = (EMBEDS, "learned_embeds.bin")
SUFFIXES = (".safetensors", ".pt", ".bin")

# The names that vectors for one of several text encoders have in a file, in the order of the text encoders.
ENCODERS = (("clip_l", "text_encoders_0"), ("clip_g", "text_encoders_1"))
_NAMELESS = "emb_params"


class LearnedWord(NamedTuple):
    """A new word, and what it means.

    Attributes:
        token: what a text says for it; None where nothing names it.
        vectors: (n d) for each text encoder that there are some for, by its place: 0 is the first.
        is_for_all: whether the file has vectors for each of two text encoders.
        what: where it is from, for messages.
    """

    token: str | None
    vectors: dict[int, Tensor]
    is_for_all: bool
    what: str


def read_learned_word(
    source: str | os.PathLike[str] | Mapping[str, Any] | Tensor,
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    **options: Any,
) -> LearnedWord:
    """Read a learnt word.

    Args:
        source: a file, a folder or hub id that has one, or what is in such a file: a dict, or the vectors alone.
        weight_name: the file's name in the folder. Unless told, it is the first of `NAMES` that is there, or else the
            only file in a folder that ends in one of `SUFFIXES`.
        subfolder: the folder in the source that the file is in.
        options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub.

    Raises:
        TypeError: there is another option, or `source` is none of these.
        CheckpointError: there is no such file, or it is not in the format that its name says.
        WeightsError: it is none of the layouts, or its vectors are none.
    """
    if isinstance(source, (Mapping, Tensor)):
        return _word(source, None, "the given embedding")
    repository = Repository.open(source, options)
    if options:
        raise TypeError(f"there is no argument {', '.join(sorted(options))}")
    if os.path.isfile(repository.name):
        path, second = Path(repository.name), None
    else:
        path = repository.find_weights(NAMES, weight_name, subfolder, SUFFIXES)
        second = repository.find(EMBEDS_2, subfolder) if path.name == EMBEDS and weight_name is None else None
    word = _word(_read(path), path.stem, str(path))
    if second is None or word.is_for_all:
        return word
    other = _word(_read(second), second.stem, str(second))
    if other.token != word.token:
        raise WeightsError(f"{path} has the token {word.token!r:.100}, and {second} has {other.token!r:.100}")
    return word._replace(vectors={0: word.vectors[0], 1: other.vectors[0]}, is_for_all=True)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return read_tensors(path)
    if path.suffix in SUFFIXES:
        return read_pickle(path)
    raise CheckpointError(f"{path} is no {' or '.join(SUFFIXES)} file, and nothing else is read")


def _word(stored: Any, stem: str | None, what: str) -> LearnedWord:
    """The word in what a file has; `stem` is the name of a file whose layout has none."""
    if isinstance(stored, Tensor):
        return LearnedWord(None, {0: _vectors(stored, what)}, False, what)
    if not isinstance(stored, Mapping) or not stored:
        raise WeightsError(f"{what} is no embedding of textual inversion: it has a {type(stored).__name__} in it")
    if "string_to_param" in stored:
        inner = stored["string_to_param"]
        if not isinstance(inner, Mapping) or len(inner) != 1:
            raise WeightsError(f"{what} has not the vectors of one token in its string_to_param")
        name = stored.get("name") or stem
        if not isinstance(name, str | None):
            raise WeightsError(f"{what} has no word as its name, but {name!r:.100}")
        return LearnedWord(name, {0: _vectors(next(iter(inner.values())), what)}, False, what)
    listed = [next((name for name in names if name in stored), None) for names in ENCODERS]
    if any(listed):
        if len(stored) != sum(name is not None for name in listed):
            raise WeightsError(f"{what} has more in it than {' and '.join(filter(None, listed))}")
        vectors = {i: _vectors(stored[name], f"{name} in {what}") for i, name in enumerate(listed) if name is not None}
        if len({len(each) for each in vectors.values()}) > 1:
            counts = " and ".join(str(len(each)) for each in vectors.values())
            raise WeightsError(f"{what} has {counts} vectors for the two text encoders, and each needs as many")
        return LearnedWord(stem, vectors, True, what)
    if len(stored) > 1:
        some = ", ".join(str(name)[:50] for name in list(stored)[:3])
        raise WeightsError(
            f"{what} is no embedding of textual inversion, which is of one token: it has {len(stored)} entries, such "
            f"as {some}. An adapter is loaded by load_lora_weights"
        )
    ((name, value),) = stored.items()
    token = stem if name == _NAMELESS else name
    if not isinstance(token, str | None):
        raise WeightsError(f"{what} has no word as its token, but {token!r:.100}")
    return LearnedWord(token, {0: _vectors(value, what)}, False, what)


def _vectors(value: Any, what: str) -> Tensor:
    """Vectors as a file has them, (d,) or (n d), as (n d) of their own.

    Raises:
        WeightsError: they are no such tensor, or not finite.
    """
    if not isinstance(value, Tensor):
        raise WeightsError(f"{what} has a {type(value).__name__} where vectors are needed")
    if value.layout is not torch.strided or value.is_meta or not value.is_floating_point():
        raise WeightsError(f"{what} has {value.dtype} numbers, {value.layout}, where vectors are needed")
    if value.ndim not in (1, 2) or not value.numel():
        raise WeightsError(f"{what} has the shape {tuple(value.shape)}: vectors are (numbers) or (vectors, numbers)")
    if not value.isfinite().all():
        raise WeightsError(f"{what} has numbers that are not finite")
    return (value if value.ndim == 2 else value[None]).detach()
