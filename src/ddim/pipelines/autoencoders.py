"""Another autoencoder for a pipeline, from wherever people have one: a folder, a pipeline's folder, a single file."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ddim.checkpoint import Repository
from ddim.checkpoint.files import outline
from ddim.checkpoint.loading import skeleton
from ddim.checkpoint.located import locate
from ddim.checkpoint.original_layout import family_of
from ddim.checkpoint.original_structure import Shapes, count, numbers_in, size
from ddim.checkpoint.pretrained import PretrainedModel, load_weights
from ddim.errors import CheckpointError, ConfigError
from ddim.models import AutoencoderKL, AutoencoderTiny
from ddim.pipelines.single_file import load_single_file

__all__ = ["load_autoencoder", "suits"]

CLASSES: dict[str, type[PretrainedModel]] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
# What the weights do not say, and the pipeline's own autoencoder does.
OF_THE_MODEL = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast", "sample_size")
OF_THE_LAYERS = ("norm_num_groups", "act_fn")


def load_autoencoder(
    place: str | os.PathLike[str],
    like: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> AutoencoderKL | AutoencoderTiny:
    """Load an autoencoder of either kind.

    Args:
        place: a folder or hub id that is one or that has one in its folder `vae`; or a `.safetensors` file, here or on
            huggingface.co: an autoencoder alone, in diffusers' layout or the original one, or a whole checkpoint.
        like: the config of the autoencoder that it takes the place of. A file of an autoencoder alone does not say by
            what its latents are multiplied: if it is of the same kind as that one, it is taken for one of that model.
        dtype: the parameters' type; float32 unless told.
        options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub.

    Raises:
        CheckpointError: there is no such file, or it is no autoencoder of these kinds.
        WeightsError: names or shapes are not an autoencoder's; all are listed.
        ConfigError: no autoencoder can be made of it.
    """
    if os.fspath(place).lower().partition("?")[0].endswith(".safetensors"):
        return _from_file(locate(place, options), like or {}, dtype)
    repository = Repository.open(place, options)
    if options:
        raise TypeError(f"load_autoencoder has no argument {', '.join(sorted(options))}")
    subfolder = None if repository.find("model_index.json") is None else "vae"
    config, path = AutoencoderKL.read_config(repository, subfolder)
    kind = config.get("_class_name", "AutoencoderKL")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise CheckpointError(f"{path} describes a {kind!r:.100}, and no {' and no '.join(CLASSES)}")
    found: Any = CLASSES[kind].load(repository, subfolder, dtype=dtype, variant=None)
    return found  # type: ignore[no-any-return]


def suits(vae: Any, pipeline: Any, name: object) -> None:
    """Raise a ConfigError unless an autoencoder's latents have the channels and the size that a pipeline's have.

    Args:
        vae: the autoencoder.
        pipeline: one with an autoencoder, `vae`.
        name: what the user calls the autoencoder.
    """
    own, given = (
        {"channels": config.latent_channels, "times fewer pixels on a side": 2 ** (len(config.block_out_channels) - 1)}
        for config in (pipeline.vae.config, vae.config)
    )
    for what in own:
        if own[what] != given[what]:
            raise ConfigError(
                f"{name} is an autoencoder whose latents have {given[what]} {what}, and the model's have {own[what]}: "
                "give one that was made for this model"
            )


def _from_file(file: Path, like: Mapping[str, Any], dtype: torch.dtype) -> AutoencoderKL | AutoencoderTiny:
    """The autoencoder in a file."""
    tensors = outline(file)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    same_kind = {name: like[name] for name in (*OF_THE_MODEL, *OF_THE_LAYERS) if name in like and "sample_size" in like}
    found: Any
    kind: type[PretrainedModel]
    if any(re.fullmatch(r"\d{1,2}\.conv\.0\.weight", name) for name in shapes):
        raise CheckpointError(
            f"{file} is one half of a TAESD, whose encoder and decoder are a file each in its own layout: give both in "
            "diffusers' layout, such as madebyollin/taesd, or madebyollin/taesdxl for Stable Diffusion XL"
        )
    if any(re.match(r"(en|de)coder\.layers\.\d", name) for name in shapes):
        kind, config = AutoencoderTiny, tiny_config(shapes)
    elif any(re.match(r"(en|de)coder\.(down_blocks|up_blocks|mid_block)\.", name) for name in shapes):
        kind, config = AutoencoderKL, {**kl_config(shapes), **same_kind}
    else:
        found = load_single_file(file, parts=["vae"], dtype=dtype)["vae"]
        alone = not any(name.startswith(prefix) for name in shapes for prefix in family_of(tensors).prefixes["unet"])
        if alone:
            found.register_to_config(**{name: same_kind[name] for name in OF_THE_MODEL if name in same_kind})
        return found  # type: ignore[no-any-return]
    with skeleton():
        found = kind.construct({"_class_name": kind.__name__, **config}, file)
    load_weights(found, [file], dtype)
    return found.eval()  # type: ignore[no-any-return]


# --- configs of files in diffusers' layout, which have none ----------------------------------------------------------


def kl_config(shapes: Shapes) -> dict[str, Any]:
    """The config of an AutoencoderKL, as far as the shapes of its tensors say it; where they do not, a possible one."""
    levels = max(1, count(shapes, r"encoder\.down_blocks\.(\d{1,4})\."))
    width = size(shapes, "encoder.conv_in.weight", 0, 128)
    return {
        "in_channels": size(shapes, "encoder.conv_in.weight", 1, 3),
        "out_channels": size(shapes, "decoder.conv_out.weight", 0, 3),
        "block_out_channels": [
            size(shapes, f"encoder.down_blocks.{level}.resnets.0.conv2.weight", 0, width) for level in range(levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": max(1, count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d{1,4})\.")),
        "latent_channels": size(shapes, "decoder.conv_in.weight", 1, 4),
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": any(name.startswith("decoder.mid_block.attentions.") for name in shapes),
        "sample_size": 512,
    }


def tiny_config(shapes: Shapes) -> dict[str, Any]:
    """The same for an AutoencoderTiny, whose layers are numbered through: convolutions, and blocks between them."""
    blocks: dict[str, list[int]] = {}
    for coder in ("encoder", "decoder"):
        convolutions = sorted(numbers_in(shapes, rf"{coder}\.layers\.(\d{{1,4}})\.weight"))
        inside = numbers_in(shapes, rf"{coder}\.layers\.(\d{{1,4}})\.conv\.")
        # Before the last convolution there are as many as there are resolutions.
        blocks[coder] = [
            sum(first < block < last for block in inside) for first, last in itertools.pairwise(convolutions)
        ] or [1]
    last = f"decoder.layers.{convolutions[-1] if convolutions else 0}.weight"
    widths = {coder: size(shapes, f"{coder}.layers.0.weight", 0, 64) for coder in blocks}
    return {
        "in_channels": size(shapes, "encoder.layers.0.weight", 1, 3),
        "out_channels": size(shapes, last, 0, 3),
        "latent_channels": size(shapes, "decoder.layers.0.weight", 1, 4),
        **{f"{coder}_block_out_channels": [widths[coder]] * len(counts) for coder, counts in blocks.items()},
        **{f"num_{coder}_blocks": counts for coder, counts in blocks.items()},
    }
