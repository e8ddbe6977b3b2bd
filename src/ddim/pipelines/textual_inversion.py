"""New words for a pipeline (textual inversion), by the methods that diffusers' users know."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from ddim.checkpoint.textual_inversion import LearnedWord, read_learned_word
from ddim.errors import WeightsError
from ddim.pipelines.added_tokens import added_tokens, check_free, checked, with_all_vectors, with_its_vectors
from ddim.pipelines.base import WITHOUT_EFFECT
from ddim.pipelines.words import KnowsWords

# A file, a folder, a hub id, what is in such a file, or the vectors alone.
Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Tensor

# Whose text encoders have vectors of so many numbers.
_FAMILIES = {
    768: "Stable Diffusion 1 (and the first text encoder of XL)",
    1024: "Stable Diffusion 2",
    1280: "the second text encoder of Stable Diffusion XL",
}
_changing = threading.Lock()  # one thread at a time changes what words there are


class Encoder(NamedTuple):
    """A text encoder and its tokenizer; ours, or transformers'."""

    tokenizer: Any
    network: Any

    @property
    def table(self) -> nn.Embedding:
        """The vectors of all tokens."""
        found: nn.Embedding = self.network.get_input_embeddings()
        return found

    def grown(self, vectors: Tensor) -> Tensor:
        """The table with these vectors behind those of all tokens that there are, (v d)."""
        weight = self.table.weight.detach()
        first, end = len(self.tokenizer), len(self.tokenizer) + len(vectors)
        if len(weight) < first:
            raise WeightsError(
                f"the tokenizer has {first} tokens, and the text encoder vectors for {len(weight)} alone"
            )
        grown = torch.cat([weight[:first], vectors.to(weight), weight[end:]])
        if not grown[first:end].isfinite().all():
            raise WeightsError(f"the vectors have numbers that are not finite in {weight.dtype}")
        return grown

    def put(self, weight: Tensor) -> None:
        """Have the network use another table, (v d)."""
        table = self.table
        table.weight = nn.Parameter(weight, requires_grad=table.weight.requires_grad)
        table.num_embeddings = len(weight)
        network = getattr(self.network, "_orig_mod", self.network)  # what torch.compile has wrapped
        if hasattr(network, "register_to_config"):
            network.register_to_config(vocab_size=len(weight))
        else:
            network.config.vocab_size = len(weight)


