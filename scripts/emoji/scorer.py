"""What scores pictures of emoji: a small network for pictures and captions, and the captions it has to choose among.

`train_scorer.py` trains it on real pictures; `judge.py` shows it generated ones.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from train import DATA, HERE, articled

from ddim.data.preparation import BACKGROUNDS, say_background
from ddim.evaluation.networks import image_tower
from ddim.images.flat import flatten

FOLDER = HERE / "data" / "scorer"
STYLES = ("noto", "fluent", "twemoji")
COLORS = tuple(BACKGROUNDS)
CANDIDATES = 100  # captions to choose among, the right one included
NEAR = 10  # of the wrong ones, how many share the most words with the right one
ALIKE = 45  # of the others, how many say the right style and background

Row = dict[str, Any]


def draw_lot(*parts: object) -> int:
    """64 bits that depend on the parts alone: choices by it are the same on every machine."""
    text = "|".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


# ----------------------------------------------------------------------------------------------------------- pictures


def read_rows() -> list[Row]:
    rows: list[Row] = pq.read_table(DATA).to_pylist()
    return rows


_TONE = re.compile(r" (with|and) ((medium )?(light|dark)|medium) skin tone$")


def is_toned(name: str) -> bool:
    return name.endswith(" skin tone")


def untoned(name: str) -> str:
    """
    >>> untoned("waving hand with medium dark skin tone"), untoned("man with beard and medium skin tone")
    ('waving hand', 'man with beard')
    """
    return _TONE.sub("", name)


def compose(png: bytes | Image.Image, color: str = "white") -> Tensor:
    """A drawing on one of `BACKGROUNDS`: (3 64 64) in [-1, 1]."""
    image = png if isinstance(png, Image.Image) else Image.open(io.BytesIO(png))
    pixels = np.asarray(flatten(image, "RGB", BACKGROUNDS[color]), dtype=np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1) / 127.5 - 1)


# ----------------------------------------------------------------------------------------------------------- captions


class Caption(NamedTuple):
    """What is said of a picture. A background or a style that is None goes unsaid."""

    name: str
    color: str | None = None
    style: str | None = None

    @property
    def text(self) -> str:
        """
        >>> Caption("red heart", "light blue", "noto").text
        'a red heart on a light blue background, noto style'
        """
        said = articled(self.name) if self.style is None else f"{articled(self.name)}, {self.style} style"
        return said if self.color is None else say_background(said, self.color)


_GRAMMAR = re.compile(rf"(.*?)(?: on an? ({'|'.join(COLORS)}) background)?(?:, ({'|'.join(STYLES)}) style)?")


def parse(text: str) -> Caption:
    """The other way round, but for the article, which stays.

    >>> parse("a red heart on a light blue background, noto style")
    Caption(name='a red heart', color='light blue', style='noto')
    """
    match = _GRAMMAR.fullmatch(text)
    assert match is not None
    return Caption(*match.groups())


@dataclass(frozen=True)
class Name:
    """The first name of a concept, perhaps with a tone."""

    text: str
    concept: str
    category: str
    words: frozenset[str]


class Distractors:
    """The wrong captions that a right one is ranked among, drawn by a hash of the right one.

    They are `CANDIDATES` - 1 in the form of the right caption: what it leaves unsaid, they do too. Each names another
    concept, no two the same; where the right name has a skin tone, theirs have one.

    - `NEAR` share the most words with the right name: by the sum of the logarithms of how rare the shared words are,
      over that of all words of both; then those of its category come first. They say the right style and background, so
      that only the object tells them apart.
    - The others are any. `ALIKE` of them say the right style and background too, so that these alone are not enough;
      the rest say any, so that they count.

    Args:
        rows: of the table, both splits.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        names: dict[str, Name] = {}
        for row in rows:
            text = row["captions"][0]
            names.setdefault(text, Name(text, row["concept"], row["category"], frozenset(text.split())))
        self.names = names
        self.pools = [[name for name in names.values() if is_toned(name.text) == toned] for toned in (False, True)]
        holders: dict[str, int] = {}
        for name in names.values():
            for word in name.words:
                holders[word] = holders.get(word, 0) + 1
        self.rarity = {word: math.log(len(names) / count) for word, count in holders.items()}

    def likeness(self, first: Name, second: Name) -> float:
        """From 0 to 1: the share of the words, weighted by rarity, that two names have in common."""
        shared = self.weigh(first.words & second.words)
        return shared / (self.weigh(first.words) + self.weigh(second.words) - shared)

    @functools.cache  # noqa: B019 - it lives as long as the program
    def weigh(self, words: frozenset[str]) -> float:
        return sum(self.rarity[word] for word in sorted(words))  # in an order, so that sums are the same in every run

    def __call__(self, right: Caption) -> list[Caption]:
        """The near ones first."""
        own = self.names.get(right.name) or self.names[untoned(right.name)]
        target = Name(right.name, own.concept, own.category, frozenset(right.name.split()))
        pool = [name for name in self.pools[is_toned(right.name)] if name.concept != target.concept]
        lots = {name.text: draw_lot("distractor", right.text, name.text) for name in pool}

        def nearness(name: Name) -> tuple[float, bool, int]:
            return -self.likeness(target, name), name.category != target.category, lots[name.text]

        near = _of_other_concepts(sorted(pool, key=nearness), NEAR, set())
        order = sorted(pool, key=lambda name: lots[name.text])
        others = _of_other_concepts(order, CANDIDATES - 1 - NEAR, {name.concept for name in near})
        alike = [Caption(name.text, right.color, right.style) for name in near + others[:ALIKE]]
        return alike + [self._recast(name.text, right) for name in others[ALIKE:]]

    @staticmethod
    def _recast(name: str, right: Caption) -> Caption:
        """With any style and background, if the right caption says one."""
        lot = draw_lot("recast", right.text, name)
        color = None if right.color is None else COLORS[lot % len(COLORS)]
        style = None if right.style is None else STYLES[lot // len(COLORS) % len(STYLES)]
        return Caption(name, color, style)


def _of_other_concepts(names: Iterable[Name], count: int, seen: set[str]) -> list[Name]:
    """The first so many, of concepts that differ from each other and from those seen."""
    chosen: list[Name] = []
    for name in names:
        if len(chosen) == count:
            break
        if name.concept not in seen:
            seen = seen | {name.concept}
            chosen.append(name)
    return chosen


# ------------------------------------------------------------------------------------------------------------ network


class Scorer(nn.Module):
    """Pictures (n 3 64 64) in [-1, 1] and captions as unit vectors (n size): the cosine says how well they fit.

    A name is a bag of words and a small network; the vectors of style and background are added to its vector. So an
    object in a style that it was never drawn in is described as well as one that was.

    Args:
        words: all that are known; others are passed over.
        widths: channels at 32, 16, 8 and 4 pixels.
        size: of the vectors.
    """

    def __init__(
        self, words: Sequence[str], widths: tuple[int, int, int, int] = (32, 64, 128, 192), size: int = 192
    ) -> None:
        super().__init__()
        self.numbers = {word: number for number, word in enumerate(words, start=1)}
        self.longest = 16
        self.see = image_tower(widths)
        self.seen = nn.Linear(64 * 16, size)
        self.words = nn.EmbeddingBag(len(words) + 1, size, mode="sum", padding_idx=0)
        self.read = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))
        self.styles = nn.Parameter(torch.randn(len(STYLES), size) * 0.5 / math.sqrt(size))
        self.colors = nn.Parameter(torch.randn(len(COLORS), size) * 0.5 / math.sqrt(size))
        self.scale = nn.Parameter(torch.tensor(math.log(15.0)))

    def images(self, x: Tensor) -> Tensor:
        """(n size), of length one."""
        return F.normalize(self.seen(self.see(x)).float(), dim=1)

    def tokens(self, names: Sequence[str]) -> Tensor:
        """The numbers of the words, filled up with 0: (n longest)."""
        rows = [[self.numbers[word] for word in name.split() if word in self.numbers] for name in names]
        return torch.tensor([(row + [0] * self.longest)[: self.longest] for row in rows])

    def names(self, tokens: Tensor) -> Tensor:
        """(n size), of length one."""
        count = (tokens > 0).sum(1, keepdim=True).clamp(min=1)
        return F.normalize(self.read(self.words(tokens) / count.sqrt()), dim=1)

    def captions(self, texts: Sequence[str]) -> Tensor:
        """(n size), of length one."""
        said = [parse(text) for text in texts]
        vectors = self.names(self.tokens([caption.name for caption in said]))
        for numbers, table in (
            ([COLORS.index(c.color) if c.color else -1 for c in said], self.colors),
            ([STYLES.index(c.style) if c.style else -1 for c in said], self.styles),
        ):
            chosen = torch.tensor(numbers)
            vectors = vectors + table[chosen] * (chosen >= 0)[:, None]
        return F.normalize(vectors, dim=1)


