"""Checkpoints: configs and weights in diffusers' layout, loaded and saved.

config            a class's constructor arguments as a config, which is written as JSON
pickles           what a `.bin` would make in memory, found out before it is read
files             reads and writes one file: JSON or tensors
hub               finds a checkpoint's files: in a folder, among the bundled models, on the Hugging Face hub
locks             two processes do not write into one folder
nearby            what may have been meant by a name that is not there
limits            refuses configs that ask for too much
loading           puts tensors into a network by their names
saving            writes a network's weights, in one file or in several
difference        keeps a network as its difference to that of another model
pretrained        gives classes `from_pretrained` and `save_pretrained`, by all of these
original_layout   converts the names in Stable Diffusion's original single files
lora_layout       reads low-rank adapters in all layouts that are in use

The names below are loaded when they are first used: what `config`, `files` and `hub` say of a checkpoint can be asked
without PyTorch, which the commands do before they begin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "Config",
    "ConfigMixin",
    "PretrainedMixin",
    "PretrainedModel",
    "Repository",
    "Savable",
    "Saving",
    "atomic_write",
    "bundled_controlnets",
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

_HOMES = {
    "Config": "config",
    "ConfigMixin": "config",
    "PretrainedMixin": "pretrained",
    "PretrainedModel": "pretrained",
    "Repository": "hub",
    "Savable": "pretrained",
    "Saving": "saving",
    "atomic_write": "files",
    "bundled_controlnets": "hub",
    "bundled_models": "hub",
    "check_state": "loading",
    "choose_dtype": "pretrained",
    "find_weights": "pretrained",
    "fingerprint": "pretrained",
    "load_weights": "pretrained",
    "outline": "files",
    "read_json": "files",
    "read_metadata": "files",
    "read_tensors": "files",
    "register_to_config": "config",
    "save_tensors": "files",
    "upload": "hub",
    "write_json": "files",
    "write_text": "files",
}

if TYPE_CHECKING:
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
    from ddim.checkpoint.hub import Repository, bundled_controlnets, bundled_models, upload
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
    from ddim.checkpoint.saving import Saving
else:  # a type checker that saw this function would take every name for one of ours, misspelt ones too

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'ddim.checkpoint' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"ddim.checkpoint.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
