"""Make the feature extractors that `ddim evaluate` ships: src/ddim/weights/features.

    python scripts/train_features.py

`digits`: a small classifier, trained on the 1,437 training digits, judged on the 360 held out (half a minute).
`emoji`: the image tower of data/scorer, which train_scorer.py has trained; copied, bit by bit. For what could be taken
from it as features (before its projection, after it, after it at length one, and this beside the means of its channels
at four depths) it is measured how well a Fréchet distance tells real pictures from pictures that were blurred,
recoloured, or had noise added: as a multiple of the distance between two halves of real ones. The last is what is
shipped. All figures go to features.json beside the weights.
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
from ddim.checkpoint import read_json, read_tensors, save_tensors, write_json
from ddim.checkpoint.hub import BUNDLED
from ddim.data import Source, captioned_source, digits
from ddim.data.preparation import Preparation
from ddim.evaluation import FeatureStatistics, frechet_distance
from ddim.evaluation.features import load_digits_classifier, load_emoji_encoder
from ddim.evaluation.networks import DigitsClassifier, EmojiEncoder

FOLDER = BUNDLED / "features"
SCORER = BUNDLED.parent.parent.parent / "data" / "scorer" / "scorer.safetensors"
EMOJI = SCORER.parent.parent / "emoji.parquet"
EPOCHS = 60
SPLITS = 5


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


def candidates(encoder: EmojiEncoder, pictures: Tensor) -> dict[str, Tensor]:
    """What features could be, of all pictures."""
    found: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for batch in pictures.split(250):
            trunk = encoder.see(batch)
            each = {
                "before the projection, 1024": trunk,
                "after it, 192": encoder.seen(trunk),
                "after it at length one, 192": encoder(batch),
                "means at four depths, and after it, 608": encoder.features(batch),
            }
            for name, features in each.items():
                found.setdefault(name, []).append(features)
    return {name: torch.cat(parts) for name, parts in found.items()}


def separation(real: Tensor, damaged: dict[str, Tensor]) -> dict[str, float]:
    """Distances of damaged halves to the other halves, as multiples of that between halves; means over splits."""
    rng = np.random.default_rng(0)
    sums = dict.fromkeys(("halves", *damaged), 0.0)
    for _ in range(SPLITS):
        first, second = torch.from_numpy(rng.permutation(len(real))).tensor_split(2)
        goal = FeatureStatistics.of(real[first])
        for name, found in {"halves": real, **damaged}.items():
            sums[name] += frechet_distance(FeatureStatistics.of(found[second]), goal) / SPLITS
    return {"halves": sums["halves"], **{name: sums[name] / sums["halves"] for name in damaged}}


def make_emoji(count: int) -> dict[str, Any]:
    source = captioned_source(dataset_name=EMOJI, caption_column="captions")
    order = np.random.default_rng(0).permutation(source.count)[:count]
    prepare, rng = Preparation(64), np.random.default_rng(0)
    pictures = torch.stack([prepare(source.load(int(i)), rng) for i in tqdm(order, desc="pictures", unit="picture")])

    stored = {name: t for name, t in read_tensors(SCORER).items() if name.startswith(("see.", "seen."))}
    encoder = EmojiEncoder().eval()
    encoder.load_state_dict({name: tensor.float() for name, tensor in stored.items()}, strict=False)
    with torch.inference_mode():
        parts = zip(*(encoder.parts(batch) for batch in pictures[:2000].split(250)), strict=True)
        scales = torch.stack([torch.cat(part).var(0).sum().sqrt() for part in parts])
    save_tensors(FOLDER / "emoji.safetensors", {**stored, "scales": scales.half()})

    encoder = load_emoji_encoder()  # what is measured is what is stored
    real = candidates(encoder, pictures)
    damaged = {
        name: candidates(encoder, damage(pictures))
        for name, damage in tqdm(DAMAGES.items(), desc="damaged", unit="set")
    }
    found = {
        name: separation(features, {damage: each[name] for damage, each in damaged.items()})
        for name, features in tqdm(real.items(), desc="candidates")
    }
    return {
        "features": encoder.features(pictures[:1]).shape[1],
        "pictures": count,
        "splits": SPLITS,
        "separation": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["digits", "emoji"], help="both if not given")
    parser.add_argument("--pictures", type=int, default=2000, help="of emoji, to measure separation on")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums in another order give another classifier
    path = FOLDER / "features.json"
    figures = read_json(path) if path.exists() else {}
    if "digits" in options.what or not options.what:
        figures["digits"] = make_digits()
    if "emoji" in options.what or not options.what:
        figures["emoji"] = make_emoji(options.pictures)
    figures["command"] = "python scripts/train_features.py"
    figures["versions"] = {"ddim": __version__, "torch": torch.__version__, "python": platform.python_version()}
    write_json(path, figures)
    print(figures)


if __name__ == "__main__":
    main()
