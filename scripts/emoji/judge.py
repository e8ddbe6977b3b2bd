"""Judge the emoji model: does it draw what was said, also what it never saw together, and are its pictures no copies?

    python scripts/emoji/judge.py --steps 25 --guidance 3 --rescale 0.7 --json FILE --grid FILE
    python scripts/emoji/judge.py --model FOLDER --steps 4 --guidance 1     # any other model, such as a student
    python scripts/emoji/judge.py --model FOLDER --gallery FILE    # 25 prompts, 4 seeds, and no judgement

What is not said of steps, order, spacing and guidance is as the model recommends it, or else as in the first line.

Two sets of captions, all chosen by a fixed hash:

- `training`: "a red heart, noto style", for pictures that the model was trained on, which are on white: that goes
  unsaid.
- `compositions`: "a waving hand with medium light skin tone on a pink background, noto style", all with a background
  that is not white. Known words, together for the first time:
  - `new style`, one half: no training picture shows the object in that style. A third each are flags of regions, of
    which there are drawings by Twemoji alone; other emoji that the style has no drawing of, but for families, which
    hardly differ; and skin tones in Noto and Twemoji, where the table has Fluent's alone.
  - `new concept`, the other half: emoji of the held-out 5 % all of whose words occur in captions of training pictures,
    such as "winking face". All such emoji come about as often.

The scorer of train_scorer.py, which was trained on real pictures alone, ranks the right caption of a picture among 100.
The 99 others are in the same form and name other emoji, so that no other style of the right one counts as wrong. Ten
share the most words with the right one, in the right style and on the right background; 45 of the rest say the right
style and background too, and the other 44 any. So whoever gets only style and background right comes first about once
in sixty times. Ties count as wrong. `scorer.Distractors` is the rule in full.

Besides: the style, as the best fitting of the three with all else as said; the background, as the named colour that
most pixels of the outer two rings are nearest to; the distance to the nearest training picture on the same background,
mirrored or not, as the root of the mean squared difference of pixels in [0, 1] and as the cosine of the scorer's
features; and the share of near copies, whose pixels differ by less than `COPY`.

How much the pictures differ: `spread` is the mean distance of two of the four pictures that four seeds give for one
caption, in the scorer's features (whose vectors have length one) and as a root mean square of pixels; `precision` is
the share of pictures that lie where the real ones of these captions lie, in these features, and `recall` the share of
the real ones that lie where the pictures do.

The same is said of real pictures, as they are and after the autoencoder: what the model could reach at best. There are
no real pictures of the `new style` half. Distances are set beside those of real held-out pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import platform
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gallery import draw_gallery, draw_sheet
from PIL import Image
from scorer import (
    COLORS,
    FOLDER,
    STYLES,
    Caption,
    Distractors,
    Row,
    Scorer,
    accuracy,
    compose,
    draw_lot,
    features,
    is_toned,
    load_scorer,
    ranks,
    read_rows,
    styles_of,
)
from torch import Tensor
from tqdm import tqdm
from train import captions, is_kept

from ddim import DiffusionPipeline, __version__
from ddim.checkpoint import atomic_write
from ddim.data.preparation import BACKGROUNDS
from ddim.evaluation.manifold import precision_recall
from ddim.scheduler.recommended import choose_guidance, choose_steps, recommended_steps

BATCH = 32
COPY = 0.05
NEIGHBOUR = 3  # to which a ball reaches, for precision and recall
SEEDS = 4  # pictures of a caption, whose differences are the spread
PARTS = ("training", "compositions")


class Item(NamedTuple):
    """A caption to draw.

    Attributes:
        kind: the part of the set that it belongs to.
        row: the real drawing of just this, if there is one.
    """

    caption: Caption
    kind: str
    row: Row | None = None


# -------------------------------------------------------------------------------------------------- what is to be drawn


def trained_on(rows: Iterable[Row]) -> list[Row]:
    """The rows whose pictures the model was trained on."""
    return [row for row in rows if row["split"] == "train" and is_kept(row["icon"], row["concept"], row["captions"])]


def held_out(rows: Iterable[Row]) -> list[Row]:
    """Those of the other split that would have been."""
    return [row for row in rows if row["split"] == "held-out" and is_kept(row["icon"], row["concept"], row["captions"])]


def training_items(rows: Sequence[Row], count: int) -> list[Item]:
    items = [Item(Caption(row["captions"][0], None, row["style"]), "training", row) for row in trained_on(rows)]
    return by_lot(items)[:count]


def style_items(rows: Sequence[Row], count: int) -> list[Item]:
    """Names that were trained on, in styles in which they were not."""
    seen: dict[str, set[str]] = defaultdict(set)
    for row in trained_on(rows):
        if not row["captions"][0].startswith("family"):
            seen[row["captions"][0]].add(row["style"])
    kinds: dict[str, list[Item]] = {"flag": [], "other": [], "tone": []}
    for name, styles in seen.items():
        kind = "tone" if is_toned(name) else "flag" if name.startswith("flag of ") else "other"
        kinds[kind] += [
            Item(Caption(name, some_color(name, style), style), f"new style: {kind}")
            for style in STYLES
            if style not in styles
        ]
    flags, others = (by_lot(kinds[kind])[: count // 3] for kind in ("flag", "other"))
    return flags + others + by_lot(kinds["tone"])[: count - len(flags) - len(others)]


def concept_items(rows: Sequence[Row], count: int) -> list[Item]:
    """Held-out pictures whose words are known, the concepts in turn, on any background but white."""
    words = known_words(rows)
    by_concept: dict[str, list[Item]] = defaultdict(list)
    for row in held_out(rows):
        name = row["captions"][0]
        if words.issuperset(name.split()):
            by_concept[row["concept"]] += [
                Item(Caption(name, color, row["style"]), "new concept", row) for color in COLORS if color != "white"
            ]
    queues = [by_lot(items) for _, items in sorted(by_concept.items(), key=lambda pair: draw_lot("concept", pair[0]))]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    return list(itertools.islice((item for item in turns if item is not None), count))


def known_words(rows: Sequence[Row]) -> set[str]:
    """Those in the captions of training pictures."""
    return {
        word
        for row in trained_on(rows)
        for text in captions(row["captions"], row["style"])
        for word in text.partition(",")[0].split()
    }


def some_color(*parts: object) -> str:
    """Any but white, which is the first."""
    return COLORS[1 + draw_lot("color", *parts) % (len(COLORS) - 1)]


def by_lot(items: Iterable[Item]) -> list[Item]:
    return sorted(items, key=lambda item: draw_lot("item", item.caption.text))


def choose(rows: Sequence[Row], count: int) -> dict[str, list[Item]]:
    """The two sets, each of `count` captions, or all there are."""
    compositions = style_items(rows, count // 2) + concept_items(rows, count - count // 2)
    return {"training": training_items(rows, count), "compositions": compositions}


# ------------------------------------------------------------------------------------------------------------ measures


def border_color(image: Tensor) -> str:
    """Of `BACKGROUNDS`, the one nearest to most pixels of the outer two rings of (3 h w) in [-1, 1]."""
    ring = torch.ones(image.shape[1:], dtype=torch.bool)
    ring[2:-2, 2:-2] = False
    pixels = (image[:, ring].T + 1) * 127.5
    nearest = torch.cdist(pixels, torch.tensor(list(BACKGROUNDS.values()), dtype=pixels.dtype)).argmin(1)
    return COLORS[int(nearest.bincount(minlength=len(COLORS)).argmax())]


class Nearest:
    """Distances to the nearest training picture on the same background, mirrored or not.

    Args:
        rows: of the training pictures.
    """

    def __init__(self, scorer: Scorer, rows: Sequence[Row]) -> None:
        self.scorer = scorer
        self.drawings = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGBA") for row in rows]
        self.known: dict[str, Tensor] = {}  # the drawings' features, by background

    def drawn_on(self, color: str) -> Iterator[Tensor]:
        for first in range(0, len(self.drawings), 500):
            yield torch.stack([compose(drawing, color) for drawing in self.drawings[first : first + 500]])

    def __call__(self, images: Tensor, colors: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Of (n 3 h w) in [-1, 1]: the root of the mean squared difference in [0, 1] (n,), and the cosine (n,)."""
        pixels, cosines = torch.zeros(len(images)), torch.zeros(len(images))
        for color in tqdm(sorted(set(colors)), desc="nearest training pictures", unit="background"):
            own = torch.tensor([each == color for each in colors])
            both = torch.cat([images[own], images[own].flip(-1)])
            if color not in self.known:
                self.known[color] = torch.cat([features(self.scorer, real) for real in self.drawn_on(color)])
            fits = features(self.scorer, both) @ self.known[color].T
            distances = [torch.cdist(both.flatten(1), real.flatten(1)).amin(1) for real in self.drawn_on(color)]
            pixels[own] = torch.stack(distances).amin(0).unflatten(0, (2, -1)).amin(0) / 2 / both[0].numel() ** 0.5
            cosines[own] = fits.amax(1).unflatten(0, (2, -1)).amax(0)
        return pixels, cosines