@functools.cache
def load_scorer(folder: Path = FOLDER) -> Scorer:
    """The trained one, in float32.

    Raises:
        SystemExit: it was not trained yet.
    """
    if not (folder / "scorer.json").exists():
        raise SystemExit(f"{folder} has no scorer: run scripts/emoji/train_scorer.py")
    scorer = Scorer(json.loads((folder / "scorer.json").read_text(encoding="utf-8"))["words"])
    state = {name: tensor.float() for name, tensor in load_file(folder / "scorer.safetensors").items()}
    scorer.load_state_dict(state, strict=False)  # the counts of batches in BatchNorm are not stored
    return scorer.eval().requires_grad_(False)


@torch.no_grad()
def features(scorer: Scorer, images: Tensor, batch: int = 250) -> Tensor:
    return torch.cat([scorer.images(part) for part in images.split(batch)])


@torch.no_grad()
def ranks(scorer: Scorer, seen: Tensor, candidates: Sequence[Sequence[str]]) -> Tensor:
    """For each picture (by its features) how many captions fit it better than the first, or as well: (n,)."""
    texts = list(dict.fromkeys(text for each in candidates for text in each))
    place = {text: number for number, text in enumerate(texts)}
    vectors = torch.cat([scorer.captions(texts[i : i + 4096]) for i in range(0, len(texts), 4096)])
    found = []
    for vector, each in zip(seen, candidates, strict=True):
        fit = vectors[[place[text] for text in each]] @ vector
        found.append((fit[1:] >= fit[0]).sum())
    return torch.stack(found)


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    >>> [round(float(end), 3) for end in interval(90, 100)]
    [0.826, 0.945]
    """
    share, z = hits / count, 1.959964
    middle, spread = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, (middle - spread) / (1 + z * z / count)), min(1.0, (middle + spread) / (1 + z * z / count))


def accuracy(found: Tensor) -> dict[str, Any]:
    """What `ranks` found, in figures: how often the right caption comes first, and how often among the first five."""
    first = int((found == 0).sum())
    low, high = interval(first, len(found))
    return {
        "count": len(found),
        "top1": round(first / len(found), 4),
        "top1_95": [round(low, 4), round(high, 4)],
        "top5": round(int((found < 5).sum()) / len(found), 4),
    }


@torch.no_grad()
def styles_of(scorer: Scorer, seen: Tensor, captions: Sequence[Caption]) -> list[str]:
    """For each picture (by its features) the style, of the three, that makes its caption fit best."""
    texts = [caption._replace(style=style).text for caption in captions for style in STYLES]
    fit = (scorer.captions(texts).unflatten(0, (-1, len(STYLES))) @ seen[:, :, None])[..., 0]
    return [STYLES[number] for number in fit.argmax(1).tolist()]
