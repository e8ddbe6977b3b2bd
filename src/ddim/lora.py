"""Low-rank adapters (LoRA, Hu et al. 2021): read, merged into a network's weights, trained and saved.

A network with adapters computes what it computes without, with W + Σ w·α/r · B A in the place of some weights W. So
here adapters *are* merged, as soon as they are loaded: the network runs as fast as without them, whatever else is done
with its weights (projecting a text once, compiling, exporting) is right, and there is one way to compute. The weights
themselves are kept and come back unchanged. Nothing of this needs peft; training does, which puts the matrices beside
the weights.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddim.checkpoint.files import read_json, read_metadata, read_tensors, save_tensors
from ddim.checkpoint.hub import Repository
from ddim.checkpoint.loading import check_state
from ddim.checkpoint.lora_layout import PEFT_PREFIX, LowRank, parse
from ddim.errors import CheckpointError, ConfigError, NonFiniteError, WeightsError, require

__all__ = [
    "TEXT_TARGETS",
    "UNET_TARGETS",
    "WEIGHTS",
    "Adapter",
    "State",
    "add_lora",
    "change",
    "load_lora_state",
    "lora_state",
    "read_lora",
    "save_lora",
    "state_of",
]

WEIGHTS = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"  # where in a safetensors file's header diffusers writes its settings
PEFT_CONFIG = "adapter_config.json"
# What is looked for in a folder, in this order.
NAMES = (WEIGHTS, "adapter_model.safetensors", "pytorch_lora_weights.bin", "adapter_model.bin")

UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # the attention layers of a U-Net
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")  # those of a text encoder

Adapter = Mapping[str, LowRank]  # for the layers of one network, by their names


# --- reading ---------------------------------------------------------------------------------------------------------


def read_lora(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    networks: Mapping[str, nn.Module],
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    **options: Any,
) -> dict[str, dict[str, LowRank]]:
    """Read an adapter of any of the layouts in docs/lora.md, and see that it fits. Nothing is changed.

    Args:
        source: a `.safetensors` or `.bin` file, a folder or hub id that has one, or tensors by their names there.
        networks: whose layers it may be for, by their names in a pipeline: "unet" and "text_encoder".
        weight_name: the file's name in the folder; one of `NAMES`, or a folder's only `.safetensors`, unless told.
        subfolder: the folder inside it.
        options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub.

    Returns:
        For each network that there is something for, {layer: its adapter}.

    Raises:
        CheckpointError: no such file, or not the format that its name says.
        WeightsError: what is in it is no adapter for these networks; all that is wrong is listed.
    """
    if isinstance(source, Mapping):
        if weight_name or subfolder or options:
            raise TypeError("with tensors that are given, there is no file to name and no hub to ask")
        return parse(source, networks, {}, "the given adapter")
    repository = Repository.open(source, options)
    if options:
        raise TypeError(f"there is no argument {', '.join(sorted(options))}")
    is_file = os.path.isfile(repository.name)
    path = Path(repository.name) if is_file else _find(repository, weight_name, subfolder)
    if path.suffix not in (".safetensors", ".bin"):
        raise CheckpointError(f"{path} is neither .safetensors nor .bin: nothing else is read")
    tensors = read_tensors(path)
    config: dict[str, Any] = {}
    if path.suffix == ".safetensors" and METADATA in (said := read_metadata(path)):
        config = _decode(said[METADATA], path)
    if not config and any(key.startswith(PEFT_PREFIX) for key in tensors):
        beside: Path | None = path.parent / PEFT_CONFIG
        if not is_file:
            beside = repository.find(PEFT_CONFIG, subfolder)
        if beside is None or not beside.is_file():
            raise CheckpointError(f"{path} is peft's, and {PEFT_CONFIG} is not beside it, which says how strong it is")
        config = read_json(beside)
    return parse(tensors, networks, config, str(path))


def _find(repository: Repository, weight_name: str | None, subfolder: str | None) -> Path:
    names = [weight_name] if weight_name else [*NAMES]
    if repository.folder is not None and not weight_name:
        inside = repository.folder / (subfolder or "")
        others = [path.name for path in inside.glob("*.safetensors")]
        names += others if len(others) == 1 else []
    for name in names:
        path = repository.find(name, subfolder)
        if path is not None:
            return path
    where = f"{repository}/{subfolder}" if subfolder else str(repository)
    raise CheckpointError(f"there is no {' or '.join(names)} in {where}; if it is called otherwise, give weight_name=")


def _decode(text: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} says of itself what is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} says of itself a JSON {type(config).__name__} where an object is needed")
    return config


# --- merging ---------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """The adapters of one network, by names.

    Attributes:
        stored: what was loaded.
        active: how strong those are that are in use.
        fused: how strong those are that stay as they are, whatever happens to `active`.
        is_enabled: False leaves the active ones out.
    """

    stored: Mapping[str, Adapter] = {}
    active: Mapping[str, float] = {}
    fused: Mapping[str, float] = {}
    is_enabled: bool = True

    def amounts(self) -> dict[str, float]:
        """How much of each adapter is in the weights."""
        return {**(self.active if self.is_enabled else {}), **self.fused}


class _Adapted(NamedTuple):
    """What a network knows of its adapters: kept at the network, as several pipelines may share it."""

    state: State
    originals: dict[str, Tensor]  # the weights without any adapter, in the host's memory, of layers that have one
    version: int


_ATTRIBUTE = "_lora"
_NOTHING = _Adapted(State(), {}, 0)
_versions = itertools.count(1)


def _adapted(network: Any) -> _Adapted:
    adapted: _Adapted = getattr(network, _ATTRIBUTE, _NOTHING)  # torch.compile's wrapper passes it through
    return adapted


def state_of(network: Any) -> State:
    """The adapters of a network."""
    return _adapted(network).state


def version_of(network: Any) -> int:
    """A number that is another one after each change of a network's adapters."""
    return _adapted(network).version


