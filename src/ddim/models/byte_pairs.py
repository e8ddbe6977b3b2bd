"""Byte pair encoding as CLIP's tokenizer does it, made of a vocabulary and a list of merges.

`ddim.models.tokenizer` says what is done to a text; the `tokenizers` library does it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ddim.errors import ConfigError

MAX_ADDED = 10_000  # tokens that are found in a text before it is cut into pieces

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"  # what a token ends in that ends a word

# The pieces that a text is cut into: a start or end token, an English ending, a word, a digit, or a run of signs. What
# lies in different pieces is never merged into one token.
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

_CUTS = re.compile(r"[\s0-9]")


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


def cut_at(text: str, start: int, end: int) -> int | None:
    """The first place from `start` to `end` at which a text can be cut without a change of the tokens before it.

    No token but an added one goes on over white space, a digit is a token of its own, and neither is ever composed with
    the letter before it.
    """
    found = _CUTS.search(text, start, end)
    return None if found is None else found.start()


def byte_pairs(vocab: Mapping[str, int], merges: Iterable[str | Sequence[str]], unk_token: str) -> Tokenizer:
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


def add_tokens(
    tokenizer: Tokenizer,
    added: Mapping[int, AddedToken],
    named: Sequence[str | AddedToken],
    extra: Sequence[str | AddedToken],
) -> None:
    """Add the tokens that are found in a text before it is cut into pieces, at most `MAX_ADDED`.

    Whether such a token is also found in capital letters depends on the order in which tokens are added and on which of
    them are taken for known; both are as in transformers, so that a text gives the same ids.
    """
    if len(added) + len(extra) > MAX_ADDED:
        raise ConfigError(
            f"{len(added) + len(extra)} tokens are to be added to the vocabulary, over {MAX_ADDED}: reading any text "
            "would take minutes"
        )
    listed: dict[Any, str | AddedToken] = {index: added[index] for index in sorted(added)}
    known = {str(token) for token in listed.values()}
    for token in (*named, *extra):
        if str(token) not in known:
            listed.setdefault((str(token), isinstance(token, str)), token)
    names = {str(token) for token in named}
    tokens = []
    for token in listed.values():
        tokens.append(AddedToken(token, special=True) if isinstance(token, str) else token)
        if str(token) in names:
            tokens[-1].special = True
    tokenizer.add_tokens(tokens)
    for index, token in added.items():
        if tokenizer.token_to_id(str(token)) != index:
            found = tokenizer.token_to_id(str(token))
            raise ConfigError(f"the added token {str(token)!r:.50} is said to have the id {index}, but gets {found}")
