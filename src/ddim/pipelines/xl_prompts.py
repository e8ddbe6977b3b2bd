"""From the two texts that Stable Diffusion XL is asked for to what its U-Net is told of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddim.errors import ConfigError
from ddim.pipelines.emphasis import Weights, parse
from ddim.pipelines.prompts import Prompt, Request, as_texts, check_prompts, encode_texts
from ddim.pipelines.weighting import length_needed
from ddim.pipelines.xl_sizes import Sizes


class Words(NamedTuple):
    """Texts as the U-Net is told of them.

    Attributes:
        embeds: of both encoders, the last layer's but one, side by side: (b s d).
        pooled: the second encoder's vector of each text, (b p).
    """

    embeds: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class Encoder:
    """A text encoder and its tokenizer; either is None in a pipeline that is without."""

    tokenizer: Any
    text_encoder: Any


@dataclass(frozen=True)
class RequestXL:
    """Prompts after all checks.

    Attributes:
        first: the texts for the first encoder and the embeddings of both; what it says of negative texts counts only if
            `is_empty` is False.
        second, negative_second: the texts for the second encoder; None where embeddings are given.
        pooled, negative_pooled: the texts' vectors, instead of those of the second encoder, (b p).
        is_empty: there are no negative texts: zeros are told in the place of the empty text's embeddings.
        sizes: what else is told.
    """

    first: Request
    second: list[str] | None
    negative_second: list[str] | None
    pooled: Tensor | None
    negative_pooled: Tensor | None
    is_empty: bool
    sizes: Sizes

    @property
    def size(self) -> int:
        """b, the number of prompts."""
        return self.first.size

    def needs_text_encoder(self, is_guided: bool) -> bool:
        """Whether there are texts that are still to be encoded."""
        return self.first.embeds is None or (is_guided and not self.is_empty and self.first.negative_embeds is None)


def check_xl_prompts(
    prompt: Prompt,
    prompt_2: Prompt,
    negative_prompt: Prompt,
    negative_prompt_2: Prompt,
    prompt_embeds: Tensor | None,
    negative_prompt_embeds: Tensor | None,
    pooled_prompt_embeds: Tensor | None,
    negative_pooled_prompt_embeds: Tensor | None,
    *,
    zeros_for_none: bool,
    sizes: Sizes | None = None,
    weights: Weights | None = None,
) -> RequestXL:
    """Check the prompts of a call and bring them to lists of one length.

    Args:
        zeros_for_none: without negative texts, zeros are what to keep away from, and not the empty text.

    Raises:
        ValueError, TypeError: as `check_prompts`; or embeddings without their texts' vectors.
    """
    first = check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, weights)
    for name, given, embeds in (
        ("prompt", prompt_2, prompt_embeds),
        ("negative_prompt", negative_prompt_2, negative_prompt_embeds),
    ):
        if given is not None and embeds is not None:
            raise ValueError(f"give either {name}_2 or {name}_embeds, not both")
    pooled = _as_pooled(pooled_prompt_embeds, "pooled_prompt_embeds", first.size)
    negative_pooled = _as_pooled(negative_pooled_prompt_embeds, "negative_pooled_prompt_embeds", first.size)
    if prompt_embeds is not None and pooled is None:
        raise ValueError("prompt_embeds need pooled_prompt_embeds, the same texts' vectors: encode_prompt gives both")
    if negative_prompt_embeds is not None and negative_pooled is None:
        raise ValueError(
            "negative_prompt_embeds need negative_pooled_prompt_embeds, the same texts' vectors: encode_prompt gives "
            "both"
        )
    second = None if first.texts is None else _second(prompt_2, first.texts, "prompt_2")
    negative_second = None
    if first.negative_texts is not None:
        negative_second = _second(negative_prompt_2, first.negative_texts, "negative_prompt_2")
    if weights is not None:
        for text in {*(second or ()), *(negative_second or ())}:
            parse(text, weights)
    is_empty = zeros_for_none and all(
        each is None for each in (negative_prompt, negative_prompt_2, negative_prompt_embeds)
    )
    return RequestXL(first, second, negative_second, pooled, negative_pooled, is_empty, sizes or Sizes())


def _second(given: Prompt, first: list[str], name: str) -> list[str]:
    """The texts of the second encoder: those that are given, or in the place of none or of empty ones the first's."""
    if given is None:
        return first
    texts = as_texts(given, name)
    if isinstance(given, str):
        texts *= len(first)
    if len(texts) != len(first):
        raise ValueError(f"{len(texts)} texts in {name} do not fit {len(first)} prompts: give one, or as many")
    return first if given == "" else texts


def _as_pooled(pooled: Any, name: str, count: int) -> Tensor | None:
    if pooled is None:
        return None
    if not isinstance(pooled, Tensor) or pooled.ndim != 2 or not pooled.is_floating_point() or len(pooled) != count:
        found = f"{pooled.dtype} {tuple(pooled.shape)}" if isinstance(pooled, Tensor) else type(pooled).__name__
        raise ValueError(f"{name} must be a tensor of shape ({count}, channels), not {found}")
    return pooled


