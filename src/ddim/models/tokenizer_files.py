"""The files of CLIP's tokenizer: what their vocabulary, merges and settings say, and how a token is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from ddim.checkpoint import Repository
from ddim.checkpoint.files import read_description, read_json
from ddim.errors import CheckpointError, ConfigError

CONFIG = "tokenizer_config.json"
VERSION = "#version: 0.2"  # the first line of a merges.txt
# The special tokens that a configuration file may name.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TRAITS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_model(listed: Mapping[str, Any], path: Path) -> tuple[dict[str, int], list[Any]]:
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


def read_merges(path: Path) -> list[str]:
    """The pairs in a merges.txt, each "left right"."""
    raw = read_description(path, "which no list of merges is: give CLIP's merges.txt")
    try:
        lines = raw.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error.reason}") from error
    lines = [line.removesuffix("\r") for line in lines]
    pairs = [line for line in lines if line and not line.startswith("#version")]
    for pair in pairs:
        if len(pair.split(" ")) != 2:
            raise CheckpointError(f"{path} has a line that is no pair of tokens: {pair!r:.100}")
    return pairs


def read_settings(repository: Repository, subfolder: str | None, listed: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's keyword arguments, as the files say them.

    They are in tokenizer_config.json. Where that does not list the added tokens, they are in the older files
    special_tokens_map.json and added_tokens.json, and in tokenizer.json.
    """

    def read(name: str) -> dict[str, Any]:
        path = repository.find(name, subfolder)
        return {} if path is None else read_json(path)

    values = read(CONFIG)
    for side in ("padding_side", "truncation_side"):
        if values.get(side, "right") != "right":
            raise ConfigError(f"{side}={values[side]!r:.50} in tokenizer_config.json is not implemented, only 'right'")
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in values:
        added = {int(index): as_token(token) for index, token in values["added_tokens_decoder"].items()}
    else:
        special = read("special_tokens_map.json")
        values |= {k: as_token(v, special=True) if isinstance(v, dict) else v for k, v in special.items()}
        names = {str(as_token(values[name])) for name in NAMED if values.get(name)}
        for text, index in read("added_tokens.json").items():
            added[index] = AddedToken(text, normalized=text not in names, special=text in names)
        for token in listed.get("added_tokens", ()):
            added[token["id"]] = as_token(token)
    by_text = {str(token): token for token in added.values()}
    settings: dict[str, Any] = {"added_tokens": added}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if values.get(name) is not None:
            token = values[name]
            token = as_token(token) if isinstance(token, dict) else token
            settings[name] = by_text.get(str(token), token)
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or ()
    if not isinstance(extra, dict):
        settings["extra_special_tokens"] = [as_token(one) if isinstance(one, dict) else one for one in extra]
    length = values.get("model_max_length", values.get("max_len"))
    if isinstance(length, int) and length < 10**6:  # transformers writes 10^30 for a length that is not known
        settings["model_max_length"] = length
    return settings


def as_token(value: Any, **traits: bool) -> AddedToken:
    """A token as a configuration file says it: a str, or a dict with its content and its traits."""
    if isinstance(value, AddedToken):
        return value
    if isinstance(value, str):
        return AddedToken(value)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ConfigError(f"a token is a str, or a dict with its content, not {value!r:.100}")
    given = {trait: bool(value[trait]) for trait in _TRAITS if trait in value}
    return AddedToken(value["content"], **{**given, **traits})


def as_dict(token: AddedToken) -> dict[str, Any]:
    """The dict that stands for a token in a configuration file."""
    return {"content": token.content, **{trait: getattr(token, trait) for trait in _TRAITS}}
