"""Checkpoints: a class's config and a network's weights, in diffusers' layout, loaded and saved.

config            constructor arguments <-> JSON
files             one file at a time: JSON and tensors
hub               where a checkpoint's files are: a folder, a bundled model, a repository of the hub
limits            what a config may ask for
loading           from names and tensors to a network
pretrained        classes that load and save by all of these
original_layout   Stable Diffusion's original names, tensor by tensor
lora_layout       low-rank adapters in all their layouts
"""

from ddim.checkpoint.config import Config, ConfigMixin, register_to_config
from ddim.checkpoint.files import (
    atomic_write,
    outline,
    read_json,
    read_metadata,
    read_tensors,
    save_tensors,
    write_json,
    write_text,
)
from ddim.checkpoint.hub import Repository, bundled_models, upload
from ddim.checkpoint.loading import check_state
from ddim.checkpoint.pretrained import (
    PretrainedMixin,
    PretrainedModel,
    Savable,
    choose_dtype,
    find_weights,
    fingerprint,
    load_weights,
)

__all__ = [
    "Config",
    "ConfigMixin",
    "PretrainedMixin",
    "PretrainedModel",
    "Repository",
    "Savable",
    "atomic_write",
    "bundled_models",
    "check_state",
    "choose_dtype",
    "find_weights",
    "fingerprint",
    "load_weights",
    "outline",
    "read_json",
    "read_metadata",
    "read_tensors",
    "register_to_config",
    "save_tensors",
    "upload",
    "write_json",
    "write_text",
]
