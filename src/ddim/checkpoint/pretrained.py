"""Gives classes their loading and saving in diffusers' layout: a config and, for networks, weights.

`files` reads and writes one file, `hub` knows where a checkpoint's files are, and this module says which of them make
an object. A config may come from anyone: if no object of a sensible size can be made from it, the error names its file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast, overload

import torch
from torch import Tensor, nn

from ddim.checkpoint.config import ConfigMixin
from ddim.checkpoint.difference import DIFFERENCE, add_difference
from ddim.checkpoint.files import atomic_write, outline, read_json, read_tensors, write_text
from ddim.checkpoint.hub import Repository, upload
from ddim.checkpoint.limits import check_kinds, check_size
from ddim.checkpoint.loading import check_state, fill, skeleton
from ddim.checkpoint.saving import Saving, bin_name, save_weights, size_in_bytes, with_variant
from ddim.errors import CheckpointError, ConfigError, WeightsError

WEIGHTS = "diffusion_pytorch_model.safetensors"


class Savable:
    """Gives a class that has `write` the methods `save_pretrained` and `push_to_hub`."""

    def write(self, folder: Path, saving: Saving) -> None:
        """Write the object's files into a folder; `saving` says how, of files of weights."""
        raise NotImplementedError

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        push_to_hub: bool = False,
        variant: str | None = None,
        safe_serialization: bool = True,
        max_shard_size: int | str = "10GB",
        is_main_process: bool = True,
        save_function: Any = None,
        **options: Any,
    ) -> None:
        """Save into a folder, which is made if it is not there.

        Args:
            save_directory: the folder.
            push_to_hub: whether the folder is also uploaded.
            variant: goes into the names of the weights: "fp16" makes `diffusion_pytorch_model.fp16.safetensors`.
            safe_serialization: write weights as `.safetensors`; False writes `.bin`, which other programs must trust.
            max_shard_size: a network whose weights are larger is divided into several files: a number of bytes, or a
                text such as "500MB".
            is_main_process: False saves nothing, for those processes of a distributed training that shall not.
            save_function: not used; a warning says so.
            options: with `push_to_hub`, the options of the method `push_to_hub`, and `repo_id`, which is the folder's
                name unless told.

        Raises:
            TypeError: there are options without `push_to_hub`.
            ValueError: `max_shard_size` is no size.
            CheckpointError: the file system or the hub refuses.
        """
        if options and not push_to_hub:
            raise TypeError(f"without push_to_hub=True, save_pretrained has no argument {', '.join(sorted(options))}")
        if save_function is not None:
            warnings.warn(
                "save_function is not used: every file is written under a temporary name and then renamed. "
                "In a distributed training, give is_main_process=accelerator.is_main_process",
                stacklevel=2,
            )
        saving = Saving(variant, safe_serialization, size_in_bytes(max_shard_size))
        if not is_main_process:
            return
        self.write(Path(save_directory), saving)
        if push_to_hub:
            upload(save_directory, **options)

    def push_to_hub(
        self, repo_id: str, *, variant: str | None = None, safe_serialization: bool = True, **options: Any
    ) -> str:
        """Save and upload to a repository of the hub, which is made if it is not there.

        Args:
            repo_id: "name" or "owner/name".
            variant, safe_serialization: as in `save_pretrained`.
            options: `commit_message`, `private`, `token`, `revision`, `create_pr`, `subfolder`: see `hub.upload`.

        Returns:
            The commit's URL.

        Raises:
            CheckpointError: the hub refuses, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.write(Path(folder), Saving(variant, safe_serialization))
            return upload(folder, repo_id, **options)


class Stored(ConfigMixin, Savable):
    """A class whose objects are made from a config in a JSON file."""

    def write(self, folder: Path, saving: Saving) -> None:
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
    _keep_in_fp32_modules: ClassVar[None] = None  # diffusers asks for it: all parameters have one type here

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
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        device_map: DeviceMap = None,
        low_cpu_mem_usage: bool = True,
        output_loading_info: bool = False,
        **options: Any,
    ) -> Self | Any:
        """Load config and weights. The network is in eval mode.

        Args:
            pretrained_model_name_or_path: a folder, a bundled model or a hub id.
            subfolder: the folder in it that the network's files are in, for example "unet".
            torch_dtype: the older name of `dtype`.
            dtype: the parameters' type; float32 unless told. "auto" takes the type that they are stored in.
            variant: "fp16" reads `diffusion_pytorch_model.fp16.safetensors`; so does None, with a warning, where there
                are no plain files.
            use_safetensors: True reads `.safetensors` alone, False `.bin` alone; otherwise the first if there is one.
            device_map: the device that the network is put on, the CPU unless told. "auto", "balanced" and the like put
                it on the first GPU if there is one, as a network is not divided here.
            low_cpu_mem_usage: has no effect: weights are never in memory twice.
            output_loading_info: return `(network, info)`, where info lists what was missing or unexpected: nothing, as
                that would be an error here.
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub. Any other is a
                setting and replaces that of the config.

        Raises:
            CheckpointError: a file is missing, is broken or belongs to another class.
            WeightsError: names, shapes or types of the weights are not this network's; the message lists all.
            ConfigError: no network of this class can be made from the config.
            ValueError: the `device_map` divides the network, or an option is not implemented.

        Warns:
            UserWarning: an option for what is not done here has no effect.
        """
        device = chosen_device(device_map)
        leave_out_unimplemented(options)
        repository = Repository.open(pretrained_model_name_or_path, options)
        model = cls.load(
            repository,
            subfolder,
            dtype=choose_dtype(dtype, torch_dtype, auto=None),
            variant=variant,
            use_safetensors=use_safetensors,
            **options,
        )
        if device is not None:
            model.to(device)
        nothing = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        return (model, {name: [] for name in nothing}) if output_loading_info else model

    @classmethod
    def load(
        cls,
        repository: Repository,
        subfolder: str | None,
        *,
        dtype: torch.dtype | None,
        variant: str | None,
        use_safetensors: bool | None = None,
        **overrides: Any,
    ) -> Self:
        """`from_pretrained` for a repository that is already open.

        A `dtype` of None is the type that the weights are stored in; `overrides` replace settings of the config.
        """
        if os.path.isfile(repository.name):
            single = "; from_single_file loads a file alone" * hasattr(cls, "from_single_file")
            raise CheckpointError(f"{repository.name} is a file: give the folder that it is in{single}")
        config, path = cls.read_config(repository, subfolder)
        stored = config.get("_class_name", cls.__name__)
        if stored != cls.__name__:
            raise CheckpointError(f"{path} describes a {stored!r:.100}, not a {cls.__name__}: load it with that class")
        with skeleton():
            model: Self = cls.construct(config, path, **overrides)
        apart = None if repository.base is None else repository.find(DIFFERENCE, subfolder)
        if apart is None:
            load_weights(model, find_weights(repository, cls.weights_name, subfolder, variant, use_safetensors), dtype)
        else:
            model.load_base(repository, subfolder)
            add_difference(model, apart, dtype)
        return model.eval()

    def load_base(self, repository: Repository, subfolder: str | None) -> None:
        """Take the weights that a difference is added to, in the type that they are stored in.

        Args:
            repository: a folder with a `base.json`, which names the bundled model that has them.
            subfolder: the folder in it that the network's files are in.
        """
        load_weights(self, find_weights(repository, self.weights_name, subfolder, None), None)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the parameters hold.

        Args:
            only_trainable: count only parameters that want a gradient.
            exclude_embeddings: leave out the weights of embedding layers.
        """
        left_out = {
            id(layer.weight) for layer in self.modules() if exclude_embeddings and isinstance(layer, nn.Embedding)
        }
        return sum(
            parameter.numel()
            for parameter in self.parameters()
            if id(parameter) not in left_out and (parameter.requires_grad or not only_trainable)
        )

    def __getattr__(self, name: str) -> Any:
        """A part of the network; or, as older code asks for it, a setting of the config."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            config = self.__dict__.get("_internal_dict", {})
            if name.startswith("_") or name not in config:
                raise
        warnings.warn(f"{name} is a setting: ask for {type(self).__name__}.config.{name}", FutureWarning, stacklevel=2)
        return config[name]

    def write(self, folder: Path, saving: Saving) -> None:
        """Write config and weights, in the parameters' type. If one of the two cannot be written, neither is."""
        with atomic_write(folder / self.config_name) as config:
            config.write_text(self.to_json_string(), encoding="utf-8")
            save_weights(folder, self.weights_name, self.state_dict(), saving)


