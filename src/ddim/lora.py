"""Low-rank adapters (LoRA, Hu et al. 2021): read, merged into a network's weights, trained and saved.

An adapter replaces some weights W of a network by W + w·α/r · B A, with small matrices A and B and a strength w. Here
this sum is made as soon as an adapter is loaded ("merging"). So the network runs as fast as without adapters, and
whatever else uses its weights, such as compiling or projecting a text once, needs to know nothing of them. The weights
without adapters are kept, and come back unchanged. Only training needs the library peft, which keeps A and B beside the
weights.
"""

from __future__ import annotations

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
METADATA = "lora_adapter_metadata"  # the name in a safetensors file's header under which diffusers writes settings
PEFT_CONFIG = "adapter_config.json"  # the file in which peft writes them
# The files that are looked for in a folder, in this order.
NAMES = (WEIGHTS, "adapter_model.safetensors", "pytorch_lora_weights.bin", "adapter_model.bin")

NETWORKS = ("unet", "text_encoder", "text_encoder_2")  # what adapters are for, by the names in a pipeline

# The usual layers for adapters: the linear layers of attention, in a U-Net and in a text encoder.
UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")

Adapter = Mapping[str, LowRank]  # the name of a layer of one network -> its two matrices and their factor


# --- reading ---------------------------------------------------------------------------------------------------------


def read_lora(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    networks: Mapping[str, nn.Module],
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    **options: Any,
) -> dict[str, dict[str, LowRank]]:
    """Read an adapter in any of the layouts of docs/lora.md, and check that it fits. The networks are not changed.

    Args:
        source: a `.safetensors` or `.bin` file, a folder or hub id that has one, or a file's tensors by their names.
        networks: the networks that it may be for, by their names in a pipeline: `NETWORKS`, or some of them.
        weight_name: the file's name in the folder. Unless told, it is the first of `NAMES` that is there, or else the
            only `.safetensors` in a folder.
        subfolder: the folder in the source that the file is in.
        options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub.

    Returns:
        For each network that the file has tensors for, {layer: its adapter}.

    Raises:
        TypeError: there is another option, or one for files although tensors are given.
        CheckpointError: there is no such file, or it is not in the format that its name says.
        WeightsError: its tensors are no adapter for these networks; the message lists everything that is wrong.
    """
    if isinstance(source, Mapping):
        if weight_name or subfolder or options:
            raise TypeError(
                "tensors were given, so there is no file to name: leave out weight_name, subfolder and all options for "
                "the hub"
            )
        return parse(source, networks, {}, "the given adapter")
    repository = Repository.open(source, options)
    if options:
        raise TypeError(f"there is no argument {', '.join(sorted(options))}")
    is_file = os.path.isfile(repository.name)
    path = (
        Path(repository.name) if is_file else repository.find_weights(NAMES, weight_name, subfolder, (".safetensors",))
    )
    if path.suffix not in (".safetensors", ".bin"):
        raise CheckpointError(f"{path} is neither a .safetensors nor a .bin file, and nothing else is read")
    tensors = read_tensors(path)
    config: dict[str, Any] = {}
    if path.suffix == ".safetensors" and METADATA in (said := read_metadata(path)):
        config = _decode(said[METADATA], path)
    if not config and any(key.startswith(PEFT_PREFIX) for key in tensors):
        beside: Path | None = path.parent / PEFT_CONFIG
        if not is_file:
            beside = repository.find(PEFT_CONFIG, subfolder)
        if beside is None or not beside.is_file():
            raise CheckpointError(
                f"{path} was written by peft and needs the file {PEFT_CONFIG} beside it, which has the adapter's alpha"
            )
        config = read_json(beside)
    return parse(tensors, networks, config, str(path))


