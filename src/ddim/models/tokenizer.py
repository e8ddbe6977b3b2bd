"""CLIP's tokenizer: texts to the token ids that Stable Diffusion's text encoder was trained on.

Unicode is composed (NFC), white space becomes single blanks, letters become small; the text is cut into words, single
digits and runs of signs; and the UTF-8 bytes of each are merged, pair by pair, as a table learnt from data says
(Sennrich et al. 2016). The work is done by the `tokenizers` library. There is no state that a call changes, so threads
may share a tokenizer.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from ddim.checkpoint import Repository, Savable
from ddim.checkpoint.files import MAX_DESCRIPTION, read_json, write_json, write_text
from ddim.errors import CheckpointError, ConfigError

LENGTH = 77  # of CLIP's position embedding, and so of every text
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# What is never merged with its neighbours: the tokens themselves, English endings, a word, a digit, a run of signs.
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_VERSION = "#version: 0.2"
_SHOWN = 500  # characters of a text's lost end


class CLIPTokenizer(Savable):
    """CLIP's byte pair encoding.

    Args:
        vocab: every token's id.
        merges: the pairs of tokens that become one, the most frequent first; as pairs or as "left right".
        bos_token, eos_token: put before and after a text.
        unk_token: stands for bytes that are not in the vocabulary.
        pad_token: fills a text up; Stable Diffusion 1 takes the end token, 2 takes "!".
        added_tokens: further tokens that are found in a text before it is cut up, and their ids.
        extra_special_tokens: the same without ids: one that the vocabulary lacks gets the next free one.
        model_max_length: tokens of a text with all of these.

    Raises:
        ConfigError: a merge of what is not in the vocabulary, ids that are none, or an unk_token without one.
    """

    config_name: ClassVar[str] = "tokenizer_config.json"

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Iterable[str | Sequence[str]],
        *,
        bos_token: str | AddedToken = START,
        eos_token: str | AddedToken = END,
        unk_token: str | AddedToken = END,
        pad_token: str | AddedToken = END,
        added_tokens: Mapping[int, AddedToken] | None = None,
        extra_special_tokens: Sequence[str | AddedToken] = (),
        model_max_length: int = LENGTH,
    ) -> None:
        if isinstance(model_max_length, bool) or not isinstance(model_max_length, int) or model_max_length < 2:
            raise ConfigError(f"model_max_length must be an int of 2 or more, not {model_max_length!r:.50}")
        self.model_max_length = model_max_length
        named = {"bos_token": bos_token, "eos_token": eos_token, "unk_token": unk_token, "pad_token": pad_token}
        self.special_tokens = {name: str(token) for name, token in named.items()}
        self._tokenizer = _byte_pairs(vocab, merges, str(unk_token))
        _add(self._tokenizer, added_tokens or {}, list(named.values()), extra_special_tokens)
        self.bos_token_id, self.eos_token_id, self.unk_token_id, self.pad_token_id = (
            self._tokenizer.token_to_id(str(token)) for token in named.values()
        )

    # --- texts to tokens and back ------------------------------------------------------------------------------------

    def __call__(self, prompts: str | Sequence[str], max_length: int | None = None, *, warn: bool = True) -> Tensor:
        """Token ids (b, max_length) int64, each text between a start and an end token and padded.

        A text that is too long loses its end; one warning shows all that was lost.

        Args:
            prompts: a text, or a list of b.
            max_length: `model_max_length` unless told.
            warn: False cuts without a word.

        Raises:
            TypeError: what is given is no text.
            ValueError: a text that is no valid Unicode (it has a lone surrogate), or a length under 2.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        length = self.model_max_length if max_length is None else max_length
        if length < 2:
            raise ValueError(f"max_length must be 2 or more, as a text begins and ends with a token; not {length}")
        rows, lost = [], []
        for text in texts:
            encoding = self._encode(text)
            ids = encoding.ids
            if len(ids) > length - 2:
                start = encoding.offsets[length - 2][0]
                lost.append(repr(text[start : start + _SHOWN]) + " …" * (len(text) - start > _SHOWN))
                ids = ids[: length - 2]
            ids = [self.bos_token_id, *ids, self.eos_token_id]
            rows.append(ids + [self.pad_token_id] * (length - len(ids)))
        if lost and warn:
            warnings.warn(
                f"the text encoder reads {length} tokens; this was cut from the end of "
                f"{'the prompt' if len(texts) == 1 else f'{len(lost)} of {len(texts)} prompts'}: {', '.join(lost)}",
                stacklevel=2,
            )
        return torch.tensor(rows, dtype=torch.int64).view(len(rows), length)

    def encode(self, prompt: str) -> list[int]:
        """A text's token ids, however many, with start and end token and without padding."""
        return [self.bos_token_id, *self._encode(prompt).ids, self.eos_token_id]

    def decode(self, ids: Sequence[int] | Tensor, skip_special_tokens: bool = True) -> str:
        """The text of token ids, as far as it can be known: small letters, a blank after every word."""
        listed: list[int] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        text: str = self._tokenizer.decode(listed, skip_special_tokens=skip_special_tokens)
        return text.replace(WORD_END, " ").strip()

    def __len__(self) -> int:
        """How many tokens there are."""
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return size

    def _encode(self, text: str) -> Any:
        if not isinstance(text, str):
            raise TypeError(f"a prompt must be a str, not {type(text).__name__}")
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except TypeError as error:
            raise ValueError(f"the prompt {text!r:.100} is no valid Unicode: it has lone surrogates") from error

    # --- files -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], subfolder: str | None = None, **options: Any
    ) -> Self:
        """Load from a folder with tokenizer.json, or with vocab.json and merges.txt.

        Args:
            pretrained_model_name_or_path: a folder, a bundled model or a hub id.
            subfolder: the folder inside it, usually "tokenizer".
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub; anything else
                overrides what the files say, by the constructor's names.

        Raises:
            CheckpointError: a file is missing, broken, or of another kind of tokenizer.
        """
        repository = Repository.open(pretrained_model_name_or_path, options)
        return cls.load(repository, subfolder, **options)

    @classmethod
    def load(
        cls,
        repository: Repository,
        subfolder: str | None,
        dtype: Any = None,
        variant: str | None = None,
        **overrides: Any,
    ) -> Self:
        """`from_pretrained` for a repository that is open; `dtype` and `variant` are of the networks beside it."""
        path = repository.find("tokenizer.json", subfolder)
        listed: dict[str, Any] = {}
        if path is not None:
            listed = read_json(path)
            vocab, merges = _model(listed, path)
        else:
            path, merges_path = (repository.find(name, subfolder) for name in ("vocab.json", "merges.txt"))
            if path is None or merges_path is None:
                where = "/".join(part for part in (str(repository), subfolder) if part)
                raise CheckpointError(f"{where} has neither tokenizer.json nor vocab.json and merges.txt")
            vocab, merges = read_json(path), _read_merges(merges_path)
        try:
            settings = _settings(repository, subfolder, listed)
            return cls(vocab, merges, **{**settings, **overrides})
        except CheckpointError:
            raise
        except (ConfigError, TypeError, ValueError, AttributeError, KeyError) as error:
            why = f"there is no {error}" if isinstance(error, KeyError) else error
            raise CheckpointError(f"{path} and the files beside it make no CLIP tokenizer: {why}") from error

    def write(self, folder: Path, variant: str | None = None) -> None:
        """Write vocab.json, merges.txt and tokenizer_config.json, which transformers reads too."""
        model = json.loads(self._tokenizer.to_str())["model"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        write_text(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False) + "\n")
        write_text(folder / "merges.txt", "\n".join([_VERSION, *merges]) + "\n")
        added = self._tokenizer.get_added_tokens_decoder()
        config: dict[str, Any] = {
            "added_tokens_decoder": {str(index): _as_dict(token) for index, token in sorted(added.items())},
            "model_max_length": self.model_max_length,
            "tokenizer_class": "CLIPTokenizer",
        }
        write_json(folder / self.config_name, {**config, **self.special_tokens})


