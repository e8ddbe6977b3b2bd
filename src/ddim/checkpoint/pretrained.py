"""Gives classes their loading and saving in diffusers' layout: a config and, for networks, weights.

`files` reads and writes one file, `hub` knows where a checkpoint's files are, and this module says which of them make
an object. A config may come from anyone: if no object of a sensible size can be made from it, the error names its file.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, overload

import torch
from torch import Tensor, nn

from ddim.checkpoint.config import ConfigMixin
from ddim.checkpoint.files import atomic_write, outline, read_json, read_tensors, save_tensors, write_text
from ddim.checkpoint.hub import Repository, upload
from ddim.checkpoint.limits import check_kinds, check_size
from ddim.checkpoint.loading import check_state, fill, skeleton
from ddim.errors import CheckpointError, ConfigError, WeightsError

WEIGHTS = "diffusion_pytorch_model.safetensors"


class Savable:
    """Gives a class that has `write` the methods `save_pretrained` and `push_to_hub`."""

    def write(self, folder: Path, variant: str | None) -> None:
        """Write the object's files into a folder; `variant` goes into the names of weights."""
        raise NotImplementedError

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        *,
        variant: str | None = None,
        **options: Any,
    ) -> None:
        """Save into a folder, which is made if it is not there.

        Args:
            save_directory: the folder.
            push_to_hub: whether the folder is also uploaded.
            variant: goes into the names of the weights: "fp16" makes `diffusion_pytorch_model.fp16.safetensors`.
            options: with `push_to_hub`, the options of the method `push_to_hub`, and `repo_id`, which is the folder's
                name unless told.

        Raises:
            TypeError: there are options without `push_to_hub`.
            CheckpointError: the file system or the hub refuses.
        """
        if options and not push_to_hub:
            raise TypeError(f"without push_to_hub=True, save_pretrained has no argument {', '.join(sorted(options))}")
        self.write(Path(save_directory), variant)
        if push_to_hub:
            upload(save_directory, **options)

    def push_to_hub(self, repo_id: str, *, variant: str | None = None, **options: Any) -> str:
        """Save and upload to a repository of the hub, which is made if it is not there.

        Args:
            repo_id: "name" or "owner/name".
            variant: as in `save_pretrained`.
            options: `commit_message`, `private`, `token`, `revision`, `create_pr`, `subfolder`: see `hub.upload`.

        Returns:
            The commit's URL.

        Raises:
            CheckpointError: the hub refuses, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.write(Path(folder), variant)
            return upload(folder, repo_id, **options)


class Stored(ConfigMixin, Savable):
    """A class whose objects are made from a config in a JSON file."""

    def write(self, folder: Path, variant: str | None) -> None:
        self.save_config(folder)

    def save_config(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **options: Any) -> None:
        """Write the config file into a folder, which is made if it is not there.

        Args:
            save_directory: the folder.
            push_to_hub: whether the folder is also uploaded.
            options: with `push_to_hub`, those of the method `push_to_hub`.

        Raises:
            TypeError: there are options without `push_to_hub`.
            CheckpointError: the file system or the hub refuses.
        """
        if options and not push_to_hub:
            raise TypeError(f"without push_to_hub=True, save_config has no argument {', '.join(sorted(options))}")
        self.to_json_file(Path(save_directory) / self.config_name)
        if push_to_hub:
            upload(save_directory, **options)

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write the config into a file.

        Raises:
            CheckpointError: the file system refuses.
        """
        write_text(json_file_path, self.to_json_string())

    @classmethod
    def load_config(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **options: Any,
    ) -> Any:
        """Read the class's config file.

        Args:
            pretrained_model_name_or_path: the file itself, a folder that has it, a bundled model or a hub id.
            subfolder: the folder in it that the file is in.
            return_unused_kwargs: also return the options that are not for the hub.
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub.

        Returns:
            The config, or `(config, unused options)`.

        Raises:
            CheckpointError: there is no such file, or it holds no JSON object.
        """
        repository = Repository.open(pretrained_model_name_or_path, options)
        config, _ = cls.read_config(repository, subfolder)
        return (config, options) if return_unused_kwargs else config

    @classmethod
    def get_config_dict(cls, *args: Any, **options: Any) -> Any:
        """The older name of `load_config`."""
        return cls.load_config(*args, **options)

    @classmethod
    def read_config(cls, repository: Repository, subfolder: str | None = None) -> tuple[dict[str, Any], Path]:
        """The class's config in a repository, and the file that it is in.

        Raises:
            CheckpointError: there is no such file, or it holds no JSON object.
        """
        found: Path | None = Path(repository.name)
        if not os.path.isfile(repository.name):
            found = repository.find(cls.config_name, subfolder)
            if found is None and subfolder and repository.folder:  # as in diffusers, a path may name the subfolder
                found = repository.find(cls.config_name)
        if found is None:
            raise CheckpointError(f"there is no {_path(cls.config_name, subfolder)} in {repository}")
        return read_json(found), found

    @classmethod
    def construct(cls, config: Mapping[str, Any], path: Path, **options: Any) -> Any:
        """`from_config` with a config that was read from a file.

        Args:
            config: what the file holds.
            path: the file, for errors.
            options: as `from_config` takes them.

        Raises:
            ConfigError: no object of this class can be made from the config; the message names the file.
        """
        check_size(config, path)
        check_kinds(cls, config, path)
        try:
            return cls.from_config(config, **options)
        except Warning:  # where warnings are made errors, a warning is not the config's fault
            raise
        except Exception as error:  # nonsensical settings can make a constructor fail in any way
            why = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
            raise ConfigError(f"{path} makes no {cls.__name__}: {why[:1000]}") from error


