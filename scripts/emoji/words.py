"""The words that the emoji model has seen, and what it knows that is near to others, into its words.json.

    python scripts/emoji/words.py           # a few seconds; train.py's `ship` does the same

The words are those of the captions that train.py trains on. What is near to any other word is by Unicode CLDR's
keywords of the drawings: a drawing that has the word as a keyword, or else one that has much the same keywords.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow.parquet as pq
from train import DATA, WEIGHTS, captions, is_kept

from ddim.pipelines.words import WordList, split
from ddim.training.vocabulary import words_of

NEAR = 3  # how many names are kept for a word
LEAST = 0.1  # how alike the keywords must be, as the cosine of their angle
PEOPLE = {"man", "person", "people", "woman"}  # drawings of them stand for much that they do or hold: they come last
Weights = dict[str, float]


@dataclass
class Concept:
    """What is known of the drawings of one emoji."""

    name: str
    keywords: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)  # the words of all its captions

    @property
    def is_person(self) -> bool:
        return bool(self.keywords & PEOPLE)


def word_list() -> WordList:
    columns = ["captions", "keywords", "style", "concept", "split", "icon"]
    rows = [row for row in pq.read_table(DATA, columns=columns).to_pylist() if row["split"] == "train"]
    kept = [row for row in rows if is_kept(row["icon"], row["concept"], row["captions"])]
    seen = words_of([captions(row["captions"], row["style"]) for row in kept], with_backgrounds=True)
    assert seen is not None
    concepts: dict[str, Concept] = {}
    for row in kept:
        concept = concepts.setdefault(row["concept"], Concept(row["captions"][0]))
        concept.keywords.update(word for keyword in row["keywords"] for word in split(keyword))
        concept.named.update(word for name in row["captions"] for word in split(name))
    known = [concept for concept in concepts.values() if "skin tone" not in concept.name]
    others = {word for concept in known for word in concept.keywords if word not in seen.words}
    return WordList(seen.words, near(sorted(word for word in others if not re.search(r"\d", word)), known))


def near(words: Iterable[str], concepts: list[Concept]) -> dict[str, tuple[str, ...]]:
    """For each word, the names of up to three concepts, the nearest first."""
    count = Counter(word for concept in concepts for word in concept.keywords | concept.named)
    vectors = [
        _unit(
            {
                word: math.log(len(concepts) / count[word]) * (2 if word in concept.named else 1)
                for word in concept.keywords | concept.named
            }
        )
        for concept in concepts
    ]
    return {word: names for word in words if (names := _near(word, concepts, vectors))}


def _near(word: str, concepts: list[Concept], vectors: list[Weights]) -> tuple[str, ...]:
    forms = {word, f"{word}s", f"{word}es"}
    having = [i for i, concept in enumerate(concepts) if forms & (concept.keywords | concept.named)]
    total: Counter[str] = Counter()
    for i in having:
        total.update(vectors[i])
    middle = _unit(total)
    # Alike are those that share what the drawings are about, and not a word of their names: of crossed swords, not
    # crossed flags but other weapons.
    named = {each for i in having for each in concepts[i].named}
    about = _unit({each: weight for each, weight in middle.items() if each not in named})
    first = sorted(having, key=lambda i: (concepts[i].is_person, -_cosine(vectors[i], middle), concepts[i].name))
    likeness = {i: _cosine(vectors[i], about) for i in range(len(concepts)) if not concepts[i].is_person}
    alike = [i for i in likeness if likeness[i] >= LEAST and i not in having]
    alike.sort(key=lambda i: (-likeness[i], concepts[i].name))
    things = [i for i in first if not concepts[i].is_person]
    order = [*things, *alike, *(i for i in first if concepts[i].is_person)]
    return tuple(dict.fromkeys(concepts[i].name for i in order))[:NEAR]


def _unit(weights: Weights) -> Weights:
    norm = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
    return {word: weight / norm for word, weight in weights.items()}


def _cosine(one: Weights, other: Weights) -> float:
    """Rounded, as a sum depends on its order, and a set has none."""
    return round(sum(weight * other[word] for word, weight in one.items() if word in other), 9)


if __name__ == "__main__":
    word_list().write(WEIGHTS)
    print(WEIGHTS / "words.json")