class TakesWords(KnowsWords):
    """For pipelines with a `tokenizer` and a `text_encoder`, and maybe a second of each.

    Words belong to the tokenizer and the text encoder: pipelines that share these (`from_pipe`) share the words, and
    `save_pretrained` saves them with the pipeline. Words may be loaded while other threads draw; take them away only
    while no other thread draws a text.
    """

    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: Source | Sequence[Source],
        token: str | Sequence[str] | None = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        hf_token: str | bool | None = None,
        **options: Any,
    ) -> None:
        """Load new words, which prompts can use from then on.

        A word of n vectors becomes n tokens, `<cat>`, `<cat>_1` and so on; a prompt needs to say the first alone.

        Args:
            pretrained_model_name_or_path: a file, a folder or a hub id that has one, a dict as there is in such a file,
                or the vectors; or a list of these. See docs/prompts.md for the layouts.
            token: what prompts say for it, or a list with one for each; what the file says unless told. A list of n
                for a tensor (n d) gives each vector a token.
            tokenizer, text_encoder: which to teach it; the pipeline's own unless told, and both pairs of Stable
                Diffusion XL if the file has vectors for both.
            weight_name: the file's name, if it is not one of `checkpoint.textual_inversion.NAMES`.
            subfolder: the folder inside.
            hf_token: gives access to private repositories of the hub.
            options: `revision`, `cache_dir`, `local_files_only`, `force_download` for the hub. `use_safetensors`,
                `mirror` and `proxies=None` are without effect.

        Raises:
            CheckpointError: no such file, or not the format that its name says.
            WeightsError: it is no such embedding, or not for this text encoder.
            ValueError: a token is there already, cannot be one, or there is not one for each; the pipeline has no text
                encoder or no tokenizer.

        After an error nothing has changed.

        Warns:
            UserWarning: only one of two text encoders learns the word.
        """
        options = {name: value for name, value in options.items() if name not in WITHOUT_EFFECT}
        if options.pop("proxies", None) is not None:
            raise TypeError("proxies are not taken: set the environment variables HTTP_PROXY and HTTPS_PROXY")
        if hf_token is not None:
            options["token"] = hf_token
        is_one = not isinstance(pretrained_model_name_or_path, (list, tuple))
        sources: list[Any] = [pretrained_model_name_or_path] if is_one else list(pretrained_model_name_or_path)  # type: ignore[arg-type]
        named: list[str | None] = list(token) if isinstance(token, (list, tuple)) else [token]  # type: ignore[list-item]
        if len(sources) == 1 and len(named) > 1 and isinstance(sources[0], Tensor):
            sources = list(sources[0])
        if named == [None]:
            named *= len(sources)
        if not sources or len(named) != len(sources):
            raise ValueError(f"{len(named)} tokens were given for {len(sources)} embeddings: give one for each")
        words = []
        for source, given in zip(sources, named, strict=True):
            word = read_learned_word(source, weight_name=weight_name, subfolder=subfolder, **options)
            if given is None and word.token is None:
                raise ValueError(f"nothing says what prompts are to say for {word.what}: give token=")
            words.append(word if given is None else word._replace(token=given))
        with _changing:
            learn(words, self._encoders(tokenizer, text_encoder))

    def unload_textual_inversion(
        self, tokens: str | Sequence[str] | None = None, tokenizer: Any = None, text_encoder: Any = None
    ) -> None:
        """Forget words, with all of their vectors.

        Args:
            tokens: which; all that were added unless told.
            tokenizer, text_encoder: as in `load_textual_inversion`.

        Raises:
            ValueError: there is no such token; nothing has changed then.
        """
        with _changing:
            encoders = self._encoders(tokenizer, text_encoder)
            if not all(hasattr(encoder.tokenizer, "remove_tokens") for encoder in encoders):
                raise TypeError("words can be taken from a ddim.CLIPTokenizer alone: load the pipeline anew")
            wanted = None if tokens is None else [tokens] if isinstance(tokens, str) else list(tokens)
            gone = []
            for encoder in encoders:
                added = added_tokens(encoder.tokenizer)
                chosen = [*added] if wanted is None else [token for token in wanted if token in added]
                gone.append([each for token in chosen for each in with_its_vectors(token, added)])
            for token in wanted or ():
                if not any(token in each for each in gone):
                    known = sorted({token for encoder in encoders for token in added_tokens(encoder.tokenizer)})
                    raise ValueError(
                        f"there is no token {token!r:.100} that was added; there are {', '.join(known)[:300] or 'none'}"
                    )
            for encoder, each in zip(encoders, gone, strict=True):
                weight = encoder.table.weight.detach()
                left = torch.ones(len(weight), dtype=torch.bool)
                left[encoder.tokenizer.remove_tokens(each)] = False
                encoder.put(weight[left.to(weight.device)])

    def maybe_convert_prompt(self, prompt: str | list[str], tokenizer: Any = None) -> Any:
        """Prompts in which each word of several vectors is followed by the tokens of all of them.

        Calls of the pipeline do so themselves; it does no harm to do it twice.

        Args:
            prompt: a text, or a list.
            tokenizer: whose words; the pipeline's own unless told.
        """
        tokenizer = getattr(self, "tokenizer", None) if tokenizer is None else tokenizer
        if isinstance(prompt, list):
            return [with_all_vectors(each, tokenizer) for each in prompt]
        return with_all_vectors(prompt, tokenizer)

    def unknown_words(self, prompt: str | Sequence[str]) -> dict[str, tuple[str, ...]]:
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        tokenizers = [getattr(self, name, None) for name in ("tokenizer", "tokenizer_2")]
        every = {token for tokenizer in tokenizers for token in added_tokens(tokenizer)}
        for token in sorted(every, key=len, reverse=True):
            texts = [re.sub(re.escape(token), " ", text, flags=re.IGNORECASE) for text in texts]
        return super().unknown_words(texts)

    def _encoders(self, tokenizer: Any, text_encoder: Any) -> list[Encoder]:
        """The text encoders that are to learn words: the ones that are given, or all of the pipeline."""
        if tokenizer is None and text_encoder is None:
            pairs = [
                (getattr(self, f"tokenizer{end}", None), getattr(self, f"text_encoder{end}", None))
                for end in ("", "_2")
            ]
            pairs = [pair for pair in pairs if None not in pair]
        else:
            own = {"tokenizer": getattr(self, "tokenizer", None), "text_encoder": getattr(self, "text_encoder", None)}
            pairs = [
                (
                    own["tokenizer"] if tokenizer is None else tokenizer,
                    own["text_encoder"] if text_encoder is None else text_encoder,
                )
            ]
        if not pairs or None in pairs[0]:
            raise ValueError(
                "this pipeline has no tokenizer or no text encoder to learn a word: give tokenizer= and text_encoder="
            )
        return [Encoder(*pair) for pair in pairs]


