"""The feature extractors: networks that turn pictures into vectors. A new one is one entry in `EXTRACTORS`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ddim.checkpoint import check_state, read_tensors
from ddim.checkpoint.hub import BUNDLED
from ddim.checkpoint.pickles import check_either
from ddim.errors import CheckpointError, ConfigError, require
from ddim.evaluation.networks import DigitsClassifier, EmojiEncoder

INCEPTION_WEIGHTS = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)


Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class FeatureExtractor:
    """Turns pictures (n c h w) in [-1, 1] into features (n, size), in float32 on the network's device.

    Attributes:
        name: its key in `EXTRACTORS`.
        network: what computes the features; it is in eval mode, and no gradients are kept.
        size: the length of a feature vector.
        shape: the pictures' (channels, height, width); None if they may be of any size and of 1 or 3 channels.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    size: int
    shape: tuple[int, int, int] | None

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        """
        Raises:
            ConfigError: pictures that these features are not for.
        """
        given = tuple(pictures.shape[1:])
        if pictures.ndim != 4 or (self.shape is not None and given != self.shape):
            wanted = "(n, c, h, w)" if self.shape is None else f"(n, {', '.join(map(str, self.shape))})"
            raise ConfigError(f"{self.name} features are of pictures {wanted}, not {tuple(pictures.shape)}")
        return self.network(pictures.float()).float()


def _shipped(network: Network, name: str, device: str | torch.device) -> Network:
    """Fill a network with its weights inside the package."""
    path = BUNDLED / "features" / f"{name}.safetensors"
    state = read_tensors(path)
    wanted = {key: value for key, value in network.state_dict().items() if value.is_floating_point()}
    check_state(wanted, state, str(path))
    # Not stored are the counts of batches, which BatchNorm needs in training alone.
    network.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    return network.to(device).eval().requires_grad_(False)


def load_digits_classifier(device: str | torch.device = "cpu") -> DigitsClassifier:
    """The classifier behind the `digits` features; `weights/features/README.md` says what it is worth.

    Raises:
        CheckpointError: its file is missing or broken.
    """
    return _shipped(DigitsClassifier(), "digits", device)


def load_emoji_encoder(device: str | torch.device = "cpu") -> EmojiEncoder:
    """The encoder behind the `emoji` features.

    Raises:
        CheckpointError: its file is missing or broken.
    """
    return _shipped(EmojiEncoder(), "emoji", device)


def _digits(weights: Path | None, device: torch.device) -> FeatureExtractor:
    return FeatureExtractor("digits", load_digits_classifier(device).features, 64, (1, 8, 8))


def _emoji(weights: Path | None, device: torch.device) -> FeatureExtractor:
    return FeatureExtractor("emoji", load_emoji_encoder(device).features, 608, (3, 64, 64))


def _inception(weights: Path | None, device: torch.device) -> FeatureExtractor:
    """InceptionV3 as in the original FID, by torch-fidelity: 2048 features of pictures rounded to eight bits."""
    if weights is None:
        raise ConfigError(
            f"inception features need Inception's weights: fetch {INCEPTION_WEIGHTS} and give the file as "
            "--features-weights (weights= in Python)"
        )
    _check_pickle(weights)  # torch-fidelity would unpickle whatever is in it
    try:
        fidelity = require("torch_fidelity.feature_extractor_inceptionv3", "inception")
    except RuntimeError as error:  # how torchvision fails beside a torch of another build
        raise ConfigError(
            f"torch-fidelity cannot be imported ({error}): install the torchvision that was built for this torch, "
            f"{torch.__version__}, from where torch came from"
        ) from error
    try:
        network = fidelity.FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=str(weights)
        )
    except RuntimeError as error:  # torch's list of keys that differ
        raise CheckpointError(
            f"{weights} are not the weights of torch-fidelity's Inception: fetch {INCEPTION_WEIGHTS}"
        ) from error
    network.to(device)

    def features(pictures: Tensor) -> Tensor:
        levels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        if levels.shape[1] == 1:
            levels = levels.expand(-1, 3, -1, -1)
        found: Tensor = network(levels.to(device))[0]
        return found

    return FeatureExtractor("inception", features, 2048, None)


def _check_pickle(path: Path) -> None:
    """Raise a CheckpointError unless a file holds tensors by their names and nothing else."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; Inception's weights are at {INCEPTION_WEIGHTS}")
    try:
        check_either(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can make torch.load raise an error of any kind
        raise CheckpointError(f"{path} is no file of tensors alone: {str(error)[:200]}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is no dict of names and tensors")


EXTRACTORS: dict[str, Callable[[Path | None, torch.device], FeatureExtractor]] = {
    "digits": _digits,  # 64, of a classifier's hidden layer: 8x8 digits
    "emoji": _emoji,  # 608, of an image-text scorer: 64x64 pictures in colour
    "inception": _inception,  # 2048, the only ones on which a Fréchet distance is called FID
}


def load_features(
    name: str, device: str | torch.device = "cpu", weights: str | os.PathLike[str] | None = None
) -> FeatureExtractor:
    """An extractor by its name.

    Args:
        name: a key of `EXTRACTORS`.
        device: where its network runs.
        weights: Inception's weights file; the others are inside the package.

    Raises:
        ConfigError: there is no such extractor, or it needs weights and has none.
        CheckpointError: the weights are missing or broken.
        MissingExtraError: torch-fidelity is not installed.
    """
    if name not in EXTRACTORS:
        raise ConfigError(f"features {name!r} are none of {', '.join(EXTRACTORS)}")
    if weights is not None and name != "inception":
        raise ConfigError(f"{name} features have their weights inside the package: leave out --features-weights")
    return EXTRACTORS[name](None if weights is None else Path(weights), torch.device(device))


def features_for(shape: tuple[int, int, int]) -> str:
    """The name of the shipped extractor for pictures (channels, height, width).

    Raises:
        ConfigError: there is none.
    """
    known = {(1, 8, 8): "digits", (3, 64, 64): "emoji"}
    if shape not in known:
        raise ConfigError(
            f"no shipped features are for pictures of {shape[0]}x{shape[1]}x{shape[2]}: give --features inception "
            "with --features-weights"
        )
    return known[shape]
