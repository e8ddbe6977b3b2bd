"""The numbers that Stable Diffusion XL is told beside the timestep: sizes, crops, and how good a picture looks.

In training they said of each picture how large it was before it was resized, where it was cut, and either to which size
or, of the refiner, how high an estimator of aesthetics had rated it (Podell et al. 2024, section 2.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ddim.errors import ConfigError

Pair: TypeAlias = Sequence[int]  # (height, width), or (top, left), in pixels


@dataclass(frozen=True)
class Sizes:
    """What a call says of them; sizes that are None are those of what is drawn, and negative ones those of the others.

    Attributes:
        original_size, target_size: (height, width).
        crops_coords_top_left: (top, left).
        negative_original_size, negative_crops_coords_top_left, negative_target_size: told with the negative prompt.
        aesthetic_score, negative_aesthetic_score: told in the place of the target sizes by a model that knows them.
    """

    original_size: Pair | None = None
    crops_coords_top_left: Pair = (0, 0)
    target_size: Pair | None = None
    negative_original_size: Pair | None = None
    negative_crops_coords_top_left: Pair = (0, 0)
    negative_target_size: Pair | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5

    def __post_init__(self) -> None:
        """Check them.

        Raises:
            ValueError: no pair of numbers, or no number.
        """
        for name in ("original_size", "target_size", "negative_original_size", "negative_target_size"):
            if getattr(self, name) is not None:
                _check_pair(name, getattr(self, name), "(height, width)")
        for name in ("crops_coords_top_left", "negative_crops_coords_top_left"):
            _check_pair(name, getattr(self, name), "(top, left)")
        for name in ("aesthetic_score", "negative_aesthetic_score"):
            if not _is_number(getattr(self, name)):
                raise ValueError(f"{name} must be a number, not {getattr(self, name)!r:.50}")

    def numbers(self, drawn: Pair, has_score: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The numbers that go with the prompt, and those that go with the negative one.

        As in diffusers, the negative prompt's crop is the prompt's unless sizes or a crop are given for it, or the
        model knows scores.

        Args:
            drawn: the height and the width of the pictures.
            has_score: whether the model is told a score and no target size.
        """
        original, target = self.original_size or drawn, self.target_size or drawn
        own = self.negative_original_size is not None and self.negative_target_size is not None
        is_given = own or has_score or any(self.negative_crops_coords_top_left)
        crop = self.negative_crops_coords_top_left if is_given else self.crops_coords_top_left
        negative_original, negative_target = (
            self.negative_original_size or original,
            self.negative_target_size or target,
        )
        if has_score:
            return (
                (*original, *self.crops_coords_top_left, self.aesthetic_score),
                (*negative_original, *crop, self.negative_aesthetic_score),
            )
        return (*original, *self.crops_coords_top_left, *target), (*negative_original, *crop, *negative_target)


def has_score(config: Mapping[str, Any], pooled: int) -> bool:
    """Whether a U-Net is told an aesthetic score in the place of the target size, as the refiner is.

    Args:
        config: of the U-Net.
        pooled: the channels of a text's vector.

    Raises:
        ConfigError: it is told nothing, or another number of things.
    """
    if config.get("addition_embed_type") != "text_time":
        raise ConfigError(
            "this U-Net is none of Stable Diffusion XL, as its config has no addition_embed_type='text_time': use "
            "StableDiffusionPipeline"
        )
    told = config["projection_class_embeddings_input_dim"] - pooled
    count, rest = divmod(told, config["addition_time_embed_dim"])
    if rest or count not in (5, 6):
        raise ConfigError(
            f"this U-Net is told {config['projection_class_embeddings_input_dim']} features, which are no text's "
            f"vector of {pooled} channels and 5 or 6 numbers of {config['addition_time_embed_dim']} features each: the "
            "second text encoder, or pooled_prompt_embeds, is another model's"
        )
    return bool(count == 5)


def _check_pair(name: str, value: Any, words: str) -> None:
    is_pair = isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_number, value))
    if not is_pair:
        raise ValueError(f"{name} must be two numbers, {words}, not {value!r:.50}")


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9 and not math.isnan(value)
    )
