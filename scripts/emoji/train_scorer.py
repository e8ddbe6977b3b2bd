"""Train the scorer that judges the emoji model, on real pictures alone, and put it, in float16, into data/scorer.

    python scripts/emoji/train_scorer.py [--autoencoder FOLDER] [--leave-one-out]

It sees the pictures of data/emoji.parquet of both splits, since it has to know what a held-out emoji looks like, on the
plain backgrounds of `ddim.data`, turned, warped, blurred, compressed and noisy. It never sees a generated picture, and
it is frozen before any is judged. It learns to tell the right caption from those of other names in the same style on
the same background, and from the same name in other styles and on other backgrounds. A quarter of the pictures are
recoloured or outlined, and nothing is said of their style, so that it knows objects in styles it never saw.

What it is worth is measured on sets that it never saw, OpenMoji (CC BY-SA 4.0) and Emoji One 2.3 (CC BY 4.0), and on
the skin tones of Noto and Twemoji, which the table leaves out: they are fetched as dataset.py fetches its
own, and nothing of them is kept. Training goes on from its last checkpoint, under runs/scorer.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import dataset as build
import numpy as np
import torch
from augment import augment
from PIL import Image
from safetensors.torch import save_file
from scorer import (
    CANDIDATES,
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
    untoned,
)
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from train import HERE, articled, is_kept

from ddim import AutoencoderKL, __version__
from ddim.checkpoint import atomic_write

RUNS = HERE / "runs" / "scorer"
STEPS = 3_000
BATCH = 128
RATE = 3e-3  # of AdamW, for vectors and tables
MATRIX_RATE = 0.02  # of Muon, for all else
WARMUP = 50
RIVALS = 384  # names at random that all pictures of a step are told from
KIN, LIKENED = 12, 4  # the names most like a picture's own, and how many of them it brings along
UNSEEN = (
    build.Style(
        "openmoji",
        build.Package(
            "@iconify-json/openmoji",
            "1.2.29",
            "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        ),
        license="CC-BY-SA-4.0",
        author="OpenMoji",
        tones=False,
    ),
    build.Style(
        "emojione",
        build.Package(
            "@iconify-json/emojione",
            "1.2.3",
            "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        ),
        license="CC-BY-4.0",
        author="Emoji One",
        tones=False,
    ),
)

# ----------------------------------------------------------------------------------------------------------- training


def premultiplied(row: Row) -> np.ndarray[Any, Any]:
    """(4 64 64), uint8."""
    with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
        pixels = np.asarray(image, dtype=np.float32)
    pixels[..., :3] *= pixels[..., 3:] / 255
    return pixels.round().astype(np.uint8).transpose(2, 0, 1)


class Examples:
    """The pictures with the numbers of their names. A skin tone is drawn a third as often as anything else."""

    def __init__(self, rows: list[Row], scorer: Scorer) -> None:
        self.drawings = torch.from_numpy(np.stack([premultiplied(row) for row in rows]))
        self.styles = torch.tensor([STYLES.index(row["style"]) for row in rows])
        self.toned = torch.tensor([is_toned(row["captions"][0]) for row in rows])
        self.weights = torch.where(self.toned, 1 / 3, 1.0)
        names = {row["captions"][0]: row["captions"] for row in rows}
        place = {name: number for number, name in enumerate(names)}
        self.names = torch.tensor([place[row["captions"][0]] for row in rows])
        said = [name for options in names.values() for name in options]
        self.tokens = scorer.tokens([text for name in said for text in (name, articled(name))])
        self.counts = torch.tensor([2 * len(options) for options in names.values()])
        self.first = self.counts.cumsum(0) - self.counts

        words = torch.zeros(len(names), len(scorer.numbers) + 1).scatter_(1, self.tokens[self.first], 1.0)[:, 1:]
        rarity = (len(names) / words.sum(0).clamp(min=1)).log()
        shared, own = (words * rarity) @ words.T, words @ rarity
        likeness = shared / (own[:, None] + own - shared).clamp(min=1e-6)
        self.kin = likeness.fill_diagonal_(-1).topk(min(KIN, len(names) - 1)).indices

    def say(self, names: Tensor, generator: torch.Generator) -> Tensor:
        """The words of one way to say each name, half of the time the best: (n longest)."""
        share = torch.rand(len(names), generator=generator) * self.counts[names]
        best = torch.rand(len(names), generator=generator) < 0.5
        return self.tokens[self.first[names] + torch.where(best, share.long() % 2, share.long())]


class Muon(torch.optim.Optimizer):
    """Steps along the nearest semi-orthogonal matrix to the momentum: Jordan et al. 2024, also for convolutions.

    Here it takes about half as many steps as AdamW to the same loss.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], momentum: float = 0.95, decay: float = 0.05) -> None:
        super().__init__(parameters, {"lr": 0.0, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                average = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
                x = (parameter.grad + group["momentum"] * average).flatten(1)
                tall = x.shape[0] > x.shape[1]
                x = (x.T if tall else x).bfloat16()
                x = x / (x.norm() + 1e-7)
                for _ in range(5):  # a Newton-Schulz iteration that takes singular values near 1
                    square = x @ x.T
                    x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
                x = (x.T if tall else x).float() * max(1.0, x.shape[1] / x.shape[0] if tall else 1.0) ** 0.5
                parameter.mul_(1 - group["lr"] * group["decay"]).add_(x.view_as(parameter), alpha=-group["lr"])


def loss_of(scorer: Scorer, examples: Examples, generator: torch.Generator) -> Tensor:
    chosen = torch.multinomial(examples.weights, BATCH, generator=generator)
    images, colors, foreign = augment(examples.drawings[chosen].float() / 255, generator)
    with torch.autocast("cpu", torch.bfloat16):
        seen = scorer.images(images.contiguous(memory_format=torch.channels_last))
    own = examples.names[chosen]
    rivals = torch.randperm(len(examples.counts), generator=generator)[:RIVALS]
    likened = torch.randint(examples.kin.shape[1], (BATCH, LIKENED), generator=generator)
    kin = examples.kin[own].gather(1, likened).flatten()
    among, right = torch.cat([own, rivals, kin]).unique(return_inverse=True)
    names = scorer.names(examples.say(among, generator))
    styles = examples.styles[chosen]
    styled = ~foreign & ~examples.toned[chosen]  # only Fluent's have tones: a tone would come to mean Fluent
    says_style = (torch.rand(BATCH, generator=generator) < 0.75) & styled
    says_color = torch.rand(BATCH, generator=generator) < 0.75
    style, color = (scorer.styles[styles] * says_style[:, None], scorer.colors[colors] * says_color[:, None])
    # Captions are sums, so the lengths of all pairs of a name and what is said besides come from products.
    besides = style + color
    squared = 1 + besides.square().sum(1, keepdim=True) + 2 * besides @ names.T
    fits = [(seen @ names.T + (seen * besides).sum(1, keepdim=True)) / squared.sqrt()]
    mine = names[right[:BATCH]]
    for table, number, said, rest in (
        (scorer.styles, styles, says_style, mine + color),
        (scorer.colors, colors, says_color, mine + style),
    ):
        others = F.normalize(rest[:, None] + table, dim=2) @ seen[:, :, None]
        hidden = F.one_hot(number, len(table)).bool() | ~said[:, None]
        fits.append(others[..., 0].masked_fill(hidden, -1e4))
    scale = scorer.scale.clamp(max=math.log(60)).exp()
    loss = F.cross_entropy(torch.cat(fits, 1) * scale, right[:BATCH])
    of_three = (F.normalize(mine[:, None] + color[:, None] + scorer.styles, dim=2) @ seen[:, :, None])[..., 0]
    return loss + 0.5 * F.cross_entropy(of_three[styled] * scale, styles[styled])


def share_at(step: int, steps: int) -> float:
    """Of the full rates: a cosine, after a start."""
    return min((step + 1) / WARMUP, math.cos(math.pi / 2 * step / steps) ** 2)


def fit(rows: list[Row], steps: int, seed: int, folder: Path | None) -> tuple[Scorer, float]:
    """The trained scorer, and the seconds of processor time that took.

    A step depends on the seed and its number alone, so that one can go on after a break.
    """
    torch.manual_seed(seed)
    words = sorted({word for row in rows for name in row["captions"] for word in articled(name).split()})
    scorer = Scorer(words).to(memory_format=torch.channels_last).train()
    examples = Examples(rows, scorer)
    matrices, rest = [], []
    for name, parameter in scorer.named_parameters():
        table = parameter.ndim < 2 or name in ("words.weight", "styles", "colors", "see.0.0.weight")
        (rest if table else matrices).append(parameter)
    optimizers = {Muon(matrices): MATRIX_RATE, torch.optim.AdamW(rest, weight_decay=0.0): RATE}
    first, spent, path = 0, 0.0, folder / f"seed-{seed}-of-{steps}.pt" if folder else None
    if path and path.exists():
        state = torch.load(path, weights_only=True)
        scorer.load_state_dict(state["scorer"])
        for optimizer, stored in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        first, spent = state["step"], state["seconds"]
    started = time.process_time() - spent
    bar = tqdm(range(first, steps), desc="training", initial=first, total=steps, mininterval=5)
    for step in bar:
        generator = torch.Generator().manual_seed(draw_lot("step", seed, step) >> 1)
        torch.manual_seed(draw_lot("dropout", seed, step) >> 1)
        loss = loss_of(scorer, examples, generator)
        scorer.zero_grad()
        loss.backward()
        for optimizer, rate in optimizers.items():
            optimizer.param_groups[0]["lr"] = rate * share_at(step, steps)
            optimizer.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if path and ((step + 1) % 500 == 0 or step + 1 == steps):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                spent = time.process_time() - started
                stored = [optimizer.state_dict() for optimizer in optimizers]
                parts = {"scorer": scorer.state_dict(), "optimizers": stored}
                torch.save({**parts, "step": step + 1, "seconds": spent}, temporary)
    return scorer.eval().requires_grad_(False), spent


# ---------------------------------------------------------------------------------------------------------- measuring

Pictures = list[tuple[Caption, Tensor]]


def first_by_lot(items: list[Any], count: int, key: Any = None) -> list[Any]:
    return sorted(items, key=lambda item: draw_lot("chosen", key(item) if key else item))[:count]


def on_backgrounds(rows: list[Row]) -> Pictures:
    """With captions that say everything, half of them on white."""
    found = []
    for row in rows:
        lot = draw_lot("background", row["style"], row["icon"])
        color = COLORS[lot % len(COLORS)] if lot // 97 % 2 else "white"
        found.append((Caption(row["captions"][0], color, row["style"]), compose(row["image"]["bytes"], color)))
    return found


def unseen_style(style: build.Style, cache: Path, rows: list[Row]) -> Pictures:
    """The emoji of another set that the table knows, on white; nothing is said of style and background."""
    names = {row["concept"]: untoned(row["captions"][0]) for row in rows}
    by_key = {row["icon"]: row["concept"] for row in rows}
    found = {}
    for icon in build.read_icons(style, cache, dict(by_key), Counter()):
        concept = by_key.get(icon.key.replace("flag-for-", "flag-"), icon.concept)
        if concept in names and concept not in found:
            found[concept] = (Caption(names[concept]), compose(build.draw(icon.svg)))
    return list(found.values())


def unseen_tones(cache: Path, rows: list[Row], count: int) -> Pictures:
    """Emoji with skin tones by Noto and Twemoji, on backgrounds: what the scorer knows by words and by Fluent alone."""
    names = {row["concept"]: untoned(row["captions"][0]) for row in rows}
    tone_of = {"1f3fb": "light", "1f3fc": "medium-light", "1f3fd": "medium", "1f3fe": "medium-dark", "1f3ff": "dark"}
    found: list[tuple[str, str, str, str]] = []
    sets = {}
    for style in (build.STYLES[0], build.STYLES[2]):
        sets[style.name], codes = build.read_json(build.fetch(style.package, cache), "icons.json", "chars.json")
        for code, key in codes.items():
            tones, concept = set(code.split("-")) & build.TONE_CODES, build.concept_of(code)
            if len(tones) == 1 and concept in names and key in sets[style.name]["icons"]:
                found.append((style.name, key, concept, tone_of[tones.pop()]))
    pictures = []
    for style_name, key, concept, tone in first_by_lot(found, count):
        color = COLORS[draw_lot("background", style_name, key) % len(COLORS)]
        icons = sets[style_name]
        image = build.draw(build.to_svg(icons["icons"][key], icons))
        pictures.append((Caption(build.with_tone(names[concept], tone), color, style_name), compose(image, color)))
    return pictures


def measure(scorer: Scorer, distractors: Distractors, pictures: Pictures) -> dict[str, Any]:
    captions = [caption for caption, _ in pictures]
    seen = features(scorer, torch.stack([image for _, image in pictures]))
    texts = [[each.text for each in (caption, *distractors(caption))] for caption in captions]
    figures = accuracy(ranks(scorer, seen, texts))
    if captions[0].style is not None:
        right = [
            said == caption.style for said, caption in zip(styles_of(scorer, seen, captions), captions, strict=True)
        ]
        figures["style"] = round(sum(right) / len(right), 4)
    return figures


@torch.no_grad()
def reencode(pictures: Pictures, autoencoder: AutoencoderKL) -> Pictures:
    images = torch.stack([image for _, image in pictures])
    decoded = [autoencoder.decode(autoencoder.encode(part).latent_dist.mode()).sample for part in images.split(50)]
    return [(caption, image) for (caption, _), image in zip(pictures, torch.cat(decoded).clamp(-1, 1), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--autoencoder", type=Path, help="measure on real pictures after it, too: a folder")
    parser.add_argument("--leave-one-out", action="store_true", help="train thrice more, for a third as long each")
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--cache", type=Path, default=HERE / "runs" / "emoji-packages", help="of npm archives")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums in another order give another scorer
    rows = read_rows()
    scorer, seconds = fit(rows, options.steps, options.seed, RUNS)
    words = list(scorer.numbers)
    options.output.mkdir(parents=True, exist_ok=True)
    state = {name: t.half().contiguous() for name, t in scorer.state_dict().items() if t.is_floating_point()}
    with atomic_write(options.output / "scorer.safetensors") as path:
        save_file(state, path)
    (options.output / "scorer.json").write_text(json.dumps({"words": words}), encoding="utf-8")
    scorer = load_scorer(options.output)  # what is measured is what is stored

    distractors = Distractors(rows)
    plain = [row for row in rows if is_kept(row["icon"], row["concept"], row["captions"])]
    chosen = first_by_lot([row for row in plain if row["split"] == "train"], 1000, lambda row: row["image"]["path"])
    sets = {"train": on_backgrounds(chosen), "held-out": on_backgrounds([r for r in plain if r["split"] == "held-out"])}
    if options.autoencoder:
        autoencoder = AutoencoderKL.from_pretrained(options.autoencoder).eval()
        sets |= {f"{name}, re-encoded": reencode(pictures, autoencoder) for name, pictures in sets.items()}
    sets |= {style.name: unseen_style(style, options.cache, rows) for style in UNSEEN}
    sets["tones of noto and twemoji"] = unseen_tones(options.cache, rows, 500)
    figures = {name: measure(scorer, distractors, pictures) for name, pictures in sets.items()}
    if options.leave_one_out:
        for left_out in STYLES:
            others = [row for row in rows if row["style"] != left_out]
            known = {row["concept"] for row in others}
            alone, _ = fit(others, options.steps // 3, options.seed + 1 + STYLES.index(left_out), RUNS)
            tested = [row for row in plain if row["style"] == left_out and row["concept"] in known]
            pictures = [(Caption(row["captions"][0]), compose(row["image"]["bytes"])) for row in tested]
            figures[f"trained without {left_out}, on it"] = measure(alone, distractors, pictures)
    for name, each in figures.items():
        print(f"{name:34} {each}")
    about = {
        "command": " ".join(["python", "scripts/emoji/train_scorer.py", *sys.argv[1:]]),
        "seed": options.seed,
        "steps": options.steps,
        "batch": BATCH,
        "cpu_seconds": round(seconds),
        "versions": {"ddim": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "candidates": CANDIDATES,
        "accuracy": figures,
        "words": words,
    }
    with atomic_write(options.output / "scorer.json") as path:
        path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