def encode_xl_prompts(
    request: RequestXL, encoders: tuple[Encoder, Encoder], is_guided: bool, clip_skip: int | None
) -> tuple[Words, Words | None]:
    """What the U-Net is told of the prompts and, under guidance, of the negative ones, else None.

    `clip_skip` is for the prompts alone, as in diffusers.

    Raises:
        ValueError: the two differ in shape.
        ConfigError: see `encode_both`.
    """
    first = request.first
    words: Words | None = None
    if first.embeds is None:
        length = None
        if first.weights is not None:  # texts of several chunks; both sides have as many
            given = None if first.negative_embeds is None else first.negative_embeds.shape[1]
            length = given or _length_needed(request, encoders, is_guided)
        words = encode_both(encoders, first.texts or [], request.second or [], clip_skip, length, first.weights)
    embeds = words.embeds if words is not None else first.embeds
    pooled = request.pooled if words is None or request.pooled is not None else words.pooled
    assert embeds is not None
    assert pooled is not None
    positive = Words(embeds, pooled)
    if not is_guided:
        return positive, None
    if first.negative_embeds is not None:
        assert request.negative_pooled is not None
        negative = Words(first.negative_embeds, request.negative_pooled)
    elif request.is_empty:
        negative = Words(torch.zeros_like(embeds), torch.zeros_like(pooled))
    else:
        texts, second = first.negative_texts or [], request.negative_second or []
        negative = encode_both(encoders, texts, second, None, embeds.shape[1], first.weights)
        if request.negative_pooled is not None:
            negative = Words(negative.embeds, request.negative_pooled)
    for name, one, other in zip(("embeddings", "vectors"), positive, negative, strict=True):
        if one.shape != other.shape:
            raise ValueError(
                f"the prompts' {name} have shape {tuple(one.shape)}, the negative ones' {tuple(other.shape)}"
            )
    return positive, negative


def _length_needed(request: RequestXL, encoders: tuple[Encoder, Encoder], is_guided: bool) -> int | None:
    """How many tokens the embeddings of all weighted texts of a request have together."""
    first = request.first
    negative = is_guided and not request.is_empty
    every = {*first.every_text(negative), *(request.second or ()), *(request.negative_second or () if negative else ())}
    tokenizers = [each.tokenizer for each in encoders if each.tokenizer is not None]
    assert first.weights is not None
    return max((length_needed(first.weights, tokenizer, [*every]) for tokenizer in tokenizers), default=None)


def encode_both(
    encoders: tuple[Encoder, Encoder],
    texts: list[str],
    second: list[str],
    clip_skip: int | None = None,
    length: int | None = None,
    weights: Weights | None = None,
) -> Words:
    """What both encoders make of texts; the refiner has the second one alone, which then reads the first texts.

    Args:
        clip_skip: how many layers to leave out beside the last one.
        length: s, the number of tokens that each text is filled up or cut to; each tokenizer's own unless told, or as
            many as weighted texts need.
        weights: how the texts say what weighs how much, if they do.

    Raises:
        ConfigError: the pipeline has no second encoder, an encoder without its tokenizer, or fewer layers than are to
            be left out.
        ValueError: the two encoders read different numbers of tokens.
    """
    one, two = encoders
    if two.text_encoder is None or two.tokenizer is None:
        raise ConfigError(
            "this pipeline has no tokenizer_2 or no text_encoder_2: give prompt_embeds and their pooled_…"
        )
    if (one.text_encoder is None) != (one.tokenizer is None):
        raise ConfigError(
            "this pipeline has one of text_encoder and tokenizer, and not the other: assign both, or none"
        )
    skip = 0 if clip_skip is None else clip_skip
    if length is None and weights is not None:
        pairs = ((one, texts), (two, texts if one.text_encoder is None else second))
        length = max(length_needed(weights, each.tokenizer, some) for each, some in pairs if each.tokenizer is not None)
    is_alone = one.text_encoder is None
    states = []
    pooled = None
    for each, wanted in ((one, texts), (two, texts if is_alone else second)):
        if each.text_encoder is not None:
            layers = each.text_encoder.config.num_hidden_layers
            if isinstance(skip, bool) or not isinstance(skip, int) or not 0 <= skip < layers:
                raise ConfigError(
                    f"clip_skip must be an int in 0…{layers - 1}, as one of the text encoder's {layers} layers is left "
                    f"out in any case, not {clip_skip!r:.50}"
                )
            found = encode_texts(
                each.tokenizer, each.text_encoder, wanted, 1 + skip, length, is_normed=False, weights=weights
            )
            states.append(found.states)
            pooled = found.pooled
    if pooled is None or len({state.shape[1] for state in states}) != 1:
        raise ValueError(
            "the two text encoders read different numbers of tokens: "
            + ", ".join(str(each.shape[1]) for each in states)
        )
    return Words(torch.cat([state.to(states[-1]) for state in states], dim=2), pooled)
