"""What a config from a file may ask for.

A file may come from anyone. A setting of the wrong kind, or of a size that would take minutes and gigabytes to build
before it turns out wrong, is refused as soon as the file has been read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ddim.errors import ConfigError

MAX_TIMESTEPS = 100_000
MAX_BLOCKS = 500  # residual blocks, transformer blocks and layers of text in a network; the largest published have 150
MAX_SIDE = 2**13  # a sample's height or width
MAX_AREA = 2**20  # both of them, multiplied: what is drawn by a model unless another size is asked for
MAX_INT = 2**53  # above this, not every int has a float of the same value

# The least and the most that a setting may be, alone or in a list. Beyond these the network would fail when it is
# called, or make nothing but NaN.
_COUNT, _FACTOR = (1, 2**31 - 1), (1e-6, 1e6)
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("in_channels", "out_channels", "latent_channels", "hidden_size", "intermediate_size"), _COUNT),
    **dict.fromkeys(("vocab_size", "num_class_embeds", "num_attention_heads", "cross_attention_dim"), _COUNT),
    **dict.fromkeys(("projection_dim", "addition_time_embed_dim"), _COUNT),
    **dict.fromkeys(("time_embedding_dim", "time_cond_proj_dim", "projection_class_embeddings_input_dim"), _COUNT),
    **dict.fromkeys(("attention_head_dim", "norm_num_groups", "attn_norm_num_groups"), _COUNT),
    **dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), _COUNT),
    **dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (0, 2**31 - 1)),
    "upsampling_scaling_factor": (1, 16),
    "latent_magnitude": _FACTOR,
    "latent_shift": (-1e6, 1e6),
    "max_position_embeddings": (2, 2**31 - 1),  # a text begins and ends with a token
    **dict.fromkeys(("layers_per_block", "num_hidden_layers"), (1, 2**31 - 1)),
    **dict.fromkeys(("transformer_layers_per_block", "reverse_transformer_layers_per_block"), (0, 2**31 - 1)),
    "num_train_timesteps": (1, MAX_TIMESTEPS),
    "sample_size": (1, MAX_SIDE),
    "downsample_padding": (0, 1),  # with more, the way up finds no features of its size
    **dict.fromkeys(("conv_in_kernel", "conv_out_kernel"), (1, 31)),
    "freq_shift": (0, 1),
    **dict.fromkeys(("norm_eps", "layer_norm_eps", "dropout", "attention_dropout"), (0, 1)),
    **dict.fromkeys(("mid_block_scale_factor", "scaling_factor", "latents_std", "initializer_factor"), _FACTOR),
    **dict.fromkeys(("shift_factor", "latents_mean"), (-1e6, 1e6)),
}

# For each type in a constructor's annotations: its name in errors, and the types of JSON values that are accepted.
_KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool, int)),
    int: ("an integer", (int,)),
    float: ("a number", (int, float)),
    str: ("a string", (str,)),
    **dict.fromkeys((tuple, list, Sequence), ("a list", (list,))),
    **dict.fromkeys((dict, Mapping), ("an object", (dict,))),
}


def check_size(config: Mapping[str, Any], path: Path) -> None:
    """Refuse numbers that no network of this kind works with, and sizes that would take minutes and gigabytes.

    Args:
        config: what was read.
        path: the file it is from, for the error.

    Raises:
        ConfigError: a number is out of its range, or the layers are more than any network has.
    """
    for key, (least, most) in RANGES.items():
        for value in _numbers(config.get(key)):
            if not least <= value <= most:
                raise ConfigError(f"{path}: {key} must be from {least:.10g} to {most:.10g}, but is {value!r:.50}")
    sides = _numbers(config.get("sample_size"))
    if math.prod(sides * 2 if len(sides) == 1 else sides) > MAX_AREA and config.get("_class_name") != "AutoencoderKL":
        raise ConfigError(f"{path}: sample_size={sides!r:.100} has more than {MAX_AREA} pixels, the most allowed")
    blocks = _blocks(config)
    if blocks > MAX_BLOCKS:
        raise ConfigError(
            f"{path} asks for {blocks:.0f} residual and transformer blocks: {MAX_BLOCKS} are more than any network has"
        )


def _blocks(config: Mapping[str, Any]) -> float:
    """How many residual and transformer blocks, and layers of text, a config asks for."""
    lists = [value for key, value in config.items() if isinstance(value, list) and not key.startswith(("trained", "_"))]
    levels = max(map(len, lists), default=1)

    def at_each_level(key: str, usual: float) -> list[float]:
        value = config.get(key)
        values = [max(_numbers(each), default=usual) for each in (value if isinstance(value, list) else [value])]
        return values if len(values) > 1 else values * levels

    ways = sum(
        (2 * layers + 1) * (1 + max(down, up))
        for layers, down, up in zip_longest(
            at_each_level("layers_per_block", 1),
            at_each_level("transformer_layers_per_block", 0),
            reversed(at_each_level("reverse_transformer_layers_per_block", 0)),
            fillvalue=1,
        )
    )
    tiny = sum(_numbers(config.get("num_encoder_blocks")) + _numbers(config.get("num_decoder_blocks")))
    return ways + tiny + max(_numbers(config.get("num_hidden_layers")), default=0)


def _numbers(value: Any) -> list[float]:
    """All numbers in a setting, which may be a list of lists; booleans are none."""
    numbers, left = [], [value]
    while left:
        item = left.pop()
        if isinstance(item, list):
            left += reversed(item)
        elif isinstance(item, (int, float)) and not isinstance(item, bool):
            numbers.append(item)
    return numbers


def check_kinds(cls: type, config: Mapping[str, Any], path: Path) -> None:
    """Refuse settings of another kind than the class's constructor is annotated with, such as a string for a number.

    Some of these would otherwise fail only when the object is used. The items of lists are left to the constructor.

    Args:
        cls: the class whose constructor says the kinds.
        config: what was read.
        path: the file it is from, for the error.

    Raises:
        ConfigError: a setting is of the wrong kind; the message names the file and the setting.
    """
    for name, hint in get_type_hints(cls.__init__).items():  # type: ignore[misc]
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = [_KINDS[kind] for option in options if (kind := _kind(option)) in _KINDS]
        if name not in config or not kinds or Any in options:
            continue
        value = config[name]
        accepted = {kind for _, types in kinds for kind in types} | ({NoneType} & set(options))
        if type(value) not in accepted or (isinstance(value, int) and abs(value) > MAX_INT):
            wanted = " or ".join(dict.fromkeys(words for words, _ in kinds))
            raise ConfigError(f"{path}: {name} must be {wanted}, not {'null' if value is None else repr(value)[:100]}")


def _kind(option: Any) -> Any:
    """What a type of an annotation is of: a list for a list of numbers, a string for a choice of words."""
    origin = get_origin(option)
    return type(get_args(option)[0]) if origin is Literal else origin or option