@torch.no_grad()
def change(states: Sequence[tuple[nn.Module, State]], *, for_good: bool = False) -> None:
    """Bring networks' weights to what their adapters are to be, from whatever they were; all networks or none.

    Without an adapter, a layer has its original weight, bit for bit. Sums are made in float32 and rounded once.

    Args:
        for_good: what is merged then is the original from now on, and the adapters are forgotten.

    Raises:
        WeightsError: a sum is not finite in the weights' type.
    """
    prepared = []
    for network, state in states:
        network = getattr(network, "_orig_mod", network)  # what torch.compile has wrapped
        prepared.append((network, state, *_merge(network, state)))
    for network, state, originals, merged in prepared:
        for name, weight in merged.items():
            network.get_parameter(name).data = weight
        known = _Adapted(State(), {}, next(_versions)) if for_good else _Adapted(state, originals, next(_versions))
        setattr(network, _ATTRIBUTE, known)
        network.has_adapters = bool(known.state.stored)


def _merge(network: nn.Module, state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights to keep, and those to set, by parameters' names."""
    parts: dict[str, list[tuple[LowRank, float]]] = {}
    for name, weight in state.amounts().items():
        for layer, adapter in state.stored[name].items() if weight else ():
            parts.setdefault(f"{layer}.weight", []).append((adapter, weight))
    before = _adapted(network).originals
    originals: dict[str, Tensor] = {}
    merged = {name: _as(original, network.get_parameter(name)) for name, original in before.items()}
    for name, adapters in parts.items():
        present = network.get_parameter(name)
        original = merged.get(name, present.data)
        total = original.to(torch.promote_types(present.dtype, torch.float32), copy=True)
        for adapter, weight in adapters:
            total += adapter.delta(present, weight)
        merged[name] = total.to(present.dtype)
        if not merged[name].isfinite().all():
            raise WeightsError(f"with the adapters, {name} is not finite in {present.dtype}: make them weaker")
        originals[name] = before[name] if name in before else present.data.to("cpu")
    return originals, merged


def _as(original: Tensor, present: Tensor) -> Tensor:
    """A kept weight as the network has its weights now; itself, if nothing was moved or converted."""
    if (original.device, original.dtype) == (present.device, present.dtype):
        return original
    return original.to(present.device, present.dtype)


# --- training --------------------------------------------------------------------------------------------------------


def add_lora(
    network: nn.Module,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] = UNET_TARGETS,
    init: str = "gaussian",
    adapter_name: str = "default",
) -> list[nn.Parameter]:
    """Put new matrices beside a network's layers, by peft, and freeze all else. What it computes stays the same.

    The matrices are float32, whatever the weights are; the network is changed in place. One that has them still runs
    in a pipeline, but is not for `save_pretrained` or `load_lora_weights`.

    Args:
        network: for example a `UNet2DConditionModel`.
        rank: r; a layer from i to o channels gets r·(i + o) parameters.
        alpha: α, by which what is learnt counts α/r; r unless told.
        targets: which linear layers and convolutions: the ends of their names, such as `UNET_TARGETS`, `TEXT_TARGETS`.
        init: A is drawn from "gaussian", N(0, 1/r²), or "kaiming", uniform as a linear layer's weight; B is 0.
        adapter_name: to tell several from one another; the last one that was added is trained.

    Returns:
        The parameters to train.

    Raises:
        ConfigError: a rank, α or start that cannot be, a target that no layer has, or a name that is taken.
        MissingExtraError: peft is not installed.
    """
    starts: dict[str, Any] = {"gaussian": "gaussian", "kaiming": True}
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"rank must be an int of 1 or more, not {rank!r:.50}")
    alpha = rank if alpha is None else alpha
    if not 0 < alpha < float("inf"):
        raise ConfigError(f"alpha must be positive, not {alpha!r:.50}")
    if init not in starts:
        raise ConfigError(f"init={init!r:.50} is none of {', '.join(starts)}")
    if not adapter_name.isidentifier() or adapter_name in getattr(network, "peft_config", {}):
        raise ConfigError(f"adapter_name={adapter_name!r:.50} is taken already, or no plain word")
    if state_of(network).stored:
        raise ConfigError(
            "adapters were loaded into this network: unload_lora_weights first, after fuse_lora to keep them"
        )
    modules = network.named_modules()
    layers = [name.removesuffix(".base_layer") for name, layer in modules if isinstance(layer, (nn.Linear, nn.Conv2d))]
    for target in targets:
        if not any(f".{layer}".endswith(f".{target}") for layer in layers):
            raise ConfigError(f"{type(network).__name__} has no linear layer or convolution called {target!r:.100}")
    peft = require("peft", "train")
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights=starts[init], bias="none"
    )
    peft.inject_adapter_in_model(config, network, adapter_name)
    network.requires_grad_(False)
    parameters = list(_matrices(network, adapter_name).values())
    for parameter in parameters:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return parameters