# --- making one ------------------------------------------------------------------------------------------------------


def byte_alphabet() -> list[str]:
    """The letters that stand for the 256 bytes, in a fixed order."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def cut_texts(tokenizer: Tokenizer) -> None:
    """Let a tokenizer normalise texts and cut them into words as CLIP does."""
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _byte_pairs(vocab: Mapping[str, int], merges: Iterable[str | Sequence[str]], unk_token: str) -> Tokenizer:
    """CLIP's normalizer, cutter and byte pair encoding, without the added tokens."""
    for token, index in vocab.items():
        if type(token) is not str or type(index) is not int or not 0 <= index < 2**31:
            raise ConfigError(f"the vocabulary gives {token!r:.50} the id {index!r:.50}")
    if unk_token not in vocab:
        raise ConfigError(f"the unk_token {unk_token!r:.50} is not in the vocabulary")
    pairs: list[Any] = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in merges]
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(part, str) and part and " " not in part for part in pair):
            raise ConfigError(f"a merge is two tokens, not {pair!r:.100}")
        if not {*pair, "".join(pair)} <= vocab.keys():
            raise ConfigError(f"the merge {pair!r:.100} is of, or makes, a token that is not in the vocabulary")
    tokenizer = Tokenizer(models.BPE(vocab=dict(vocab), merges=pairs, unk_token=unk_token, end_of_word_suffix=WORD_END))
    cut_texts(tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _add(
    tokenizer: Tokenizer,
    added: Mapping[int, AddedToken],
    named: Sequence[str | AddedToken],
    extra: Sequence[str | AddedToken],
) -> None:
    """Add the tokens that are found in a text before it is cut up.

    Which of them match capital letters, and what is so found in a text that holds them, depends on the order and on
    what counts as there already; both are as in transformers.
    """
    listed: list[str | AddedToken] = [added[index] for index in sorted(added)]
    known = {str(token) for token in listed}
    for token in (*named, *extra):
        if str(token) not in known and token not in listed:
            listed.append(token)
    names = {str(token) for token in named}
    tokens = []
    for token in listed:
        tokens.append(AddedToken(token, special=True) if isinstance(token, str) else token)
        if str(token) in names:
            tokens[-1].special = True
    tokenizer.add_tokens(tokens)
    for index, token in added.items():
        if tokenizer.token_to_id(str(token)) != index:
            found = tokenizer.token_to_id(str(token))
            raise ConfigError(f"the added token {str(token)!r:.50} is said to have the id {index}, but gets {found}")


# --- reading files ---------------------------------------------------------------------------------------------------


def _model(listed: Mapping[str, Any], path: Path) -> tuple[dict[str, int], list[Any]]:
    """Vocabulary and merges of a tokenizer.json."""
    model = listed.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise CheckpointError(f"{path} is no byte pair encoding, but {kind!r:.50}: it is not CLIP's")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise CheckpointError(f"{path} lacks the vocabulary or the merges of its model")
    if not all(isinstance(pair, (str, list)) for pair in merges):
        raise CheckpointError(f"{path} has merges that are no pairs of tokens")
    return vocab, merges


def _read_merges(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_DESCRIPTION + 1)
        if len(raw) > MAX_DESCRIPTION:
            raise CheckpointError(f"{path} is larger than {MAX_DESCRIPTION >> 20} MiB: no list of merges is")
        lines = raw.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error.reason}") from error
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    lines = [line.removesuffix("\r") for line in lines]
    pairs = [line for line in lines if line and not line.startswith("#version")]
    for pair in pairs:
        if len(pair.split(" ")) != 2:
            raise CheckpointError(f"{path} has a line that is no pair of tokens: {pair!r:.100}")
    return pairs


