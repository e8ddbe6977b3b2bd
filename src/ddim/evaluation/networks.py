"""The networks whose features are shipped: a classifier of 8x8 digits and an encoder of 64x64 pictures."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DigitsClassifier(nn.Module):
    """Two convolutions, a hidden layer of 64 features, ten classes. Its inputs are (n 1 8 8) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 16, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)

    def features(self, images: Tensor) -> Tensor:
        """The features of digits, (n 64), none of them negative."""
        found: Tensor = self.body(images)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """The classes' logits, (n 10)."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _convolve(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolve(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def image_tower(widths: tuple[int, int, int, int]) -> nn.Sequential:
    """Pictures (n 3 64 64) to (n 1024), with so many channels at 32, 16, 8 and 4 pixels on the way."""
    layers: list[nn.Module] = [_convolve(3, widths[0], stride=2, size=5)]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [_convolve(inputs, outputs, stride=2), _Residual(outputs)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 64, 1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1))


class EmojiEncoder(nn.Module):
    """The image tower of the scorer in `scripts/emoji/scorer.py`, with the names of its tensors.

    Its inputs are (n 3 64 64) in [-1, 1]. `scales` (5,) are the deviations, over real pictures, of what `features`
    puts together: each part weighs the same then.
    """

    scales: Tensor
    depths = (0, 2, 4, 6)  # the layers in `see` whose means are features: they have 32, 16, 8 and 4 pixels

    def __init__(self, widths: tuple[int, int, int, int] = (32, 64, 128, 192), size: int = 192) -> None:
        super().__init__()
        self.see = image_tower(widths)
        self.seen = nn.Linear(64 * 16, size)
        self.register_buffer("scales", torch.ones(len(self.depths) + 1))

    def parts(self, images: Tensor) -> list[Tensor]:
        """The means over the picture of each channel at four depths, (n 32) to (n 192), and `forward`, (n 192)."""
        found = []
        x = images
        for place, layer in enumerate(self.see):
            x = layer(x)
            if place in self.depths:
                found.append(x.mean((2, 3)))
        return [*found, F.normalize(self.seen(x).float(), dim=1)]

    def features(self, images: Tensor) -> Tensor:
        """All parts, each divided by its scale: (n 608)."""
        return torch.cat([part / scale for part, scale in zip(self.parts(images), self.scales, strict=True)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """What is compared with texts: (n size), of length one."""
        return F.normalize(self.seen(self.see(images)).float(), dim=1)
