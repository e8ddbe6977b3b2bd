"""Judge the digits model: are its samples digits, spread like the real ones, and no copies?

    python scripts/digits/judge.py [MODEL] [--json FILE]

The classifier is the one that `ddim evaluate` ships, trained by train_features.py on the real training digits; it is
judged on the held-out ones. Then it is shown 1,000 samples by class (50 steps, guidance 1, seed 0); 5,000 are set
beside the real digits by the Fréchet distance of its features; and each is measured against its nearest training digit.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from torch import Tensor

from ddim import DiffusionPipeline
from ddim.data import Source, digits
from ddim.evaluation import FeatureStatistics, frechet_distance, nearest_distances
from ddim.evaluation.features import load_digits_classifier
from ddim.evaluation.networks import DigitsClassifier

SPLITS = 50


def tensors(source: Source) -> tuple[Tensor, Tensor]:
    """All images (n 1 8 8) in [-1, 1] and their labels (n,)."""
    return torch.stack([source.load(i) for i in range(source.count)]), torch.tensor(source.labels)


def draw(model: str, count: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` samples in [-1, 1], the classes in turn."""
    pipe = DiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    labels = torch.arange(count) % 10
    parts = []
    for first in range(0, count, 500):
        chosen = labels[first : first + 500]
        parts.append(pipe(class_labels=chosen, num_inference_steps=steps, seed=seed + first, output_type="pt").images)
    return torch.cat(parts) * 2 - 1, labels


def distance_ratio(features: Tensor, real: Tensor) -> tuple[float, float]:
    """Fréchet distances at equal sample sizes, means over random splits: samples to half the real, half to half."""
    half = len(real) // 2
    rng = np.random.default_rng(0)
    to_real, between_halves = [], []
    for _ in range(SPLITS):
        order = rng.permutation(len(real))
        first, second = (FeatureStatistics.of(real[part]) for part in (order[:half], order[half : 2 * half]))
        samples = FeatureStatistics.of(features[rng.permutation(len(features))[:half]])
        to_real.append(frechet_distance(samples, first))
        between_halves.append(frechet_distance(second, first))
    return float(np.mean(to_real)), float(np.mean(between_halves))


@torch.no_grad()
def judge(model: str, classifier: DigitsClassifier, steps: int = 50, count: int = 5000) -> dict[str, float]:
    started = time.perf_counter()
    samples, labels = draw(model, count, steps, seed=0)
    seconds = time.perf_counter() - started
    images, _ = tensors(digits("train"))
    held_out, _ = tensors(digits("held-out"))
    real, _ = tensors(digits("all"))
    body = classifier.body
    to_real, halves = distance_ratio(body(samples), body(real))
    pixels_to_real, pixels_halves = distance_ratio(samples.flatten(1), real.flatten(1))
    return {
        "recognised_of_1000": float((classifier(samples[:1000]).argmax(1) == labels[:1000]).float().mean()),
        "recognised_of_all": float((classifier(samples).argmax(1) == labels).float().mean()),
        "frechet_to_real": to_real,
        "frechet_between_halves": halves,
        "frechet_ratio": to_real / halves,
        "pixel_frechet_ratio": pixels_to_real / pixels_halves,
        "nearest_training_digit_samples": float(nearest_distances(samples, images).median()),
        "nearest_training_digit_held_out": float(nearest_distances(held_out, images).median()),
        "exact_copies": float((nearest_distances(samples, images) < 0.5).float().mean()),
        "samples": count,
        "steps": steps,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["digits"])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--json", help="write the figures of the last model there")
    options = parser.parse_args()
    classifier = load_digits_classifier()
    images, labels = tensors(digits("held-out"))
    with torch.no_grad():
        accuracy = float((classifier(images).argmax(1) == labels).float().mean())
    print(f"classifier: {accuracy:.2%} of {len(labels)} held-out real digits")
    for model in options.models:
        figures = {"classifier_accuracy": accuracy, **judge(model, classifier, options.steps, options.samples)}
        print(model)
        for name, value in figures.items():
            print(f"  {name:32} {value:.4g}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