def spread(values: Tensor) -> dict[str, float]:
    return {f"{share:.0%}": round(float(values.quantile(share)), 4) for share in (0.05, 0.5, 0.95)}


def spread_of_seeds(pipe: Any, scorer: Scorer, items: Sequence[Item], first: int, **options: Any) -> dict[str, Any]:
    """How far apart the pictures of `SEEDS` seeds are, which begin with `first`, for each of the captions."""
    texts = [item.caption.text for item in items for _ in range(SEEDS)]
    images = generate(pipe, texts, [first + number for _ in items for number in range(SEEDS)], **options)
    pairs = torch.combinations(torch.arange(SEEDS))
    result: dict[str, Any] = {"captions": len(items), "seeds": SEEDS}
    for name, vectors, scale in (
        ("features", features(scorer, images), 1.0),
        ("pixels", images.flatten(1), 0.5 / images[0].numel() ** 0.5),
    ):
        sets = vectors.unflatten(0, (-1, SEEDS))  # (captions, seeds, d)
        apart = (sets[:, pairs[:, 0]] - sets[:, pairs[:, 1]]).norm(dim=-1).mean(1) * scale  # (captions)
        result[name] = round(float(apart.mean()), 4)
        result[f"{name}_error"] = round(float(apart.std() / len(apart) ** 0.5), 4)
    return result