def _settings(repository: Repository, subfolder: str | None, listed: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's keywords, from tokenizer_config.json and, where that does not list the added tokens, from the
    older special_tokens_map.json and added_tokens.json and from tokenizer.json."""

    def read(name: str) -> dict[str, Any]:
        path = repository.find(name, subfolder)
        return {} if path is None else read_json(path)

    values = read(CLIPTokenizer.config_name)
    for side in ("padding_side", "truncation_side"):
        if values.get(side, "right") != "right":
            raise ConfigError(f"{side}={values[side]!r:.50} in tokenizer_config.json is not implemented, only 'right'")
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in values:
        added = {int(index): _as_token(token) for index, token in values["added_tokens_decoder"].items()}
    else:
        special = read("special_tokens_map.json")
        values |= {k: _as_token(v, special=True) if isinstance(v, dict) else v for k, v in special.items()}
        names = {str(_as_token(values[name])) for name in NAMED if values.get(name)}
        for text, index in read("added_tokens.json").items():
            added[index] = AddedToken(text, normalized=text not in names, special=text in names)
        for token in listed.get("added_tokens", ()):
            added[token["id"]] = _as_token(token)
    by_text = {str(token): token for token in added.values()}
    settings: dict[str, Any] = {"added_tokens": added}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if values.get(name) is not None:
            token = values[name]
            token = _as_token(token) if isinstance(token, dict) else token
            settings[name] = by_text.get(str(token), token)
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or ()
    if not isinstance(extra, dict):
        settings["extra_special_tokens"] = [_as_token(one) if isinstance(one, dict) else one for one in extra]
    length = values.get("model_max_length", values.get("max_len"))
    if isinstance(length, int) and length < 10**6:  # what stands for "not known" is 10^30
        settings["model_max_length"] = length
    return settings


_TRAITS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _as_token(value: Any, **traits: bool) -> AddedToken:
    if isinstance(value, AddedToken):
        return value
    if isinstance(value, str):
        return AddedToken(value)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ConfigError(f"a token is a str, or a dict with its content, not {value!r:.100}")
    given = {trait: bool(value[trait]) for trait in _TRAITS if trait in value}
    return AddedToken(value["content"], **{**given, **traits})


def _as_dict(token: AddedToken) -> dict[str, Any]:
    return {"content": token.content, **{trait: getattr(token, trait) for trait in _TRAITS}}