def _matrices(network: nn.Module, adapter_name: str) -> dict[str, nn.Parameter]:
    """A trained adapter's parameters, by their names in a file."""
    network = getattr(network, "_orig_mod", network)
    ends = {f".lora_{letter}.{adapter_name}.weight": f".lora_{letter}.weight" for letter in "AB"}
    return {
        name.removesuffix(end) + stored: parameter
        for name, parameter in network.named_parameters()
        for end, stored in ends.items()
        if name.endswith(end)
    }


def lora_state(network: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """What was trained, in diffusers' naming without the network's own name: `….to_q.lora_A.weight`, (r i), ….

    The tensors are the network's own memory.

    Raises:
        ConfigError: the network has no such adapter.
    """
    state = {name: parameter.detach() for name, parameter in _matrices(network, adapter_name).items()}
    if not state:
        raise ConfigError(f"{type(network).__name__} has no adapter {adapter_name!r:.50}: add_lora makes one")
    return state


def load_lora_state(network: nn.Module, state: Mapping[str, Tensor], adapter_name: str = "default") -> None:
    """Put back what `lora_state` gave, for example to go on with training.

    Raises:
        ConfigError: the network has no such adapter.
        WeightsError: names or shapes are not the adapter's.
    """
    own = lora_state(network, adapter_name)
    check_state(own, state, f"the state does not fit the adapter {adapter_name!r:.50} of {type(network).__name__}")
    for name, tensor in own.items():
        tensor.copy_(state[name])


def save_lora(
    folder: str | os.PathLike[str],
    states: Mapping[str, Mapping[str, Tensor]],
    rank: int,
    alpha: float | None = None,
) -> Path:
    """Write `pytorch_lora_weights.safetensors`, which diffusers and `load_lora_weights` read; whole or not at all.

    Args:
        folder: made if it is not there.
        states: what `lora_state` gave, by the networks' names in a pipeline: "unet" and "text_encoder".
        rank, alpha: as they were given to `add_lora`.

    Returns:
        The file.

    Raises:
        ValueError: nothing to save, another network, or matrices of another rank.
        NonFiniteError: a matrix has NaN or infinity.
        CheckpointError: the file system refuses.
    """
    settings = {}
    for name, state in states.items():
        layers = sorted({key.rpartition(".lora_")[0] for key in state})
        if any(len(tensor) != rank for key, tensor in state.items() if key.endswith(".lora_A.weight")):
            raise ValueError(f"{name} has matrices of another rank than {rank}")
        settings[name] = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": rank if alpha is None else alpha,
            "target_modules": [layer.removeprefix("text_model.") for layer in layers],
        }
    return write_lora(folder, states, settings)


def write_lora(
    folder: str | os.PathLike[str],
    states: Mapping[str, Mapping[str, Tensor]],
    settings: Mapping[str, Mapping[str, Any]],
    weight_name: str | None = None,
) -> Path:
    """`save_lora` with any settings of peft's for each network, or none."""
    unknown = set(states) - {"unet", "text_encoder"}
    if unknown or not any(states.values()):
        raise ValueError(f"adapters are for unet and text_encoder, not {', '.join(sorted(unknown)) or 'nothing'}")
    name = weight_name or WEIGHTS
    if not name.endswith(".safetensors") or Path(name).name != name:
        raise ValueError(f"weight_name={name!r:.100} must be a plain name that ends in .safetensors")
    tensors = {f"{network}.{key}": tensor for network, state in states.items() for key, tensor in state.items()}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise NonFiniteError(f"{key} has NaN or infinity: it is not saved")
    said = {f"{network}.{key}": value for network, own in settings.items() for key, value in own.items()}
    text = json.dumps(said, indent=2, sort_keys=True, allow_nan=False, default=_as_json)
    path = Path(folder) / name
    save_tensors(path, tensors, {METADATA: text} if said else None)
    return path


def _as_json(value: Any) -> Any:
    """What peft's settings hold that JSON does not know."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