def _decode(text: str, path: Path) -> dict[str, Any]:
    """The settings in a safetensors file's header."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the {METADATA} in {path} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"the {METADATA} in {path} is a JSON {type(config).__name__} where an object is needed")
    return config


# --- merging ---------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """The adapters of one network, by their names. A strength of 1 is an adapter as it was trained.

    Attributes:
        stored: all adapters that were loaded.
        active: the strength of each adapter that is in use.
        fused: the strength of each adapter that stays merged, whatever happens to `active`.
        is_enabled: whether the active adapters have an effect.
    """

    stored: Mapping[str, Adapter] = {}
    active: Mapping[str, float] = {}
    fused: Mapping[str, float] = {}
    is_enabled: bool = True

    def amounts(self) -> dict[str, float]:
        """The strength with which each adapter is in the weights."""
        return {**(self.active if self.is_enabled else {}), **self.fused}


class _Adapted(NamedTuple):
    """What is known of a network's adapters. It is an attribute of the network, as several pipelines may share one."""

    state: State
    originals: dict[str, Tensor]  # of layers with an adapter, the weights without it, in the host's memory


_ATTRIBUTE = "_lora"
_NOTHING = _Adapted(State(), {})


def _adapted(network: Any) -> _Adapted:
    """What is known of a network's adapters; of none, if it never had any."""
    adapted: _Adapted = getattr(network, _ATTRIBUTE, _NOTHING)  # also found through torch.compile's wrapper
    return adapted


def state_of(network: Any) -> State:
    """The adapters of a network."""
    return _adapted(network).state


@torch.no_grad()
def change(states: Sequence[tuple[nn.Module, State]], *, for_good: bool = False) -> None:
    """Change networks' adapters, and merge the new ones into the weights.

    If one network's weights cannot be computed, no network is changed. A layer that has no adapter any more gets its
    original weight back, bit for bit. Sums are made in float32 and rounded once.

    Args:
        states: each network, and the adapters that it shall have.
        for_good: take the merged weights for the original ones from now on, and forget the adapters.

    Raises:
        WeightsError: a merged weight is not finite in the weights' type.
    """
    prepared = []
    for network, state in states:
        network = getattr(network, "_orig_mod", network)  # the network itself, if torch.compile has wrapped it
        prepared.append((network, state, *_merge(network, state)))
    for network, state, originals, merged in prepared:
        for name, weight in merged.items():
            network.get_parameter(name).data = weight
        known = _NOTHING if for_good else _Adapted(state, originals)
        setattr(network, _ATTRIBUTE, known)
        network.has_adapters = bool(known.state.stored)