def choose_dtype(
    dtype: torch.dtype | str | None, torch_dtype: torch.dtype | str | None, auto: torch.dtype | None = torch.float32
) -> torch.dtype | Any:
    """The type that `dtype=` or its older name `torch_dtype=` asks for; float32 if neither is given.

    Args:
        dtype, torch_dtype: what was given.
        auto: what "auto" stands for.

    Raises:
        ValueError: both are given and differ.
        TypeError: it is no floating-point type.
    """
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise ValueError(f"dtype={dtype} and its older name torch_dtype={torch_dtype} contradict each other")
    chosen = dtype or torch_dtype or torch.float32
    if chosen == "auto":
        return auto
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type such as torch.float16, or 'auto', not {chosen!r}")
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


DeviceMap = str | int | torch.device | Mapping[str, Any] | None


def chosen_device(device_map: DeviceMap) -> torch.device | None:
    """The one device that a `device_map` stands for; None if there is no map.

    Raises:
        ValueError: it divides the network among several devices.
    """
    if device_map is None:
        return None
    if isinstance(device_map, Mapping):
        devices = set(device_map.values())
        if len(devices) != 1:
            raise ValueError(
                f"device_map={dict(device_map)!r:.100} divides the network, which is not implemented: name one device"
            )
        (device_map,) = devices
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(cast(str, device_map))