class PretrainedMixin(Stored):
    """Gives a class that consists of its config, such as a scheduler, its loading and saving."""

    @overload
    @classmethod
    def from_config(cls, config: Any, return_unused_kwargs: Literal[False] = ..., **overrides: Any) -> Self: ...

    @overload
    @classmethod
    def from_config(
        cls, config: Any, return_unused_kwargs: bool, **overrides: Any
    ) -> Self | tuple[Self, dict[str, Any]]: ...

    @classmethod
    def from_config(
        cls, config: Any, return_unused_kwargs: bool = False, **overrides: Any
    ) -> Self | tuple[Self, dict[str, Any]]:
        """`ConfigMixin.from_config`; a path or a hub id in the place of a config is loaded, as `from_pretrained` does.

        Args:
            config: a dict, or what `from_pretrained` takes.
            return_unused_kwargs, overrides: as the one or the other has them, such as `subfolder="scheduler"`.
        """
        if isinstance(config, (str, os.PathLike)):
            loaded: Self = cls.from_pretrained(config, return_unused_kwargs=return_unused_kwargs, **overrides)
            return loaded
        return super().from_config(config, return_unused_kwargs, **overrides)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **options: Any,
    ) -> Any:
        """Build from a stored config.

        Args:
            pretrained_model_name_or_path: the file itself, a folder that has it, a bundled model or a hub id.
            subfolder: the folder in it that the file is in, for example "scheduler".
            return_unused_kwargs: return `(object, settings that the constructor did not take)`.
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub. Any other is a
                setting and replaces that of the file.

        Raises:
            CheckpointError: there is no such file, or it holds no JSON object.
            ConfigError: no object of this class can be made from the config.
        """
        repository = Repository.open(pretrained_model_name_or_path, options)
        config, path = cls.read_config(repository, subfolder)
        return cls.construct(config, path, return_unused_kwargs=return_unused_kwargs, **options)


class PretrainedModel(Stored, nn.Module):
    """A network with a config, whose weights are stored in diffusers' layout.

    A subclass may override `convert_key`, to read older names, and `weights_name`, the file's name.
    """

    weights_name: ClassVar[str] = WEIGHTS

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' type."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device that the parameters are on."""
        return next(self.parameters()).device

    @classmethod
    def convert_key(cls, key: str) -> str | None:
        """The name in this network of a tensor in a file; None for a tensor that the network does not need."""
        return key

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        *,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        **options: Any,
    ) -> Self:
        """Load config and weights. The network is in eval mode, on the CPU.

        Args:
            pretrained_model_name_or_path: a folder, a bundled model or a hub id.
            subfolder: the folder in it that the network's files are in, for example "unet".
            torch_dtype: the older name of `dtype`.
            dtype: the parameters' type; float32 unless told.
            variant: "fp16" reads `diffusion_pytorch_model.fp16.safetensors`.
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub. Any other is a
                setting and replaces that of the config.

        Raises:
            CheckpointError: a file is missing, is broken or belongs to another class.
            WeightsError: names, shapes or types of the weights are not this network's; the message lists all.
            ConfigError: no network of this class can be made from the config.
        """
        repository = Repository.open(pretrained_model_name_or_path, options)
        return cls.load(repository, subfolder, dtype=choose_dtype(dtype, torch_dtype), variant=variant, **options)

    @classmethod
    def load(
        cls, repository: Repository, subfolder: str | None, *, dtype: torch.dtype, variant: str | None, **overrides: Any
    ) -> Self:
        """`from_pretrained` for a repository that is already open; `overrides` replace settings of the config."""
        if os.path.isfile(repository.name):
            raise CheckpointError(f"{repository.name} is a file: give the folder that it is in")
        config, path = cls.read_config(repository, subfolder)
        stored = config.get("_class_name", cls.__name__)
        if stored != cls.__name__:
            raise CheckpointError(f"{path} describes a {stored!r:.100}, not a {cls.__name__}: load it with that class")
        with skeleton():
            model: Self = cls.construct(config, path, **overrides)
        load_weights(model, find_weights(repository, cls.weights_name, subfolder, variant), dtype)
        return model.eval()

    def write(self, folder: Path, variant: str | None) -> None:
        """Write config and weights, in the parameters' type. If one of the two cannot be written, neither is."""
        with atomic_write(folder / self.config_name) as config:
            config.write_text(self.to_json_string(), encoding="utf-8")
            save_tensors(folder / _with_variant(self.weights_name, variant), self.state_dict())


