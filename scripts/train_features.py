"""Make the feature extractors that `ddim evaluate` ships: src/ddim/weights/features.

    python scripts/train_features.py

`digits`: a small classifier, trained on the 1,437 training digits, judged on the 360 held out (half a minute).
`emoji`: the image tower of data/scorer, which train_scorer.py has trained; copied, bit by bit. For three candidates of
what to take from it (before its projection, after it, after it at length one) it is measured how well a Fréchet
distance tells real pictures from pictures that were blurred, recoloured, or had noise added: as a multiple of the
distance between two halves of real ones. All figures go to features.json beside the weights.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ddim import __version__
from ddim.checkpoint import read_tensors, save_tensors, write_json
from ddim.data import Preparation
from ddim.evaluation import FeatureStatistics, frechet_distance, load_features
from ddim.evaluation.features import load_digits_classifier
from ddim.evaluation.networks import DigitsClassifier, EmojiEncoder
from ddim.hub import BUNDLED
from ddim.sources import Source, captioned_source, digits

FOLDER = BUNDLED / "features"
SCORER = BUNDLED.parent.parent.parent / "data" / "scorer" / "scorer.safetensors"
EMOJI = SCORER.parent.parent / "emoji.parquet"
EPOCHS = 60
SPLITS = 10


def tensors(source: Source) -> tuple[Tensor, Tensor]:
    """All images (n 1 8 8) in [-1, 1] of the digits, and their labels (n,)."""
    images = torch.stack([source.load(i) for i in range(source.count)])  # type: ignore[arg-type]
    return images, torch.tensor(source.labels)


def train_classifier(images: Tensor, labels: Tensor, epochs: int = EPOCHS) -> DigitsClassifier:
    torch.manual_seed(0)
    classifier = DigitsClassifier().train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in tqdm(range(epochs), desc="digits classifier", unit="epoch"):
        for chosen in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(classifier(images[chosen]), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return classifier.eval()


def halves(network: nn.Module, names: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """A network's weights in float16, perhaps only those whose names begin so."""
    state = (
        network.state_dict() if not names else {k: v for k, v in network.state_dict().items() if k.startswith(names)}
    )
    return {name: tensor.half().contiguous() for name, tensor in state.items() if tensor.is_floating_point()}


@torch.no_grad()
def accuracy(classifier: DigitsClassifier, images: Tensor, labels: Tensor) -> float:
    return float((classifier(images).argmax(1) == labels).float().mean())


def make_digits() -> dict[str, Any]:
    images, labels = tensors(digits("train"))
    save_tensors(FOLDER / "digits.safetensors", halves(train_classifier(images, labels)))
    shipped = load_digits_classifier()  # what is measured is what is stored
    held_out = tensors(digits("held-out"))
    return {"features": 64, "epochs": EPOCHS, "accuracy_held_out": accuracy(shipped, *held_out), "held_out": 360}


# ------------------------------------------------------------------------------------------------------------- emoji


def blur(pictures: Tensor) -> Tensor:
    """By half a pixel's worth: averages of 3x3, half and half with the picture."""
    return (pictures + F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)) / 2


DAMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "slightly blurred": blur,
    "blurred": lambda pictures: blur(blur(blur(blur(pictures)))),
    "channels permuted": lambda pictures: pictures[:, [1, 2, 0]],
    "a tenth paler": lambda pictures: pictures * 0.9,
    "noise of 0.1": lambda pictures: (
        pictures + 0.1 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    ).clamp(-1, 1),
    "mirrored": lambda pictures: pictures.flip(3),
}


def separation(features: Callable[[Tensor], Tensor], pictures: Tensor) -> dict[str, float]:
    """Distances of damaged halves to the other halves, as multiples of that between halves; means over splits."""

    @torch.inference_mode()
    def all_of(batch: Tensor) -> Tensor:
        return torch.cat([features(part) for part in batch.split(250)])

    real = all_of(pictures)
    damaged = {name: all_of(damage(pictures)) for name, damage in DAMAGES.items()}
    rng = np.random.default_rng(0)
    sums = dict.fromkeys(("halves", *damaged), 0.0)
    for _ in range(SPLITS):
        first, second = torch.from_numpy(rng.permutation(len(real))).tensor_split(2)
        goal = FeatureStatistics.of(real[first])
        for name, found in {"halves": real, **damaged}.items():
            sums[name] += frechet_distance(FeatureStatistics.of(found[second]), goal) / SPLITS
    return {"halves": sums["halves"], **{name: sums[name] / sums["halves"] for name in damaged}}


def make_emoji(count: int) -> dict[str, Any]:
    stored = {name: t for name, t in read_tensors(SCORER).items() if name.startswith(("see.", "seen."))}
    save_tensors(FOLDER / "emoji.safetensors", stored)
    encoder = load_features("emoji").network
    assert isinstance(encoder, EmojiEncoder)
    source = captioned_source(dataset_name=EMOJI, caption_column="captions")
    order = np.random.default_rng(0).permutation(source.count)[:count]
    prepare = Preparation(64)
    rng = np.random.default_rng(0)
    pictures = torch.stack([prepare(source.load(int(i)), rng) for i in tqdm(order, desc="pictures", unit="picture")])
    candidates = {
        "before the projection, 1024": encoder.see,
        "after it, 192": lambda batch: encoder.seen(encoder.see(batch)),
        "after it at length one, 192": encoder,
    }
    found = {name: separation(features, pictures) for name, features in tqdm(candidates.items(), desc="candidates")}
    return {"features": 192, "pictures": count, "splits": SPLITS, "separation": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=3000, help="of emoji, to measure separation on")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums in another order give another classifier
    figures = {
        "command": "python scripts/train_features.py",
        "digits": make_digits(),
        "emoji": make_emoji(options.pictures),
        "versions": {"ddim": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    write_json(FOLDER / "features.json", figures)
    for name in ("digits", "emoji"):
        print(name, figures[name])


if __name__ == "__main__":
    main()