# Options of diffusers' `from_pretrained`: those that can be left out without a word, as nothing is lost; those that
# cannot work here, with what to do instead; the rest has no effect, of which a warning tells.
_WITHOUT_EFFECT = ("max_memory", "offload_folder", "offload_state_dict", "disable_mmap", "proxies", "mirror")
_NOT_IMPLEMENTED = {
    "quantization_config": "load the network as it is, and choose a smaller type by dtype=",
    "ignore_mismatched_sizes": "load the weights that fit by load_state_dict(…, strict=False)",
    "from_flax": "convert the weights to safetensors first",
}


def leave_out_unimplemented(options: dict[str, Any]) -> None:
    """Remove options of diffusers' `from_pretrained` that are not implemented from `options`.

    Raises:
        ValueError: one of them would change the result.

    Warns:
        UserWarning: one of them has no effect.
    """
    for name, instead in _NOT_IMPLEMENTED.items():
        if options.pop(name, None):
            raise ValueError(f"{name} is not implemented: {instead}")
    found = [name for name in _WITHOUT_EFFECT if options.pop(name, None) is not None]
    if found:
        warnings.warn(f"{', '.join(found)} of from_pretrained have no effect: leave them out", stacklevel=3)


# --- weights ---------------------------------------------------------------------------------------------------------


def _path(filename: str, subfolder: str | None) -> str:
    """A file's path in a repository."""
    return "/".join(part for part in (subfolder, filename) if part)


def find_weights(
    repository: Repository,
    name: str,
    subfolder: str | None,
    variant: str | None,
    use_safetensors: bool | None = None,
) -> list[Path]:
    """The weight files of one network: a .safetensors file or its parts ("shards"), or else a .bin file or its parts.

    Args:
        repository: where they are looked for.
        name: the name of the .safetensors file.
        subfolder: the network's folder in the repository.
        variant: as in `PretrainedModel.from_pretrained`. Where none is asked for and there are no plain files, the only
            variant that there is is taken.
        use_safetensors: True looks for .safetensors alone, False for .bin alone.

    Raises:
        CheckpointError: there are none; the message lists the files that were looked for, and variants that are there.

    Warns:
        UserWarning: the files are of a variant that was not asked for.
    """
    kinds = {True: (name,), False: (bin_name(name),), None: (name, bin_name(name))}[use_safetensors]
    found = _find_kinds(repository, kinds, subfolder, variant)
    if found is not None:
        return found
    there = _variants(repository, kinds, subfolder) - {variant}
    if variant is None and len(there) == 1:
        (only,) = there
        found = _find_kinds(repository, kinds, subfolder, only)
        if found is not None:
            warnings.warn(
                f"{repository.name} has no plain weights but those of the variant {only}, which are loaded: to be "
                f"silent, give variant={only!r}",
                stacklevel=2,
            )
            return found
    looked_for = [
        _path(with_variant(each, variant), subfolder) for kind in kinds for each in (kind, f"{kind}.index.json")
    ]
    hint = f" (is there one without variant={variant!r}?)" if variant else ""
    if there:
        hint = f" (there are some for {' and for '.join(f'variant={each!r}' for each in sorted(there))})"
    raise CheckpointError(f"there are no weights in {repository}: looked for {', '.join(looked_for)}{hint}")


def _find_kinds(
    repository: Repository, kinds: Sequence[str], subfolder: str | None, variant: str | None
) -> list[Path] | None:
    """The files of the first of these kinds that is there, each a file or its parts; None if there is none."""
    for kind in kinds:
        path = repository.find(with_variant(kind, variant), subfolder)
        if path is not None:
            return [path]
        path = repository.find(with_variant(f"{kind}.index.json", variant), subfolder)
        if path is not None:
            return [_shard(repository, shard, subfolder, path) for shard in _shards(path)]
    return None


def _variants(repository: Repository, kinds: Sequence[str], subfolder: str | None) -> set[str]:
    """The variants that a folder has files of; of the hub, whose files are not listed, the usual one."""
    if repository.folder is None:
        return {"fp16"}
    found = set()
    for kind in kinds:
        stem, suffix = os.path.splitext(kind)
        name = re.compile(
            rf"{re.escape(stem)}\.(?:([\w-]+){re.escape(suffix)}|{re.escape(suffix[1:])}\.index\.([\w-]+)\.json)"
        )
        with contextlib.suppress(OSError):
            matches = (name.fullmatch(each) for each in os.listdir(repository.folder / (subfolder or "")))
            found |= {match[1] or match[2] for match in matches if match}
    return {each for each in found if not re.search(r"-\d{5}-of-\d{5}$", each)}


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


def load_weights(model: PretrainedModel, files: list[Path], dtype: torch.dtype | None) -> None:
    """Put the tensors of files into a network that was made in `skeleton`. Those of the right type are not copied.

    Args:
        model: the network.
        files: what `find_weights` found.
        dtype: the type that the network's parameters get; None is that of what is stored, see `loading.stored_type`.

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