def judge(
    scorer: Scorer, distractors: Distractors, nearest: Nearest | None, items: Sequence[Item], images: Tensor
) -> dict[str, Any]:
    """The figures of one picture (3 64 64), in [-1, 1], for each item; and of each kind, where there are several."""
    said = [item.caption for item in items]
    seen = features(scorer, images)
    found = ranks(scorer, seen, [[each.text for each in (caption, *distractors(caption))] for caption in said])
    colors = [caption.color or "white" for caption in said]
    style = torch.tensor([a == caption.style for a, caption in zip(styles_of(scorer, seen, said), said, strict=True)])
    color = torch.tensor([border_color(image) == each for image, each in zip(images, colors, strict=True)])
    distances = nearest(images, colors) if nearest else None

    def figures(of: Tensor) -> dict[str, Any]:
        result = accuracy(found[of]) | {
            "style": round(float(style[of].float().mean()), 4),
            "background": round(float(color[of].float().mean()), 4),
        }
        if distances:
            pixels, cosines = (each[of] for each in distances)
            result["nearest_pixels"], result["nearest_cosine"] = spread(pixels), spread(cosines)
            result["near_copies"] = round(float((pixels < COPY).float().mean()), 4)
        return result

    result = figures(torch.arange(len(items)))
    kinds = Counter(item.kind for item in items)
    halves = {kind.partition(":")[0] for kind in kinds}
    if len(kinds) > 1:
        places = {
            kind: [i for i, item in enumerate(items) if item.kind.startswith(kind)] for kind in kinds.keys() | halves
        }
        result["parts"] = {kind: figures(torch.tensor(of)) for kind, of in sorted(places.items())}
    return result


# ------------------------------------------------------------------------------------------------------------ pictures


