"""Checkpoint files: JSON configs and safetensors weights, local, bundled or on the hub.

A repository's files are data. Nothing in one can make this package run code or touch a path outside the repository's
folder, and whatever is wrong with one is a single `CheckpointError` that names the file. Everything is written to a
temporary name and renamed, so a reader never sees half a file and a full disk loses nothing.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import Tensor, nn

from ddim.config import ConfigMixin
from ddim.errors import CheckpointError, WeightsError

BUNDLED = Path(__file__).parent / "weights"
MAX_JSON_BYTES = 32 * 2**20
WEIGHTS = "diffusion_pytorch_model.safetensors"


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed, on failure removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".tmp{path.suffix}", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o666 & ~_umask())
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | os.PathLike[str], text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically. Tensors may be on any device; shared memory is written out twice."""
    from safetensors.torch import save_file

    host = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    seen: set[int] = set()
    for name, tensor in host.items():
        if tensor.numel() and tensor.data_ptr() in seen:
            host[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    with atomic_write(path) as temporary:
        save_file(host, temporary, metadata={"format": "pt", **(metadata or {})})


# --- reading ---------------------------------------------------------------------------------------------------------


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: missing, over 32 MiB, no UTF-8, no JSON, nested too deeply, or not an object.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB: no config is")
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise CheckpointError(f"there is no file {path}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__} where an object is needed")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped; or of a `.bin`, read with `weights_only=True`.

    Raises:
        CheckpointError: missing, truncated, not the format its name says, or a pickle of anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    if path.suffix == ".bin":
        return _read_bin(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {str(error)[:200]}") from error


def _read_bin(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises whatever its unpickler meets
        raise CheckpointError(
            f"{path} cannot be read as plain weights, and nothing else is read from a .bin: "
            f"ask for safetensors ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise CheckpointError(f"{path} is not a dict of names and tensors")
    return state


@dataclass(frozen=True)
class Repository:
    """Where a checkpoint's files come from: a local folder, a bundled model, or a repository of the hub."""

    name: str
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False

    @classmethod
    def open(cls, name: str | os.PathLike[str], options: dict[str, Any]) -> Repository:
        """Take this class's options out of `options`; the caller says what to make of the rest."""
        if not isinstance(name, (str, os.PathLike)):
            raise TypeError(f"a checkpoint is a path or a hub id, not {type(name).__name__}")
        fields = ("revision", "token", "cache_dir", "local_files_only", "force_download")
        return cls(os.fspath(name), **{field: options.pop(field) for field in fields if field in options})

    def find(self, filename: str, subfolder: str | None = None) -> Path | None:
        """The local path of a file of the repository (fetched from the hub if need be), or None if it has none.

        Raises:
            CheckpointError: the name leaves the repository, or the repository cannot be reached.
        """
        relative = "/".join(part for part in (subfolder, filename) if part)
        if relative.startswith(("/", "\\")) or ".." in Path(relative).parts or "\\" in relative or ":" in relative:
            raise CheckpointError(f"{relative!r} is not a path inside a checkpoint")
        local = Path(self.name)
        if local.is_dir() and not (self.name in bundled_models() and not (local / "model_index.json").is_file()):
            return _inside(local, relative)
        if self.name in bundled_models():
            return _inside(BUNDLED / self.name, relative)
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.name) or self.name.startswith("."):
            raise CheckpointError(f"there is no folder {self.name}, and it is no id of a repository on the hub either")
        return self._download(relative)

    def _download(self, relative: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return Path(
                hf_hub_download(
                    self.name,
                    relative,
                    revision=self.revision,
                    token=self.token,
                    cache_dir=self.cache_dir,
                    local_files_only=self.local_files_only,
                    force_download=self.force_download,
                )
            )
        except LocalEntryNotFoundError as error:  # also an EntryNotFoundError, but the file may well exist
            hint = "it is not in the cache and local_files_only is set" if self.local_files_only else "no connection"
            raise CheckpointError(f"{self.name}/{relative}: {hint}; there is no local folder {self.name}") from error
        except EntryNotFoundError:
            return None
        except Exception as error:  # the hub's client has many: network, authorization, validation
            raise CheckpointError(
                f"{self.name} is no local folder or bundled model ({', '.join(bundled_models()) or 'none'}), "
                f"and the hub gave {type(error).__name__}: {str(error)[:300]}"
            ) from error


def bundled_models() -> list[str]:
    """The names of the models inside the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/model_index.json"))


def _inside(root: Path, relative: str) -> Path | None:
    """`root/relative` if it is a file; an error if a link leads out of the checkpoint."""
    path = root / relative
    if not path.is_file():
        return None
    home = root.resolve()
    if home.parent.name == "snapshots":  # the hub's cache: a snapshot's files are links to ../../blobs
        home = home.parent.parent
    if not path.resolve().is_relative_to(home):
        raise CheckpointError(f"{path} is a link that leads out of the checkpoint {root}")
    return path


# --- classes that load and save --------------------------------------------------------------------------------------


class PretrainedMixin(ConfigMixin):
    """Gives a class with a config its loading and saving."""

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
            subfolder: the folder inside it.
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub.
            return_unused_kwargs: return `(config, the options that are none of these)`.

        Raises:
            CheckpointError: no such file, or no JSON object in it.
        """
        repository = Repository.open(pretrained_model_name_or_path, options)
        path = Path(repository.name)
        found: Path | None = path
        if not path.is_file():
            found = repository.find(cls.config_name, subfolder)
            if found is None and subfolder and path.is_dir():  # as in diffusers: the folder may be the subfolder
                found = repository.find(cls.config_name)
        if found is None:
            place = "/".join(part for part in (repository.name, subfolder) if part)
            raise CheckpointError(f"{place} has no {cls.config_name}")
        config = read_json(found)
        return (config, options) if return_unused_kwargs else config

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **options: Any,
    ) -> Any:
        """Build from a stored config: `from_config(load_config(…))`.

        Args:
            pretrained_model_name_or_path: the file itself, a folder that has it, a bundled model or a hub id.
            subfolder: the folder inside it, for example "scheduler".
            return_unused_kwargs: return `(object, unused entries)`.
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub; anything else
                overrides the config.

        Raises:
            CheckpointError: no such file, or no JSON object in it.
            ConfigError: the config makes no object of this class.
        """
        config, overrides = cls.load_config(
            pretrained_model_name_or_path, subfolder=subfolder, return_unused_kwargs=True, **options
        )
        return cls.from_config(config, return_unused_kwargs, **overrides)

    def save_config(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the config file into a folder, which is made if it is not there."""
        if Path(save_directory).is_file():
            raise CheckpointError(f"{save_directory} is a file; a folder is needed")
        write_text(Path(save_directory) / self.config_name, self.to_json_string())

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **options: Any
    ) -> None:
        """Save into a folder; with `push_to_hub=True` upload it too (`options`: see `push_to_hub`)."""
        self.save_config(save_directory)
        if push_to_hub:
            upload(save_directory, **{"repo_id": Path(save_directory).name, **options})

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Save and upload to a repository of the hub, which is made if it is not there; returns the commit's URL.

        Args:
            repo_id: "name" or "owner/name".
            options: `commit_message`, `private`, `token`, `revision`, `create_pr`, `subfolder`.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(folder, repo_id, **options)


def upload(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> str:
    """Upload a folder to a repository of the hub; returns the commit's URL."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=Path(folder),
        path_in_repo=subfolder,
        commit_message=commit_message or "Upload with ddim",
        revision=revision,
        create_pr=create_pr,
    )
    return str(commit.commit_url)


class PretrainedModel(PretrainedMixin, nn.Module):
    """A network with a config, whose weights are stored in diffusers' layout.

    A subclass may override `convert_key` to read older names, and `weights_name`.
    """

    weights_name: ClassVar[str] = WEIGHTS

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @classmethod
    def convert_key(cls, key: str) -> str:
        """The name, in this network, of a stored tensor."""
        return key

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        **options: Any,
    ) -> Self:
        """Load config and weights; the network is in eval mode.

        Args:
            pretrained_model_name_or_path: a folder, a bundled model or a hub id.
            subfolder: the folder inside it, for example "unet".
            dtype: the parameters' type, float32 unless told; `torch_dtype` is its older name.
            variant: "fp16" reads `diffusion_pytorch_model.fp16.safetensors`.
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub; anything
                else overrides the config.

        Raises:
            CheckpointError: a file is missing or broken.
            WeightsError: keys or shapes are not this network's; all are listed.
        """
        if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
            raise ValueError(f"dtype={dtype} and its older name torch_dtype={torch_dtype} contradict each other")
        repository = Repository.open(pretrained_model_name_or_path, dict(options))
        config, overrides = cls.load_config(repository.name, subfolder=subfolder, return_unused_kwargs=True, **options)
        with torch.device("meta"):
            model = cls.from_config(config, **overrides)
        assert isinstance(model, cls)
        files = find_weights(repository, cls.weights_name, subfolder, variant)
        load_weights(model, files, dtype or torch_dtype or torch.float32)
        return model.eval()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        *,
        variant: str | None = None,
        **options: Any,
    ) -> None:
        """Save config and weights, in the parameters' own type, into a folder."""
        self.save_config(save_directory)
        save_tensors(Path(save_directory) / _variant(self.weights_name, variant), self.state_dict())
        if push_to_hub:
            upload(save_directory, **{"repo_id": Path(save_directory).name, **options})


def _variant(filename: str, variant: str | None) -> str:
    stem, _, suffix = filename.partition(".")
    return f"{stem}.{variant}.{suffix}" if variant else filename


def find_weights(repository: Repository, name: str, subfolder: str | None, variant: str | None) -> list[Path]:
    """The weight files of one network: one safetensors, its shards, or else the `.bin` (see `read_tensors`).

    Raises:
        CheckpointError: there are none; the message says what was looked for.
    """
    name = _variant(name, variant)
    bin_name = name.replace(".safetensors", ".bin")
    if name.startswith("model."):  # a text encoder's, in transformers' naming
        bin_name = "pytorch_" + bin_name
    for candidate in (name, bin_name):
        path = repository.find(candidate, subfolder)
        if path is not None:
            return [path]
        index = repository.find(f"{candidate}.index.json", subfolder)
        if index is not None:
            return [_shard(repository, shard, subfolder, index) for shard in _shards(index)]
    place = "/".join(part for part in (repository.name, subfolder) if part)
    raise CheckpointError(f"{place} has no weights: looked for {name} and {bin_name}, whole or with an .index.json")


def _shards(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of names to files")
    return sorted(set(weight_map.values()))


def _shard(repository: Repository, shard: str, subfolder: str | None, index: Path) -> Path:
    if not shard.endswith((".safetensors", ".bin")):
        raise CheckpointError(f"{index} names {shard!r}, which is no weight file")
    path = repository.find(shard, subfolder)
    if path is None:
        raise CheckpointError(f"{index} names {shard}, which is not there")
    return path


def load_weights(model: PretrainedModel, files: list[Path], dtype: torch.dtype) -> None:
    """Put stored tensors into a network built on the meta device, without a copy where the type is right already.

    Raises:
        WeightsError: every missing key, unexpected key and wrong shape, in one message.
    """
    wanted = model.state_dict()
    state: dict[str, Tensor] = {}
    for file in files:
        for key, tensor in read_tensors(file).items():
            state[model.convert_key(key)] = tensor
    check_state(wanted, state, f"{', '.join(map(str, files))} does not fit {type(model).__name__}")
    for key, tensor in state.items():
        if tensor.is_floating_point():
            state[key] = tensor.to(dtype)
    model.load_state_dict(state, strict=True, assign=True)


def check_state(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    """Raise one `WeightsError` that lists all that differs between two sets of names and shapes."""
    problems = [f"missing: {key} {tuple(wanted[key].shape)}" for key in wanted if key not in state]
    problems += [f"unexpected: {key} {tuple(state[key].shape)}" for key in state if key not in wanted]
    problems += [
        f"wrong shape: {key} is {tuple(state[key].shape)}, the config asks for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    if problems:
        raise WeightsError(f"{what} ({len(problems)} differences):\n  " + "\n  ".join(problems))