def learn(words: Sequence[LearnedWord], encoders: Sequence[Encoder]) -> None:
    """Teach text encoders words; all of them, or none after an error."""
    new: list[tuple[list[str], list[Tensor]]] = [([], []) for _ in encoders]
    for word in words:
        token = checked(word.token)
        for encoder, (names, rows), vectors in _meant(word, encoders, new):
            most = encoder.tokenizer.model_max_length - 2
            if len(vectors) > most:
                raise WeightsError(f"{word.what} has {len(vectors)} vectors, and a text has {most} tokens at most")
            tokens = [token, *(f"{token}_{number}" for number in range(1, len(vectors)))]
            check_free(tokens, encoder.tokenizer, names)
            names += tokens
            rows += list(vectors)
    grown = [
        encoder.grown(torch.stack(rows)) if rows else None for encoder, (_, rows) in zip(encoders, new, strict=True)
    ]
    for encoder, weight in zip(encoders, grown, strict=True):
        if weight is not None:
            encoder.put(weight)
    for encoder, (names, _) in zip(encoders, new, strict=True):  # last, so that no token is ever without a vector
        if names:
            encoder.tokenizer.add_tokens(names)


def _meant(word: LearnedWord, encoders: Sequence[Encoder], new: Any) -> list[tuple[Encoder, Any, Tensor]]:
    """Which text encoders learn a word, each with its vectors.

    Raises:
        WeightsError: the vectors are not for them.
    """
    widths = [encoder.table.embedding_dim for encoder in encoders]
    if word.is_for_all and len(encoders) == 1:
        fitting = [vectors for vectors in word.vectors.values() if vectors.shape[1] == widths[0]]
        if len(fitting) != 1:
            raise WeightsError(
                f"{word.what} has vectors for the text encoders of Stable Diffusion XL, and none of {widths[0]} "
                f"numbers, as this text encoder has{_said(widths[0])}"
            )
        return [(encoders[0], new[0], fitting[0])]
    chosen = []
    for place, vectors in word.vectors.items():
        if place >= len(encoders) or vectors.shape[1] != widths[place]:
            width = widths[min(place, len(widths) - 1)]
            raise WeightsError(
                f"{word.what} has vectors of {vectors.shape[1]} numbers{_said(vectors.shape[1])}; this text encoder "
                f"has {width}{_said(width)}"
            )
        chosen.append((encoders[place], new[place], vectors))
    if len(chosen) < len(encoders):
        warnings.warn(
            f"{word.what} has vectors for one of the two text encoders: the other reads the token "
            f"{word.token!r:.100} as letters",
            stacklevel=4,
        )
    return chosen


def _said(width: int) -> str:
    return f", as those for {_FAMILIES[width]}" if width in _FAMILIES else ""