def generate(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> Tensor:
    """(n 3 64 64) in [-1, 1]."""
    parts = []
    for first in tqdm(range(0, len(prompts), BATCH), desc="drawing", unit="batch"):
        part = slice(first, first + BATCH)
        parts.append(pipe(list(prompts[part]), seed=list(seeds[part]), output_type="pt", **options).images)
    images = torch.cat(parts).float() * 2 - 1
    if images.shape[1:] != (3, 64, 64):
        raise SystemExit(f"the model draws {tuple(images.shape[1:])}, where the scorer knows (3, 64, 64)")
    return images


@torch.no_grad()
def reencode(autoencoder: Any, images: Tensor) -> Tensor:
    decoded = [autoencoder.decode(autoencoder.encode(part).latent_dist.mode()).sample for part in images.split(BATCH)]
    return torch.cat(decoded).clamp(-1, 1)


def real_pictures(items: Sequence[Item]) -> tuple[list[Item], Tensor]:
    """Those items of which there is a real drawing, and the drawings on the backgrounds asked for."""
    drawn = [item for item in items if item.row is not None]
    return drawn, torch.stack([compose(item.row["image"]["bytes"], item.caption.color or "white") for item in drawn])


def judge_model(
    pipe: Any, scorer: Scorer, rows: Sequence[Row], count: int, grid: Path | None, spread_over: int = 50, **options: Any
) -> Any:
    """All figures of a pipeline, by set and by whose pictures they are.

    Args:
        count: of the captions in each of the two sets.
        grid: where to draw some of the pictures, or None.
        spread_over: how many of the captions to draw with several seeds; none with 0.
        options: of the pipeline.
    """
    distractors, nearest = Distractors(rows), Nearest(scorer, trained_on(rows))
    unseen = held_out(rows)
    figures: dict[str, Any] = {}
    sheet: list[tuple[str, Tensor]] = []
    for part, (name, items) in enumerate(choose(rows, count).items()):
        started = time.perf_counter()
        seeds = [10_000 * part + number for number in range(len(items))]
        images = generate(pipe, [item.caption.text for item in items], seeds, **options)
        seconds = time.perf_counter() - started
        drawn, real = real_pictures(items)
        figures[name] = {
            "generated": judge(scorer, distractors, nearest, items, images),
            "real": judge(scorer, distractors, None, drawn, real),
            "real_reencoded": judge(scorer, distractors, None, drawn, reencode(pipe.vae, real)),
        }
        if len(drawn) > NEIGHBOUR:
            own = torch.tensor([number for number, item in enumerate(items) if item.row is not None])
            manifold = precision_recall(features(scorer, images[own]), features(scorer, real), k=NEIGHBOUR)
            figures[name]["generated"] |= {side: round(share, 4) for side, share in manifold._asdict().items()}
        if spread_over:
            some = items[:: max(1, len(items) // spread_over)][:spread_over]
            figures[name]["spread"] = spread_of_seeds(pipe, scorer, some, 10_000 * part, **options)
        colors = ["white" if name == "training" else some_color(row["style"], row["icon"]) for row in unseen]
        others = torch.stack([compose(row["image"]["bytes"], c) for row, c in zip(unseen, colors, strict=True)])
        pixels, cosines = nearest(others, colors)
        figures[name]["held_out_real"] = {
            "count": len(others),
            "nearest_pixels": spread(pixels),
            "nearest_cosine": spread(cosines),
            "near_copies": round(float((pixels < COPY).float().mean()), 4),
        }
        figures[name]["seconds"] = round(seconds, 1)
        step = max(1, len(items) // 48)
        sheet += [(items[i].caption.text, images[i]) for i in range(0, len(items), step)][:48]
    if grid is not None:
        with atomic_write(grid) as path:
            draw_sheet(sheet).save(path, format="PNG")
    return figures


def how_to_draw(config: Mapping[str, Any], options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Options of the pipeline, and the spacing of its timesteps.

    They are what was typed; else what the scheduler's config recommends; else 25 steps, guidance 3, rescale 0.7.
    """
    is_told = recommended_steps(config) is not None or options.order is not None
    steps = choose_steps(config, options.steps or (None if is_told else 25), options.order)
    scale, rescale = choose_guidance(config, options.guidance, options.rescale, 3.0)
    if options.rescale is None and config.get("recommended_guidance_rescale") is None and scale != 1:
        rescale = 0.7
    how = {
        "num_inference_steps": steps.number,
        "order": steps.order,
        "guidance_scale": scale,
        "guidance_rescale": rescale,
    }
    return how, options.spacing or steps.spacing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=argparse.SUPPRESS, help="a folder or a bundled model")
    parser.add_argument("--model", default="emoji", help="the same")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--order", type=int, choices=(1, 2))
    parser.add_argument("--spacing", help="of the timesteps, such as trailing or optimized")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--rescale", type=float)
    parser.add_argument("--count", type=int, default=500, help="captions in each of the two sets")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--grid", type=Path, help="draw 48 of each set there, every tenth, uncurated")
    parser.add_argument("--gallery", type=Path, help="draw 25 prompts with 4 seeds there, and judge nothing")
    parser.add_argument("--spread", type=int, default=50, help="captions of each set to draw with four seeds; 0: none")
    options = parser.parse_args()
    pipe = DiffusionPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    how, spacing = how_to_draw(pipe.scheduler.config, options)
    pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, timestep_spacing=spacing)
    if options.gallery:
        gallery = draw_gallery(lambda prompts, seeds: generate(pipe, prompts, seeds, **how))
        with atomic_write(options.gallery) as path:
            gallery.save(path, format="PNG", optimize=True)
        return
    about = {
        "command": " ".join(["python", "scripts/emoji/judge.py", *sys.argv[1:]]),
        "model": options.model,
        **how,
        "timestep_spacing": pipe.scheduler.config.timestep_spacing,
        "chance": {"top1": 0.01, "top5": 0.05, "style": round(1 / 3, 4), "background": round(1 / len(COLORS), 4)},
        "copy": COPY,
        "scorer_sha256": hashlib.sha256((FOLDER / "scorer.safetensors").read_bytes()).hexdigest(),
        "versions": {"ddim": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    figures = judge_model(pipe, load_scorer(), read_rows(), options.count, options.grid, options.spread, **how)
    for name, by_source in figures.items():
        for source, each in by_source.items():
            print(f"{name}, {source}: {json.dumps(each)}")
    if options.json:
        with atomic_write(options.json) as path:
            path.write_text(json.dumps({**about, **figures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
