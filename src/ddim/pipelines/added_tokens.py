"""Words that were added to a tokenizer: each is one token, or several that follow one another.

A word of n vectors is the tokens `<cat>`, `<cat>_1`, … `<cat>_(n-1)`, as in diffusers. A tokenizer is ours, or one of
transformers.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST = 200  # letters of a token


def added_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens that were added to a tokenizer and are not special, with their ids."""
    return {
        token.content: index
        for index, token in sorted(getattr(tokenizer, "added_tokens_decoder", {}).items())
        if not token.special
    }


def words_of(tokenizer: Any) -> dict[str, int]:
    """The words that were added, and how many vectors each has."""
    added = added_tokens(tokenizer)
    every = {token: len(with_its_vectors(token, added)) for token in added}
    parts = {f"{token}_{number}" for token, count in every.items() for number in range(1, count)}
    return {token: count for token, count in every.items() if token not in parts}


def with_all_vectors(text: str, tokenizer: Any, limit: int | None = None) -> str:
    """A text in which each word of several vectors is followed by the tokens of all of them, unless it is already.

    Args:
        limit: how many tokens of the text somebody will look at; None for all.
    """
    several = {word: count for word, count in words_of(tokenizer).items() if count > 1}
    if not several:
        return text
    cut: dict[str, Any] = {} if limit is None else {"truncation": True, "max_length": limit}
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **cut)
    tokens = tokenizer.convert_ids_to_tokens(found["input_ids"])
    made, end = [], 0
    for place, (token, (_, behind)) in enumerate(zip(tokens, found["offset_mapping"], strict=True)):
        rest = [f"{token}_{number}" for number in range(1, several.get(token, 1))]
        if rest and tokens[place + 1 : place + 1 + len(rest)] != rest:
            made += [text[end:behind], *(f" {each}" for each in rest)]
            end = behind
    return "".join([*made, text[end:]])


def with_its_vectors(token: str, added: Mapping[str, int]) -> list[str]:
    """A token and those of its further vectors."""
    tokens, number = [token], 1
    while f"{token}_{number}" in added:
        tokens.append(f"{token}_{number}")
        number += 1
    return tokens


def _plain(token: str) -> str:
    """A token as it is looked for in a text, of which the letters are made small."""
    return unicodedata.normalize("NFC", token).lower()


def checked(token: Any) -> str:
    """The token, if it can be one.

    Raises:
        ValueError: it is no text, is empty or too long, begins or ends with a blank, or has letters that none can see.
    """
    is_text = isinstance(token, str) and token.isprintable() and token.strip() == token
    if not is_text or not 0 < len(token) <= LONGEST or "  " in token:
        raise ValueError(
            f"a token is a word of 1 to {LONGEST} letters that can be seen, such as '<cat-toy>', not {token!r:.100}: "
            "give token="
        )
    return str(token)


def check_free(tokens: Sequence[str], tokenizer: Any, new: Sequence[str]) -> None:
    """Raise a ValueError if new tokens are in the vocabulary, or too like others that were added or come with them.

    Letters are made small before a text is read, so that "Cat" and "cat" would be one token.
    """
    vocabulary, added = tokenizer.get_vocab(), [*added_tokens(tokenizer), *new]
    taken = {_plain(token): token for token in added}
    for token in tokens:
        if _plain(token) in taken:
            raise ValueError(
                f"there is a token {taken[_plain(token)]!r} already: give another token=, or take that one away by "
                "unload_textual_inversion"
            )
        if token in vocabulary:
            raise ValueError(
                f"the token {token!r} is a piece of the tokenizer's own vocabulary: give another token=, such as "
                f"'<{tokens[0]}>'"
            )
    base, _, number = tokens[0].rpartition("_")
    follows = number.isascii() and number.isdigit() and (_plain(base) in taken)
    if follows or (len(tokens) == 1 and _plain(f"{tokens[0]}_1") in taken):
        other = base if follows else tokens[0]
        raise ValueError(
            f"the token {tokens[0]!r} would be taken for a further vector of {other!r}, or that for one of its: give "
            "another token="
        )
