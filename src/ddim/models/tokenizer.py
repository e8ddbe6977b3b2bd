"""CLIP's tokenizer: from texts to the token ids that Stable Diffusion's text encoder was trained on.

A text is normalised: Unicode is composed (NFC), white space becomes single blanks, and letters become small. Then it is
cut into words, single digits and runs of signs. Last, the UTF-8 bytes of each piece are merged, pair by pair, in the
order of a table that was learnt from data (byte pair encoding, Sennrich et al. 2016). The `tokenizers` library does the
work. A call changes no state, so threads may share a tokenizer.
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

from ddim.checkpoint import Repository, Savable, Saving
from ddim.checkpoint.files import MAX_DESCRIPTION, read_json, write_json, write_text
from ddim.errors import CheckpointError, ConfigError

LENGTH = 77  # tokens of a text: CLIP has a vector for each of 77 positions
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"  # what a token ends in that ends a word
# The special tokens that a configuration file may name.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# The pieces that a text is cut into: a start or end token, an English ending, a word, a digit, or a run of signs. What
# lies in different pieces is never merged into one token.
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_VERSION = "#version: 0.2"  # the first line of a merges.txt
_SHOWN = 500  # how many characters a warning shows of what was cut from a text


class CLIPTokenizer(Savable):
    """CLIP's byte pair encoding.

    Args:
        vocab: the id of every token.
        merges: the pairs of tokens that become one token, the most frequent first; each a pair or "left right".
        bos_token, eos_token: the tokens that are put before and after a text.
        unk_token: stands for bytes that are not in the vocabulary.
        pad_token: fills a text up to `model_max_length`. Stable Diffusion 1 uses the end token for it, 2 uses "!".
        added_tokens: further tokens by their ids, which are found in a text before it is cut into pieces.
        extra_special_tokens: further tokens without ids: one that the vocabulary lacks gets the next free id.
        model_max_length: how many tokens a text has with its start, end and padding tokens, 2 or more.

    Raises:
        ConfigError: an id is no id, a merge is of tokens that the vocabulary lacks, the unk_token is not in the
            vocabulary, or `model_max_length` is below 2.
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
        """The token ids of texts, each between a start and an end token and filled up with padding.

        A text that is too long loses its end, and one warning shows everything that was cut.

        Args:
            prompts: a text, or a list of b texts.
            max_length: tokens of each text, 2 or more; `model_max_length` unless told.
            warn: False cuts long texts without a warning.

        Returns:
            (b, max_length) int64.

        Raises:
            TypeError: a prompt is no str.
            ValueError: a text is no valid Unicode (it has lone surrogates), or `max_length` is below 2.
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
        """The token ids of a text of any length, with start and end token and without padding.

        Raises:
            TypeError, ValueError: as in a call.
        """
        return [self.bos_token_id, *self._encode(prompt).ids, self.eos_token_id]

    def decode(self, ids: Sequence[int] | Tensor, skip_special_tokens: bool = True) -> str:
        """The text of token ids, as it was normalised: in small letters, with a blank between pieces.

        Args:
            ids: a list, or a tensor (s,).
            skip_special_tokens: leave out start, end and padding tokens.
        """
        listed: list[int] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        text: str = self._tokenizer.decode(listed, skip_special_tokens=skip_special_tokens)
        return text.replace(WORD_END, " ").strip()

    def __len__(self) -> int:
        """How many tokens there are."""
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return size

    def _encode(self, text: str) -> Any:
        """What the library makes of a text: `ids` without start and end token, and where each is in the text."""
        if not isinstance(text, str):
            raise TypeError(f"a prompt must be a str, not {type(text).__name__}")
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except TypeError as error:
            raise ValueError(
                f"the prompt {text!r:.100} is no valid Unicode: it has lone surrogates, which must be removed"
            ) from error

    # --- files -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], subfolder: str | None = None, **options: Any
    ) -> Self:
        """Load from a folder with tokenizer.json, or with vocab.json and merges.txt.

        Args:
            pretrained_model_name_or_path: a folder, a bundled model or a hub id.
            subfolder: the folder inside it, usually "tokenizer".
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub. Any other is an
                argument of the constructor and overrides what the files say.

        Raises:
            CheckpointError: a file is missing, is broken or belongs to another kind of tokenizer.
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
        """`from_pretrained` for a repository that is already open.

        `dtype` and `variant` have no effect: they are there because a pipeline loads all its components with them.
        """
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
            why = f"they have no {error}" if isinstance(error, KeyError) else error
            raise CheckpointError(f"{path} and the files beside it make no CLIP tokenizer: {why}") from error

    def write(self, folder: Path, saving: Saving | None = None) -> None:
        """Write vocab.json, merges.txt and tokenizer_config.json, which transformers reads too.

        `saving` has no effect, as it is for files of weights.
        """
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
    """The 256 letters that stand for the 256 bytes, in a fixed order."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def cut_texts(tokenizer: Tokenizer) -> None:
    """Make a tokenizer normalise texts and cut them into pieces as CLIP's does."""
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
    """A tokenizer that normalises, cuts and merges as CLIP's does, without the added tokens."""
    for token, index in vocab.items():
        if type(token) is not str or type(index) is not int or not 0 <= index < 2**31:
            raise ConfigError(
                f"the vocabulary gives {token!r:.50} the id {index!r:.50}: a token must be a str, and an id an int "
                "from 0 to 2^31 - 1"
            )
    if unk_token not in vocab:
        raise ConfigError(f"the unk_token {unk_token!r:.50} is not in the vocabulary")
    pairs: list[Any] = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in merges]
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(part, str) and part and " " not in part for part in pair):
            raise ConfigError(f"a merge is two tokens, not {pair!r:.100}")
        if not {*pair, "".join(pair)} <= vocab.keys():
            raise ConfigError(f"the merge {pair!r:.100} is of tokens, or makes a token, that the vocabulary lacks")
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
    """Add the tokens that are found in a text before it is cut into pieces.

    Whether such a token is also found in capital letters depends on the order in which tokens are added and on which of
    them are taken for known; both are as in transformers, so that a text gives the same ids.
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
    """The vocabulary and the merges in a tokenizer.json."""
    model = listed.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise CheckpointError(
            f"{path} is not CLIP's tokenizer: its model is {kind!r:.50}, and CLIP's is a byte pair encoding, 'BPE'"
        )
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise CheckpointError(f"{path} lacks the vocabulary or the merges of its model")
    if not all(isinstance(pair, (str, list)) for pair in merges):
        raise CheckpointError(f"{path} has merges that are no pairs of tokens")
    return vocab, merges


def _read_merges(path: Path) -> list[str]:
    """The pairs in a merges.txt, each "left right"."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_DESCRIPTION + 1)
        if len(raw) > MAX_DESCRIPTION:
            raise CheckpointError(
                f"{path} is larger than {MAX_DESCRIPTION >> 20} MiB, which no list of merges is: give CLIP's merges.txt"
            )
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
    """The constructor's keyword arguments, as the files say them.

    They are in tokenizer_config.json. Where that does not list the added tokens, they are in the older files
    special_tokens_map.json and added_tokens.json, and in tokenizer.json.
    """

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
    if isinstance(length, int) and length < 10**6:  # transformers writes 10^30 for a length that is not known
        settings["model_max_length"] = length
    return settings


_TRAITS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _as_token(value: Any, **traits: bool) -> AddedToken:
    """A token as a configuration file says it: a str, or a dict with its content and its traits."""
    if isinstance(value, AddedToken):
        return value
    if isinstance(value, str):
        return AddedToken(value)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ConfigError(f"a token is a str, or a dict with its content, not {value!r:.100}")
    given = {trait: bool(value[trait]) for trait in _TRAITS if trait in value}
    return AddedToken(value["content"], **{**given, **traits})


def _as_dict(token: AddedToken) -> dict[str, Any]:
    """The dict that stands for a token in a configuration file."""
    return {"content": token.content, **{trait: getattr(token, trait) for trait in _TRAITS}}
