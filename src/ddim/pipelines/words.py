"""The words that a model has seen in training, by which it can be said of a text what the model cannot know of it.

A model's folder may have them in `words.json`: {"words": [...], "near": {"coffee": ["hot beverage"]}}. Training writes
it. Of a model without this file nothing is said, as what it has seen is not known.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddim.checkpoint.files import read_json, write_text
from ddim.checkpoint.hub import Repository
from ddim.errors import CheckpointError

FILE = "words.json"
MOST = 50_000  # words; who has seen more knows almost every word, and the list would help nobody
_READ = 4000  # how many letters of a text are looked at; a text encoder reads some 400
_NEAR = 50  # for how many unknown words of a text near ones are looked for
# Words that say how others belong together. A model knows no picture of them, whether it has seen them or not.
_PASSED_OVER = frozenset(
    "a an the this that these those some any each every no not and or but of on in at by to for from with without into "
    "onto over under between behind beside near above below up down out off as like is are was be being been has have "
    "having it its his her their my your our very more most less few many much".split()
)
_PLURALS = {
    "children": "child", "feet": "foot", "geese": "goose", "men": "man", "mice": "mouse", "people": "person",
    "teeth": "tooth", "women": "woman",
}  # fmt: skip


@dataclass(frozen=True)
class WordList:
    """The words that a model has seen, and what it has seen that is near to others.

    Attributes:
        words: in small letters and without accents.
        near: for words that are not among them, names that the model knows, the nearest first.
    """

    words: frozenset[str]
    near: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, texts: Iterable[str]) -> WordList | None:
        """The words of texts; None if there are more than 50,000.

        Args:
            texts: such as the captions that a model is trained on.
        """
        words: set[str] = set()
        for text in texts:
            words.update(split(text))
            if len(words) > MOST:
                return None
        return cls(frozenset(words))

    def unknown(self, text: str) -> dict[str, tuple[str, ...]]:
        """The words of a text that the model has never seen, in their order, and for each what it knows that is near.

        A plural is known if its singular is, but not the other way round. Words such as "the" and "on" are passed over,
        and so are numbers. Near to a word is what the list says of it or, failing that, a known word that is spelt much
        the same; for many words there is nothing.

        Args:
            text: of which the first 4,000 letters are looked at.

        >>> WordList(frozenset({"heart", "hot", "beverage"}), {"coffee": ["hot beverage"]}).unknown("Coffee on a haert")
        {'coffee': ('hot beverage',), 'haert': ('heart',)}
        """
        if len(text) > _READ:
            text = text[:_READ].rpartition(" ")[0]  # without the last word, of which a part may be cut off
        words = [word for word in dict.fromkeys(split(text)) if not self._knows(word)]
        return {word: self._near(word) if number < _NEAR else () for number, word in enumerate(words)}

    def joined(self, other: WordList) -> WordList:
        """What a model knows that has seen both, as one that is trained further, or used with an adapter."""
        words = self.words | other.words
        near = {word: names for word, names in {**other.near, **self.near}.items() if word not in words}
        return WordList(words, near)

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write `words.json` into a model's folder, atomically."""
        import json

        near = {word: list(names) for word, names in sorted(self.near.items())}
        write_text(Path(folder) / FILE, json.dumps({"near": near, "words": sorted(self.words)}, indent=0) + "\n")

    def _knows(self, word: str) -> bool:
        if word in _PASSED_OVER or any(letter.isdigit() for letter in word):
            return True
        return any(form in self.words for form in (word, *_singulars(word)))

    def _near(self, word: str) -> tuple[str, ...]:
        for form in (word, *_singulars(word)):
            if form in self.near:
                return tuple(self.near[form])
        return tuple(difflib.get_close_matches(word, self.words, n=1, cutoff=0.8)) if len(word) > 3 else ()


def split(text: str) -> list[str]:
    """The words of a text, in small letters, without accents and possessive endings.

    >>> split("The cat's PIÑATA, blue-green 1st")
    ['the', 'cat', 'pinata', 'blue', 'green', '1st']
    """
    plain = unicodedata.normalize("NFKD", text.replace("’", "'").lower())
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return [word.removesuffix("'s") for word in re.findall(r"[^\W_]+(?:'[^\W_]+)*", plain)]


def _singulars(word: str) -> list[str]:
    """What the word may be the plural of."""
    forms = [_PLURALS[word]] if word in _PLURALS else []
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        forms.append(word[:-1])
        forms += [word[:-2]] if word.endswith("es") else []
        forms += [word[:-3] + "y"] if word.endswith("ies") else []
        forms += [word[:-3] + "f", word[:-3] + "fe"] if word.endswith("ves") else []
    return forms


def read_words(repository: Repository) -> WordList | None:
    """The word list in a model's folder or repository; None if it has none, or the hub does not tell.

    Raises:
        CheckpointError: the file is no such list.
    """
    try:
        path = repository.find(FILE)
    except CheckpointError:
        return None
    return None if path is None else read_word_file(path)


def read_word_file(path: Path) -> WordList:
    """The word list in a file.

    Raises:
        CheckpointError: it is no such list.
    """
    stored: dict[str, Any] = read_json(path)
    words: Any = stored.get("words")
    near: Any = stored.get("near", {})
    if not _are_texts(words) or not isinstance(near, dict) or not all(map(_are_texts, near.values())):
        raise CheckpointError(f'{path} is no list of words, {{"words": […], "near": {{"word": […]}}}}: delete it')
    return WordList(frozenset(words), {word: tuple(names) for word, names in near.items()})


def _are_texts(value: Any) -> bool:
    """Whether it is a list of texts that can be shown in a terminal."""
    return isinstance(value, list) and all(isinstance(each, str) and each.isprintable() for each in value)


class KnowsWords:
    """For pipelines that draw texts: which words of a text the model has never seen."""

    loaded_from: Repository | None
    _words: WordList | None = None
    _words_are_read = False

    @property
    def words(self) -> WordList | None:
        """The words that the model has seen in training; None where nothing says which.

        They are read from the model's `words.json` when they are first asked for, saved with the pipeline, and can be
        assigned.

        Raises:
            CheckpointError: the file is no such list.
        """
        if not self._words_are_read:
            self.words = None if self.loaded_from is None else read_words(self.loaded_from)
        return self._words

    @words.setter
    def words(self, words: WordList | None) -> None:
        self._words, self._words_are_read = words, True

    def unknown_words(self, prompt: str | Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The words of a text, or of several, that the model has never seen, each with names it knows that are near.

        It is empty if the model knows them all, and also if nothing says what the model has seen.

        Args:
            prompt: a text or a list of them.

        Raises:
            CheckpointError: the model's `words.json` is no list of words.
        """
        words = self.words
        texts = [prompt] if isinstance(prompt, str) else prompt
        found: dict[str, tuple[str, ...]] = {}
        for text in texts if words is not None else ():
            found |= words.unknown(text) if words is not None else {}
        return found
