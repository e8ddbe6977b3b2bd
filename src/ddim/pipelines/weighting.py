"""Texts of which some parts weigh more than others, as embeddings; docs/prompts.md has the formulas.

`emphasis` says what parts a text has. What is computed of them is, for both notations, what the program computes that
the notation is from: AUTOMATIC1111's web UI (modules/sd_hijack_clip.py and sd_emphasis.py, emphasis "Original"), and
compel (embeddings_provider.py of version 2, whose texts are cut to the tokens that the encoder reads).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ddim.errors import ConfigError
from ddim.pipelines.added_tokens import with_all_vectors, words_of
from ddim.pipelines.emphasis import Part, Weights, parse

# (ids (b s), mask (b s) or None) -> states (b s d), and each text as one vector (b p), or None
Encode: TypeAlias = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]

MOST_CHUNKS = 32  # of a text: of 75 tokens each, 2,400 in all
BACKTRACK = 20  # how many tokens behind a comma go into the next chunk rather than be divided from it
_NOTHING = 1e-5  # the share of the numbers' size below which their mean is taken for zero
_LEAST = 1e-5  # the weight that compel takes for 0, of which the tangent is infinite


class Weighted(NamedTuple):
    """Tokens, and how much each weighs."""

    ids: list[int]
    weights: list[float]


def length_needed(weights: Weights, tokenizer: Any, texts: Sequence[str]) -> int:
    """How many tokens the embeddings have of these texts together: 77, or a multiple where a text has several chunks.

    Raises:
        ConfigError: as `encode_weighted`.
    """
    length = int(tokenizer.model_max_length)
    if weights != "a1111":
        return length
    return length * max(len(_chunks(tokenizer, text, length - 2)) for text in texts)


def encode_weighted(
    weights: Weights, tokenizer: Any, texts: Sequence[str], encode: Encode, length: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """The embeddings (b s d) of weighted texts, and each text as one vector (b p), which no weights have an effect on.

    Args:
        weights: the notation.
        tokenizer: ours, or one of transformers.
        encode: the text encoder.
        length: s; as many as the texts need unless told.

    Raises:
        ConfigError: a text is malformed, has more than 32 chunks of 75 tokens or more than `length`, or its weights
            make numbers that are not finite.
    """
    with torch.no_grad():
        return (_encode_a1111 if weights == "a1111" else _encode_compel)(tokenizer, texts, encode, length)


# --- as the web UI ---------------------------------------------------------------------------------------------------


def _encode_a1111(
    tokenizer: Any, texts: Sequence[str], encode: Encode, length: int | None
) -> tuple[Tensor, Tensor | None]:
    own = int(tokenizer.model_max_length)
    every = [_chunks(tokenizer, text, own - 2) for text in texts]
    count = max(map(len, every)) if length is None else length // own
    if max(map(len, every)) > count or (length is not None and length % own):
        raise ConfigError(
            f"a prompt has {max(map(len, every))} chunks of {own} tokens, which do not fit into the {length} tokens of "
            "the embeddings that it is to go with"
        )
    rows = [chunk for chunks in every for chunk in [*chunks, *[Weighted([], [])] * (count - len(chunks))]]
    ids, factors = _framed(tokenizer, rows, own)
    states, pooled = encode(ids, None)  # (b·count own d)
    factors = factors.to(states.device)[..., None]
    whole = states.float()
    weighted = whole * factors
    mean, size = weighted.mean(dim=(1, 2), keepdim=True), weighted.abs().mean(dim=(1, 2), keepdim=True)
    restored = weighted * (whole.mean(dim=(1, 2), keepdim=True) / mean)
    # Where nothing weighs more or less, nothing changes. A mean of nothing but rounding cannot be restored.
    is_kept = (factors == 1).all(dim=1, keepdim=True) | (mean.abs() <= _NOTHING * size)
    weighted = torch.where(is_kept, weighted, restored).to(states.dtype)
    if not weighted.isfinite().all():
        raise ConfigError("the weights of a prompt make numbers that are not finite: give smaller ones")
    first = None if pooled is None else pooled.reshape(len(texts), count, -1)[:, 0]
    return weighted.reshape(len(texts), count * own, -1), first


def _chunks(tokenizer: Any, text: str, size: int) -> list[Weighted]:
    """The tokens of a text, divided into chunks that the text encoder can read; one at least."""
    (comma, *_) = tokenizer(",", add_special_tokens=False)["input_ids"]
    several = {tokenizer.convert_tokens_to_ids(word): count for word, count in words_of(tokenizer).items() if count > 1}
    chunks = [Weighted([], [])]
    last_comma: int | None = None

    def begin(ids: Sequence[int] = (), weights: Sequence[float] = ()) -> None:
        nonlocal last_comma
        last_comma = None
        chunks.append(Weighted(list(ids), list(weights)))
        if len(chunks) > MOST_CHUNKS:
            raise ConfigError(f"a prompt has at most {MOST_CHUNKS} chunks of {size} tokens: {text[:100]!r} has more")

    for part in parse(text, "a1111"):
        if part.text is None:
            begin()
            continue
        ids = _ids(tokenizer, part)
        place = 0
        while place < len(ids):
            word = ids[place : place + several.get(ids[place], 1)]
            count = len(chunks[-1].ids)
            if ids[place] == comma:
                last_comma = count
            elif count == size and last_comma is not None and count - last_comma <= BACKTRACK:
                end, before = last_comma + 1, chunks[-1]
                chunks[-1] = Weighted(before.ids[:end], before.weights[:end])
                begin(before.ids[end:], before.weights[end:])
            if len(chunks[-1].ids) + len(word) > size:
                begin()
            chunks[-1].ids.extend(word)
            chunks[-1].weights.extend([part.weight] * len(word))
            place += len(word)
    if len(chunks) > 1 and not chunks[-1].ids:
        chunks.pop()
    return chunks


# --- as compel -------------------------------------------------------------------------------------------------------


def _encode_compel(
    tokenizer: Any, texts: Sequence[str], encode: Encode, length: int | None
) -> tuple[Tensor, Tensor | None]:
    own = int(tokenizer.model_max_length)
    if length not in (None, own):
        raise ConfigError(f"weights='compel' makes {own} tokens of a prompt, which do not go with {length}")
    empty = encode(*_compel_ids(tokenizer, [Weighted([], [])], own))[0].float()
    mixed, pools = [], []
    for text in texts:
        parts = _cut([(part, _ids(tokenizer, part)) for part in parse(text, "compel")], own - 2, text)
        row = Weighted([index for _, ids in parts for index in ids], [part.weight for part, ids in parts for _ in ids])
        ids, factors = _framed(tokenizer, [row], own)
        states, pooled = encode(ids, None)
        factors = factors.to(states.device)[..., None]
        versions, shares = [states], [1.0]
        masks = []
        start = 1
        for part, inside in parts:
            if part.weight < 1 and inside:
                mask = torch.ones_like(ids)
                mask[:, start : start + len(inside)] = 0
                masks.append(mask)
                shares.append(math.tan((1 - max(part.weight, _LEAST)) * math.pi / 2))
            start += len(inside)
        if masks:
            versions.append(encode(ids.expand(len(masks), -1), torch.cat(masks))[0])
        every = torch.cat(versions).float()  # (v own d)
        every = torch.where(factors == 1, every, empty + (every - empty) * factors)
        share = torch.tensor(shares, dtype=torch.float64)
        share = (share / share.sum()).to(every)[:, None, None]
        mixed.append((every * share).sum(dim=0, keepdim=True).to(states.dtype))
        pools.append(pooled)
    result = torch.cat(mixed)
    if not result.isfinite().all():
        raise ConfigError("the weights of a prompt make numbers that are not finite: give smaller ones")
    return result, None if pools[0] is None else torch.cat([pooled for pooled in pools if pooled is not None])


def _compel_ids(tokenizer: Any, rows: Sequence[Weighted], length: int) -> tuple[Tensor, None]:
    return _framed(tokenizer, rows, length)[0], None


def _cut(parts: list[tuple[Part, list[int]]], most: int, text: str) -> list[tuple[Part, list[int]]]:
    """Parts and their tokens without those that the text encoder does not read, of which there is a warning."""
    kept, left = [], most
    for part, ids in parts:
        kept.append((part, ids[:left]))
        left -= len(kept[-1][1])
    if sum(len(ids) for _, ids in parts) > most:
        warnings.warn(
            f"the text encoder reads {most + 2} tokens; the end of {text!r:.500} was cut (weights='a1111' reads all)",
            stacklevel=2,
        )
    return kept


# --- both ------------------------------------------------------------------------------------------------------------


def _ids(tokenizer: Any, part: Part) -> list[int]:
    """The tokens of a part, without start and end."""
    text = with_all_vectors(part.text or "", tokenizer)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _framed(tokenizer: Any, rows: Sequence[Weighted], length: int) -> tuple[Tensor, Tensor]:
    """Rows between a start and an end token and filled up: the ids and the weights, (b length) each."""
    ids = torch.full((len(rows), length), int(tokenizer.pad_token_id), dtype=torch.int64)
    factors = torch.ones(len(rows), length)
    for number, row in enumerate(rows):
        inside = [tokenizer.bos_token_id, *row.ids, tokenizer.eos_token_id]
        ids[number, : len(inside)] = torch.tensor(inside)
        factors[number, 1 : 1 + len(row.ids)] = torch.tensor(row.weights)
    return ids, factors