def choose_dtype(dtype: torch.dtype | None, torch_dtype: torch.dtype | None) -> torch.dtype:
    """The type that `dtype=` or its older name `torch_dtype=` asks for; float32 if neither is given.

    Raises:
        ValueError: both are given and differ.
        TypeError: it is no floating-point type.
    """
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise ValueError(f"dtype={dtype} and its older name torch_dtype={torch_dtype} contradict each other")
    chosen = dtype or torch_dtype or torch.float32
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type such as torch.float16, not {chosen!r}")
    return chosen


def fingerprint(network: nn.Module) -> str:
    """A SHA-256 hash, in hexadecimal, of the names and bytes of all that a network stores.

    The same weights have the same fingerprint on every device; weights that were converted to another type have another
    one. Types and shapes are not part of it.
    """
    sha = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


# --- weights ---------------------------------------------------------------------------------------------------------


def _path(filename: str, subfolder: str | None) -> str:
    """A file's path in a repository."""
    return "/".join(part for part in (subfolder, filename) if part)


def _with_variant(filename: str, variant: str | None) -> str:
    """A file's name with the variant before its last dot: model.fp16.safetensors, model.safetensors.index.fp16.json."""
    stem, _, suffix = filename.rpartition(".")
    return f"{stem}.{variant}.{suffix}" if variant else filename


def find_weights(repository: Repository, name: str, subfolder: str | None, variant: str | None) -> list[Path]:
    """The weight files of one network: a .safetensors file or its parts ("shards"), or else a .bin file or its parts.

    Args:
        repository: where they are looked for.
        name: the name of the .safetensors file.
        subfolder: the network's folder in the repository.
        variant: as in `PretrainedModel.from_pretrained`.

    Raises:
        CheckpointError: there are none; the message lists the files that were looked for.
    """
    bin_name = name.replace(".safetensors", ".bin")
    if name.startswith("model."):  # a text encoder, whose .bin transformers names otherwise
        bin_name = "pytorch_" + bin_name
    looked_for = []
    for candidate in (name, bin_name):
        whole, index = _with_variant(candidate, variant), _with_variant(f"{candidate}.index.json", variant)
        looked_for += [_path(whole, subfolder), _path(index, subfolder)]
        path = repository.find(whole, subfolder)
        if path is not None:
            return [path]
        path = repository.find(index, subfolder)
        if path is not None:
            return [_shard(repository, shard, subfolder, path) for shard in _shards(path)]
    hint = f" (is there one without variant={variant!r}?)" if variant else ""
    raise CheckpointError(f"there are no weights in {repository}: looked for {', '.join(looked_for)}{hint}")


def _shards(index: Path) -> list[str]:
    """The names of the files that an index says a network's weights are divided into."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map, which says the file of each tensor")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.(safetensors|bin)", shard):
            raise CheckpointError(f"{index} names {str(shard)[:200]!r}, which is no weight file beside it")
    return sorted(set(weight_map.values()))


def _shard(repository: Repository, shard: str, subfolder: str | None, index: Path) -> Path:
    """The path of one of the files that an index names."""
    path = repository.find(shard, subfolder)
    if path is None:
        raise CheckpointError(f"{index} names {shard[:200]}, which is missing")
    return path


def load_weights(model: PretrainedModel, files: list[Path], dtype: torch.dtype) -> None:
    """Put the tensors of files into a network that was made in `skeleton`. Those of the right type are not copied.

    Args:
        model: the network.
        files: what `find_weights` found.
        dtype: the type that the network's parameters get.

    Raises:
        WeightsError: names are missing or unexpected, or shapes or types are wrong, of which one message lists all; or
            a tensor is there twice.
    """
    what = f"{', '.join(map(str, files))} does not fit {type(model).__name__}"
    places: dict[str, tuple[Path, str]] = {}  # the network's name of a tensor -> the file, and the name in the file
    state: dict[str, Tensor] = {}
    for file in files:
        for stored, tensor in outline(file).items():
            key = model.convert_key(stored)
            if key is None:
                continue
            if key in places:
                raise WeightsError(f"{what}: {stored[:200]} is there twice, maybe under an older name or in two files")
            places[key], state[key] = (file, stored), tensor
    check_state(model.state_dict(), state, what)

    def read(keys: Collection[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for file in files:
            names = {places[key][1]: key for key in keys if places[key][0] == file}
            tensors = read_tensors(file, names) if names else {}
            found |= {names[stored]: tensor for stored, tensor in tensors.items()}
        return found

    fill(model, state, read, dtype, what)
