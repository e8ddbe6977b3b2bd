"""DiffusionPipeline: read model_index.json, pick the class, load its parts."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ddim.checkpoint import PretrainedModel, Repository, read_json, upload, write_json
from ddim.config import DIFFUSERS_VERSION
from ddim.errors import CheckpointError
from ddim.process import Generators, gaussian_noise, seeded_generators
from ddim.scheduler import DDIMScheduler

INDEX = "model_index.json"

# What a model_index.json may name, and where it is here. Every scheduler becomes a DDIMScheduler.
PIPELINES = {
    "DDIMPipeline": "ddim.pipelines.unconditional",
    "DDPMPipeline": "ddim.pipelines.unconditional:DDIMPipeline",
}
NETWORKS = {"UNet2DModel": "ddim.models"}


def _class(name: str, table: dict[str, str], what: str, index: str) -> Any:
    if not isinstance(name, str) or name not in table:
        raise CheckpointError(f"{index} names the {what} {name!r:.100}; known are {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


class DiffusionPipeline:
    """Networks and a scheduler that together make images; this class loads any of its subclasses."""

    # The parts' names, in the constructor's order.
    parts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **components: Any) -> None:
        self.components: dict[str, Any] = {}
        self._progress: dict[str, Any] = {}
        for name, component in components.items():
            setattr(self, name, component)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.parts:
            self.components[name] = value
        super().__setattr__(name, value)

    # --- loading and saving ------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a pipeline from a folder in diffusers' layout, a bundled model or a repository of the hub.

        Args:
            pretrained_model_name_or_path: for example "./my-model", "digits" or "google/ddpm-cifar10-32".
            dtype: the networks' type, float32 unless told; `torch_dtype` is its older name.
            variant: "fp16" reads the `.fp16.safetensors` files.
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub; a part by its
                name (`unet=…`, `scheduler=…`) is used instead of the stored one.

        Raises:
            CheckpointError: a file is missing, broken, or names a class that this package does not have.
            WeightsError: weights do not fit their config.
        """
        hub = {key: options[key] for key in _hub_options() & set(options)}
        repository = Repository.open(pretrained_model_name_or_path, options)
        path = repository.find(INDEX)
        if path is None:
            raise CheckpointError(f"{repository.name} has no {INDEX}: it is no pipeline")
        index = read_json(path)
        pipeline = _class(index.get("_class_name", ""), PIPELINES, "pipeline", str(path))
        if not issubclass(pipeline, cls):
            raise CheckpointError(f"{path} is a {pipeline.__name__}, not a {cls.__name__}: use DiffusionPipeline")
        unknown = sorted(set(options) - set(pipeline.parts))
        if unknown:
            raise TypeError(f"{pipeline.__name__}.from_pretrained has no argument {', '.join(unknown)}")
        components = {}
        for name in pipeline.parts:
            if name in options:
                components[name] = options[name]
            elif name == "scheduler":
                components[name] = DDIMScheduler.from_pretrained(repository.name, subfolder=name, **hub)
            else:
                entry = index.get(name)
                if not isinstance(entry, list) or len(entry) != 2:
                    raise CheckpointError(f"{path} does not say what its {name} is")
                network = _class(entry[1], NETWORKS, name, str(path))
                components[name] = network.from_pretrained(
                    repository.name, subfolder=name, dtype=dtype, torch_dtype=torch_dtype, variant=variant, **hub
                )
        return cast(Self, pipeline(**components))

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        *,
        variant: str | None = None,
        **options: Any,
    ) -> None:
        """Save into a folder that `from_pretrained` reads, here and in diffusers; the index is written last."""
        index: dict[str, Any] = {"_class_name": type(self).__name__, "_diffusers_version": DIFFUSERS_VERSION}
        for name, component in self.components.items():
            folder = Path(save_directory) / name
            if isinstance(component, PretrainedModel):
                component.save_pretrained(folder, variant=variant)
            else:
                component.save_pretrained(folder)
            index[name] = ["diffusers", type(component).__name__]
        write_json(Path(save_directory) / INDEX, index)
        if push_to_hub:
            upload(save_directory, **{"repo_id": Path(save_directory).name, **options})

    # --- where it runs -----------------------------------------------------------------------------------------------

    @property
    def _networks(self) -> list[nn.Module]:
        return [component for component in self.components.values() if isinstance(component, nn.Module)]

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self._networks[0].parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the networks' parameters."""
        return next(self._networks[0].parameters()).dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or convert the networks, as `torch.nn.Module.to`."""
        for network in self._networks:
            network.to(*args, **kwargs)
        return self

    # --- running -----------------------------------------------------------------------------------------------------

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Arguments for tqdm; `disable=True` turns the bar off."""
        self._progress = kwargs

    def progress_bar(self, total: int) -> tqdm[Any]:
        return tqdm(total=total, **self._progress)

    def _initial_noise(
        self, shape: tuple[int, ...], generator: Generators, seed: int | Sequence[int] | None, latents: Tensor | None
    ) -> tuple[Tensor, Generators]:
        """x_T, and the generators of what noise the steps add."""
        if seed is not None:
            if generator is not None:
                raise ValueError("give a generator or a seed, not both")
            generator = seeded_generators(seed, shape[0])
        if latents is None:
            return gaussian_noise(shape, generator, self.device, self.dtype), generator
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}, needed is {shape}")
        return latents.to(self.device, self.dtype), generator


def _hub_options() -> set[str]:
    return {"revision", "token", "cache_dir", "local_files_only", "force_download"}
