"""Low-rank adapters on a pipeline, by the methods that diffusers' users know; `ddim.lora` does the work."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ddim.lora import State, change, read_lora, state_of, write_lora
from ddim.models import CLIPTextModel, UNet2DConditionModel
from ddim.pipelines.base import WITHOUT_EFFECT

ADAPTED = ("unet", "text_encoder", "text_encoder_2")  # the parts of a pipeline that take adapters, if it has them
# How strong an adapter is: one number for all parts, a number for each part by its name, or None for 1.
Weight = float | Mapping[str, float] | None


class TakesAdapters:
    """For pipelines with a `unet` and one or two text encoders.

    Adapters are merged into the networks' weights and belong to the networks: pipelines that share those (`from_pipe`)
    share the adapters. Call these methods only while no other thread makes images with them.
    """

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel | None

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor],
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        **options: Any,
    ) -> None:
        """Load an adapter and use it, at full strength and, in the networks that it is for, alone.

        Args:
            pretrained_model_name_or_path_or_dict: a `.safetensors` (or `.bin`) file, a folder or hub id that has one,
                or its tensors. The layouts of diffusers, peft and kohya's scripts are read; see docs/lora.md.
            adapter_name: what to call it; "default_0" and so on unless told.
            weight_name: the file's name, if it is not one of `lora.NAMES`.
            subfolder: the folder inside.
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub.
                `use_safetensors` and `low_cpu_mem_usage` are without effect.

        Raises:
            CheckpointError: no such file, or not the format that its name says.
            WeightsError: it does not fit the networks; all that is wrong is listed.
            ValueError: there is an adapter of this name.

        After an error nothing has changed.
        """
        networks = self._adapted_networks()
        taken = {name for network in networks.values() for name in state_of(network).stored}
        if adapter_name is None:
            adapter_name = next(name for i in range(len(taken) + 1) if (name := f"default_{i}") not in taken)
        if not isinstance(adapter_name, str) or not adapter_name:
            raise TypeError(f"adapter_name must be a word, not {adapter_name!r:.50}")
        for part, network in networks.items():
            if hasattr(network, "peft_config"):
                raise ValueError(f"{part} is being trained with matrices of peft's: load into one that is not")
        loaded = read_lora(
            pretrained_model_name_or_path_or_dict,
            networks,
            weight_name=weight_name,
            subfolder=subfolder,
            **{name: value for name, value in options.items() if name not in WITHOUT_EFFECT},
        )
        for part in loaded:
            if adapter_name in state_of(networks[part]).stored:
                raise ValueError(f"{part} has an adapter {adapter_name!r:.50}: give this one another adapter_name")

        def use(part: str, state: State) -> State:
            if part not in loaded:
                return state
            stored = {**state.stored, adapter_name: loaded[part]}
            return state._replace(stored=stored, active={adapter_name: 1.0})

        self._change_adapters(use)

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: Weight | Sequence[Weight] = None
    ) -> None:
        """Use these adapters, together, and no other.

        Args:
            adapter_names: one, or several.
            adapter_weights: how strong they are: one number for all, or one for each; 1 unless told. Instead of a
                number, a dict says it for each part: `{"unet": 0.5, "text_encoder": 1.0}`.

        Raises:
            ValueError: there is no such adapter, or not one weight for each, or none that is a finite number.
        """
        names = self._known(adapter_names)
        given = adapter_weights if isinstance(adapter_weights, (list, tuple)) else [adapter_weights] * len(names)
        if len(given) != len(names):
            raise ValueError(f"{len(given)} weights were given for {len(names)} adapters: give one, or as many")
        weights = dict(zip(names, given, strict=True))
        own = self._adapted_parts()

        def use(part: str, state: State) -> State:
            active = {name: _weight(weights[name], part, own) for name in names if name in state.stored}
            return state._replace(active=active)

        self._change_adapters(use)

    def fuse_lora(
        self,
        components: Sequence[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Let adapters stay as strong as they are now, times `lora_scale`, whatever is set later.

        `unload_lora_weights` then makes them part of the weights for good.

        Args:
            components: where: of "unet", "text_encoder" and "text_encoder_2"; unless told, in all that there are.
            adapter_names: which; those in use unless told.
            safe_fusing: without effect: sums that are not finite are always refused.
        """
        components = self._components(components)
        names = None if adapter_names is None else self._known(adapter_names)
        scale = _weight(lora_scale, "", ())

        def fuse(part: str, state: State) -> State:
            chosen = [name for name in (state.active if names is None else names) if name in state.stored]
            new = {name: state.active.get(name, 1.0) * scale for name in chosen if name not in state.fused}
            return state._replace(fused={**state.fused, **new}) if part in components else state

        self._change_adapters(fuse)

    def unfuse_lora(self, components: Sequence[str] | None = None) -> None:
        """Undo `fuse_lora`, bit for bit: adapters are as strong as `set_adapters` said."""
        chosen = self._components(components)
        self._change_adapters(lambda part, state: state._replace(fused={}) if part in chosen else state)

    def unload_lora_weights(self) -> None:
        """Forget all adapters: the weights are what they were before, bit for bit, save for what is fused."""
        self._change_adapters(lambda part, state: State(stored=state.stored, fused=state.fused), for_good=True)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget these adapters.

        Raises:
            ValueError: there is no such adapter, or it is fused.
        """
        names = self._known(adapter_names)
        fused = {name for network in self._adapted_networks().values() for name in state_of(network).fused}
        if fused & set(names):
            raise ValueError(f"{', '.join(sorted(fused & set(names)))[:200]} is fused: call unfuse_lora first")

        def delete(part: str, state: State) -> State:
            stored = {name: adapter for name, adapter in state.stored.items() if name not in names}
            active = {name: weight for name, weight in state.active.items() if name not in names}
            return state._replace(stored=stored, active=active)

        self._change_adapters(delete)

    def disable_lora(self) -> None:
        """Leave out all adapters that are not fused, until `enable_lora`."""
        self._change_adapters(lambda part, state: state._replace(is_enabled=False))

    def enable_lora(self) -> None:
        """Undo `disable_lora`."""
        self._change_adapters(lambda part, state: state._replace(is_enabled=True))

    def get_active_adapters(self) -> list[str]:
        """The names of the adapters in use."""
        networks = self._adapted_networks().values()
        return list(dict.fromkeys(name for network in networks for name in state_of(network).active))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """The names of the adapters that are loaded, for each part that has some."""
        found = {part: list(state_of(network).stored) for part, network in self._adapted_networks().items()}
        return {part: names for part, names in found.items() if names}

    @staticmethod
    def save_lora_weights(
        save_directory: str | os.PathLike[str],
        unet_lora_layers: Mapping[str, Tensor] | None = None,
        text_encoder_lora_layers: Mapping[str, Tensor] | None = None,
        text_encoder_2_lora_layers: Mapping[str, Tensor] | None = None,
        *,
        weight_name: str | None = None,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_2_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write an adapter that was trained, whole or not at all. `lora.save_lora` needs no metadata made by hand.

        Args:
            save_directory: made if it is not there.
            unet_lora_layers, text_encoder_lora_layers, text_encoder_2_lora_layers: such as `lora.lora_state` gives.
            weight_name: the file's name, `pytorch_lora_weights.safetensors` unless told.
            unet_lora_adapter_metadata, text_encoder_lora_adapter_metadata, text_encoder_2_lora_adapter_metadata: peft's
                settings. Without them readers take α for the rank.

        Raises:
            ValueError: there is nothing to save, or the name is no plain file name.
            NonFiniteError: a tensor has NaN or infinity.
            CheckpointError: the file system refuses.
        """
        layers = dict(
            zip(ADAPTED, (unet_lora_layers, text_encoder_lora_layers, text_encoder_2_lora_layers), strict=True)
        )
        settings = {
            "unet": unet_lora_adapter_metadata,
            "text_encoder": text_encoder_lora_adapter_metadata,
            "text_encoder_2": text_encoder_2_lora_adapter_metadata,
        }
        write_lora(
            save_directory,
            {part: state for part, state in layers.items() if state},
            {part: own for part, own in settings.items() if own and layers[part]},
            weight_name,
        )

    def _adapted_networks(self) -> dict[str, nn.Module]:
        """The networks that take adapters, by their parts' names; without torch.compile's wrapper."""
        networks = {part: getattr(self, part) for part in self._adapted_parts()}
        networks = {part: getattr(network, "_orig_mod", network) for part, network in networks.items()}
        return {part: network for part, network in networks.items() if isinstance(network, nn.Module)}

    def _adapted_parts(self) -> tuple[str, ...]:
        """The names of the parts that take adapters in a pipeline of this kind."""
        return tuple(part for part in ADAPTED if hasattr(self, part))

    def _components(self, given: Any) -> tuple[str, ...]:
        """The parts that are meant; a ValueError unless they are a list of some that take adapters."""
        own = self._adapted_parts()
        if given is None:
            return own
        if not isinstance(given, (list, tuple)) or not given or not set(given) <= set(own):
            raise ValueError(f"components must be a list of {' and '.join(own)}, not {given!r:.100}")
        return tuple(given)

    def _known(self, names: str | Sequence[str]) -> list[str]:
        """The names as a list; an error unless each is of an adapter that is loaded."""
        names = [names] if isinstance(names, str) else list(names)
        loaded = {name for names in self.get_list_adapters().values() for name in names}
        for name in names:
            if name not in loaded:
                raise ValueError(f"there is no adapter {name!r:.100}; loaded are {', '.join(sorted(loaded)) or 'none'}")
        if len(set(names)) < len(names):
            raise ValueError(f"an adapter is named twice: {', '.join(names)[:200]}")
        return names

    def _change_adapters(self, new: Callable[[str, State], State], *, for_good: bool = False) -> None:
        """Give every network the state that `new` makes of its part's name and its present state; see `lora.change`."""
        states = [(network, state_of(network), part) for part, network in self._adapted_networks().items()]
        planned = [(network, state, new(part, state)) for network, state, part in states]
        change(
            [(network, after) for network, state, after in planned if state.stored or after.stored], for_good=for_good
        )


def _weight(weight: Any, part: str, parts: Sequence[str]) -> float:
    """How strong an adapter is to be in one of the parts; a ValueError unless it is a finite number."""
    if isinstance(weight, Mapping):
        unknown = sorted(set(weight) - set(parts))
        if unknown:
            raise ValueError(
                f"there are weights for {', '.join(map(str, unknown))[:200]}, not for {' and '.join(parts)}"
            )
        weight = weight.get(part)
    if weight is None:
        return 1.0
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise ValueError(f"the weight of an adapter must be a finite number, not {weight!r:.100}")
    return float(weight)