def _merge(network: nn.Module, state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The original weights to keep, and the weights that the network shall have, by the parameters' names."""
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
    """A kept weight on the device and in the type that the network's weights have now."""
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
    """Give a network a new adapter for training, by peft, and freeze everything else.

    The network is changed in place. As the new B is 0, it computes the same as before. The matrices are float32,
    whatever the type of the weights. A network with them can run in a pipeline, but cannot be used with
    `save_pretrained` or `load_lora_weights`.

    Args:
        network: for example a `UNet2DConditionModel`.
        rank: r, 1 or more; a layer from i to o channels gets r·(i + o) parameters.
        alpha: α, above 0: what is learnt is multiplied by α/r. It is r unless told.
        targets: the linear layers and convolutions that get matrices, by the ends of their names, such as
            `UNET_TARGETS` and `TEXT_TARGETS`.
        init: how A is drawn: "gaussian" is N(0, 1/r²), "kaiming" is uniform as a linear layer's weight.
        adapter_name: tells several adapters of a network apart; the last one that was added is trained.

    Returns:
        The parameters to train.

    Raises:
        ConfigError: the rank, α, `init` or a name cannot be used, or a target fits no layer.
        MissingExtraError: peft is not installed.
    """
    starts: dict[str, Any] = {"gaussian": "gaussian", "kaiming": True}
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"rank must be an int of 1 or more, not {rank!r:.50}")
    alpha = rank if alpha is None else alpha
    if not 0 < alpha < float("inf"):
        raise ConfigError(f"alpha must be positive and finite, not {alpha!r:.50}")
    if init not in starts:
        raise ConfigError(f"init={init!r:.50} is none of {', '.join(starts)}")
    if not adapter_name.isidentifier() or adapter_name in getattr(network, "peft_config", {}):
        raise ConfigError(
            f"adapter_name={adapter_name!r:.50} is taken already or is no plain word: give another one, of letters, "
            "digits and underscores"
        )
    if state_of(network).stored:
        raise ConfigError(
            "adapters were loaded into this network: call unload_lora_weights first, or fuse_lora and then "
            "unload_lora_weights to keep them in the weights"
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
    """The parameters of an adapter in training, by their names in a file."""
    network = getattr(network, "_orig_mod", network)
    ends = {f".lora_{letter}.{adapter_name}.weight": f".lora_{letter}.weight" for letter in "AB"}
    return {
        name.removesuffix(end) + stored: parameter
        for name, parameter in network.named_parameters()
        for end, stored in ends.items()
        if name.endswith(end)
    }


def lora_state(network: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """The matrices of an adapter in training, by diffusers' names without the network's: `….to_q.lora_A.weight`, ….

    Args:
        network: a network that `add_lora` gave an adapter.
        adapter_name: as in `add_lora`.

    Returns:
        A (r i) and B (o r) of each layer, which share memory with the network's parameters.

    Raises:
        ConfigError: the network has no such adapter.
    """
    state = {name: parameter.detach() for name, parameter in _matrices(network, adapter_name).items()}
    if not state:
        raise ConfigError(f"{type(network).__name__} has no adapter {adapter_name!r:.50}: add_lora makes one")
    return state


def load_lora_state(network: nn.Module, state: Mapping[str, Tensor], adapter_name: str = "default") -> None:
    """Copy into an adapter what `lora_state` returned, for example to go on with training.

    Args:
        network: a network that `add_lora` gave an adapter of the same rank and targets.
        state: what `lora_state` returned.
        adapter_name: as in `add_lora`.

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
    """Write adapters atomically as `pytorch_lora_weights.safetensors`, which diffusers and `load_lora_weights` read.

    Args:
        folder: the folder, which is made if it is not there.
        states: what `lora_state` returned, by the networks' names in a pipeline, of `NETWORKS`.
        rank, alpha: as they were given to `add_lora`.

    Returns:
        The file's path.

    Raises:
        ValueError: there is nothing to save, a network has another name, or matrices have another rank.
        NonFiniteError: a matrix has NaN or infinity.
        CheckpointError: the file system does not allow it.
    """
    settings = {}
    for name, state in states.items():
        layers = sorted({key.rpartition(".lora_")[0] for key in state})
        if any(len(tensor) != rank for key, tensor in state.items() if key.endswith(".lora_A.weight")):
            raise ValueError(f"{name} has matrices of another rank than {rank}: give the rank that add_lora was given")
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
    """`save_lora` with any settings for the file's header, or none.

    Args:
        folder, states: as in `save_lora`.
        settings: for each network, the settings of peft that are written into the file's header.
        weight_name: the file's name, which ends in .safetensors; `WEIGHTS` unless told.

    Returns:
        The file's path.

    Raises:
        ValueError: there is nothing to save, or a network or the file has an impossible name.
        NonFiniteError, CheckpointError: as `save_lora`.
    """
    unknown = set(states) - set(NETWORKS)
    if unknown or not any(states.values()):
        raise ValueError(f"adapters are for {' and '.join(NETWORKS)}, not {', '.join(sorted(unknown)) or 'nothing'}")
    name = weight_name or WEIGHTS
    if not name.endswith(".safetensors") or Path(name).name != name:
        raise ValueError(f"weight_name={name!r:.100} must be a plain name that ends in .safetensors")
    tensors = {f"{network}.{key}": tensor for network, state in states.items() for key, tensor in state.items()}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise NonFiniteError(f"{key} has NaN or infinity, so nothing is saved: go back to an earlier checkpoint")
    said = {f"{network}.{key}": value for network, own in settings.items() for key, value in own.items()}
    text = json.dumps(said, indent=2, sort_keys=True, allow_nan=False, default=_as_json)
    path = Path(folder) / name
    save_tensors(path, tensors, {METADATA: text} if said else None)
    return path


def _as_json(value: Any) -> Any:
    """A value of peft's settings that JSON does not know, such as a set, as one that it does."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
