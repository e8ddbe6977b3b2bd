"""From what people ask for, in words or as embeddings, to the embeddings that the U-Net looks at."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from ddim.errors import ConfigError
from ddim.models import CLIPTextModel
from ddim.models.tokenizer import CLIPTokenizer
from ddim.pipelines.added_tokens import with_all_vectors
from ddim.pipelines.emphasis import Weights, parse
from ddim.pipelines.weighting import encode_weighted, length_needed

Prompt: TypeAlias = str | Sequence[str] | None


class Request(NamedTuple):
    """Prompts after all checks: texts or embeddings (b s d) of the same number of pictures."""

    size: int  # b
    texts: list[str] | None
    embeds: Tensor | None
    negative_texts: list[str] | None
    negative_embeds: Tensor | None
    weights: Weights | None = None  # how the texts say what weighs how much, if they do

    def needs_text_encoder(self, is_guided: bool) -> bool:
        """Whether there are texts that are still to be encoded."""
        return self.embeds is None or (is_guided and self.negative_embeds is None)

    def every_text(self, is_guided: bool) -> list[str]:
        """All texts that are to be encoded."""
        return [*(self.texts or ()), *(self.negative_texts or () if is_guided else ())]


def check_prompts(
    prompt: Prompt,
    negative_prompt: Prompt,
    prompt_embeds: Tensor | None,
    negative_prompt_embeds: Tensor | None,
    weights: Weights | None = None,
) -> Request:
    """Check the prompts of a call and bring them to lists of one length.

    Without a negative prompt, the empty text is what to keep away from.

    Raises:
        ValueError: both or neither of a prompt and its embeddings; lists or embeddings that do not fit together.
        ConfigError: what the texts say of weights is malformed.
        TypeError: what is given is no text, no list of texts, or no tensor.
    """
    if (prompt is None) == (prompt_embeds is None):
        raise ValueError("give either prompt or prompt_embeds" + ("" if prompt is None else ", not both"))
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise ValueError("give either negative_prompt or negative_prompt_embeds, not both")
    texts = None if prompt is None else as_texts(prompt, "prompt")
    embeds = None if prompt_embeds is None else _as_embeds(prompt_embeds, "prompt_embeds")
    count = len(texts or ()) if embeds is None else len(embeds)
    if negative_prompt_embeds is None:
        negatives = as_texts("" if negative_prompt is None else negative_prompt, "negative_prompt")
        if negative_prompt is None or isinstance(negative_prompt, str):
            negatives *= count
        if len(negatives) != count:
            raise ValueError(f"{len(negatives)} negative prompts were given for {count} prompts: give one, or as many")
        return _checked(Request(count, texts, embeds, negatives, None, weights))
    negative_embeds = _as_embeds(negative_prompt_embeds, "negative_prompt_embeds")
    if len(negative_embeds) != count or (embeds is not None and negative_embeds.shape != embeds.shape):
        wanted = f"{count} prompts" if embeds is None else f"prompt_embeds of shape {tuple(embeds.shape)}"
        raise ValueError(f"negative_prompt_embeds of shape {tuple(negative_embeds.shape)} do not fit {wanted}")
    return _checked(Request(count, texts, embeds, None, negative_embeds, weights))


def _checked(request: Request) -> Request:
    """The request, of which the texts are read for weights already now."""
    if request.weights is not None:
        for text in {*(request.texts or ()), *(request.negative_texts or ())}:
            parse(text, request.weights)
    return request


class Encoded(NamedTuple):
    """What a text encoder gives of b texts.

    Attributes:
        states: the hidden states of one of its layers, (b s d).
        pooled: each text as one vector, (b p): the projected one, if the encoder has a projection. None of an encoder
            of others that has no such thing.
    """

    states: Tensor
    pooled: Tensor | None


def encode_prompts(
    request: Request,
    tokenizer: CLIPTokenizer | None,
    text_encoder: CLIPTextModel | None,
    is_guided: bool,
    clip_skip: int | None,
) -> tuple[Tensor, Tensor | None]:
    """The embeddings (b s d) of the prompts and, under guidance, of the negative ones, else None.

    `clip_skip` is for the prompts alone, as in diffusers.

    Raises:
        ValueError: the two differ in shape.
        ConfigError: see `encode_texts`.
    """
    embeds, negative = request.embeds, request.negative_embeds
    weights = request.weights
    if embeds is None:
        length = None
        if weights is not None and tokenizer is not None:  # texts of several chunks; both sides have as many
            given = None if negative is None else negative.shape[1]
            length = given or length_needed(weights, tokenizer, request.every_text(is_guided))
        embeds = encode_texts(tokenizer, text_encoder, request.texts or [], clip_skip, length, weights=weights).states
    if not is_guided:
        return embeds, None
    if negative is None:
        texts = request.negative_texts or []
        negative = encode_texts(tokenizer, text_encoder, texts, length=embeds.shape[1], weights=weights).states
    if negative.shape != embeds.shape:
        raise ValueError(
            f"the prompts' embeddings have shape {tuple(embeds.shape)}, the negative ones' {tuple(negative.shape)}"
        )
    return embeds, negative


def encode_texts(
    tokenizer: CLIPTokenizer | None,
    text_encoder: CLIPTextModel | None,
    texts: list[str],
    clip_skip: int | None = None,
    length: int | None = None,
    *,
    is_normed: bool = True,
    weights: Weights | None = None,
) -> Encoded:
    """What a text encoder gives of b texts; every text encoder is called here.

    Args:
        clip_skip: how many of the last layers to leave out.
        length: s, the number of tokens that each text is filled up or cut to; the tokenizer's own unless told.
        is_normed: whether the encoder's final norm is applied to the layer's states.
        weights: how the texts say what weighs how much, if they do; see `weighting`.

    Raises:
        ConfigError: the pipeline has no text encoder, or fewer layers than are to be left out; or what a text says of
            weights is malformed.
    """
    if tokenizer is None or text_encoder is None:
        raise ConfigError("this pipeline has no tokenizer or no text encoder: give prompt_embeds")
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    if len(places) < len(texts):  # most often the same negative prompt for all
        encoded = encode_texts(
            tokenizer, text_encoder, list(places), clip_skip, length, is_normed=is_normed, weights=weights
        )
        rows = [places[text] for text in texts]
        return Encoded(encoded.states[rows], None if encoded.pooled is None else encoded.pooled[rows])

    def encode(ids: Tensor, mask: Tensor | None = None) -> Encoded:
        masked = () if mask is None else (mask.to(text_encoder.device),)
        return _encode_ids(text_encoder, ids.to(text_encoder.device), masked, clip_skip, is_normed)

    if weights is not None:
        return Encoded(*encode_weighted(weights, tokenizer, texts, encode, length))
    return encode(token_ids(tokenizer, texts, length))


def _encode_ids(
    text_encoder: Any, ids: Tensor, mask: tuple[Tensor, ...], clip_skip: int | None, is_normed: bool
) -> Encoded:
    """What a text encoder gives of tokens (b s), of which a mask (b s), if there is one, hides those with a 0."""
    if clip_skip is None and is_normed:
        return Encoded(*_last_and_pooled(text_encoder(ids, *mask)))
    layers = text_encoder.config.num_hidden_layers
    skip = 0 if clip_skip is None else clip_skip
    if isinstance(skip, bool) or not isinstance(skip, int) or not 0 <= skip <= layers:
        raise ConfigError(f"clip_skip must be an int in 0…{layers}, the text encoder's layers, not {clip_skip!r:.50}")
    given: Any = text_encoder(ids, *mask, output_hidden_states=True)
    state: Tensor = given.hidden_states[-1 - skip]
    if is_normed:
        inner: Any = getattr(text_encoder, "text_model", text_encoder)  # transformers 5 has no such part
        state = inner.final_layer_norm(state)
    return Encoded(state, _last_and_pooled(given)[1])


def _last_and_pooled(given: Any) -> tuple[Tensor, Tensor | None]:
    """The last hidden state and the vector of each text, of what an encoder with or without a projection gives."""
    pooled: Tensor | None = getattr(given, "text_embeds", None)
    if pooled is not None:
        return given.last_hidden_state, pooled
    return given[0], getattr(given, "pooler_output", None)


def token_ids(tokenizer: Any, texts: list[str], length: int | None) -> Tensor:
    """The ids (b s) of texts by our tokenizer, or by one of transformers that the user gave."""
    length = int(tokenizer.model_max_length) if length is None else length
    texts = [with_all_vectors(text, tokenizer, length) for text in texts]
    if isinstance(tokenizer, CLIPTokenizer):
        return tokenizer.ids(texts, length)
    how = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    long = [text for text, row in zip(texts, tokenizer(texts).input_ids, strict=True) if len(row) > length]
    if long:
        warnings.warn(f"the text encoder reads {length} tokens; the end of {long!r:.500} was cut", stacklevel=2)
    ids: Tensor = tokenizer(texts, **how).input_ids
    return ids


def as_texts(prompt: Any, name: str) -> list[str]:
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name} must be a str or a list of them, not {prompt!r:.100}")
    if not texts:
        raise ValueError(f"{name} is an empty list")
    return list(texts)


def _as_embeds(embeds: Any, name: str) -> Tensor:
    if not isinstance(embeds, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(embeds).__name__}")
    if embeds.ndim != 3 or not embeds.is_floating_point() or not len(embeds):
        raise ValueError(f"{name} must have shape (b, tokens, channels), not {embeds.dtype} {tuple(embeds.shape)}")
    return embeds
