"""The layouts in which low-rank adapters are stored. All are read into one form: two matrices and a factor a layer.

An adapter (Hu et al. 2021, equation 3) adds α/r · B A to a layer's weight, with A of r rows and B of r columns. The
programs that train adapters agree on that, but each has its own names for the tensors; docs/lora.md shows them in a
table. A file may come from anyone: one error lists everything in it that does not fit the networks or has no meaning.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from ddim.checkpoint.loading import raise_for_problems
from ddim.checkpoint.original_layout import UNET_ENDS, UNET_RESNET, unet_name

Place = tuple[str, str]  # a network's name in a pipeline, a layer's name in the network
Stored = dict[str, tuple[str, Tensor]]  # a layer's "down", "up" and "alpha" -> the name in the file, and the tensor

PEFT_PREFIX = "base_model.model."
# A part of the names in all layouts of LoRAs, which otherwise begin as those of the models that they are for.
LORA = re.compile(r"(^|[._])lora[._]|_lora\.|^lora_")

_NAME = re.compile(
    r"(?P<layer>.+?)(?:"
    r"\.lora_(?P<letter>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"  # peft, and diffusers today
    r"|(?:\.lora|\.lora_linear_layer|_lora)\.(?P<way>down|up)\.weight"  # diffusers before
    r"|\.lora_(?P<kohya>down|up)\.weight"
    r"|(?:\.lora|\.lora_linear_layer|_lora)?\.(?P<alpha>alpha))"
)
_PARTS = {"A": "down", "B": "up"}  # the matrices' names in the paper -> those in this file
# How names begin -> the network, by its name in a pipeline. The rest has dots if this ends in one, else underscores.
_PREFIXES = {
    "unet.": "unet",
    "diffusion_model.": "unet",  # ComfyUI's, with the original layout's names
    "model.diffusion_model.": "unet",
    "lora_unet_": "unet",
    "lycoris_": "unet",
    "text_encoder.": "text_encoder",
    "text_encoders.clip_l.transformer.": "text_encoder",  # ComfyUI's: CLIP's is called l, OpenCLIP's h
    "text_encoders.clip_h.transformer.": "text_encoder",
    "clip_l.transformer.": "text_encoder",
    "clip_h.transformer.": "text_encoder",
    "clip_l.": "text_encoder",  # OneTrainer's
    "text_encoder_2.": "text_encoder_2",
    "text_encoders.clip_g.transformer.": "text_encoder_2",  # g is the larger OpenCLIP of Stable Diffusion XL
    "clip_g.transformer.": "text_encoder_2",
    "clip_g.": "text_encoder_2",
    "lora_te2_": "text_encoder_2",
    "cond_stage_model.transformer.": "text_encoder",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
}
# Layers of a text encoder: their names in diffusers' first layout -> their own names.
_OLD_LEAVES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

# Parts of names by which other kinds of adapters are recognised, which are not implemented, for the error.
_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "a convolution in three parts",
    "oft_": "OFT",
    "lora_embedding_": "an embedding",
    "bundle_emb": "textual inversion",
    ".diff": "a weight's difference",
    "bias": "a bias",
}
XL = "Stable Diffusion XL"
# How the names in adapters for other models begin, without what comes before them in all families -> the model, for the
# error. The first that fits any name decides, so that a sign of one family stands before those that several have.
_BEFORE = (
    r"(?:base_model\.model\.)?(?:transformer\.|model\.|diffusion_model\.|unet\.|lora_unet_|lora_transformer_|lycoris_)*"
)
_FAMILIES = {
    rf"{_BEFORE}(?:double_blocks|single_blocks|single_transformer_blocks)[._]": "Flux or a transformer of its kind",
    rf"{_BEFORE}joint_blocks[._]": "Stable Diffusion 3",
    r"lora_te3_|text_encoder_3\.|(?:text_encoders\.)?t5(?:xxl)?\.": "a model that also reads texts by T5, such as "
    "Stable Diffusion 3 or Flux",
    r"(?:base_model\.model\.)?transformer\.|lora_transformer_": "a model that is a transformer, and no U-Net",
    rf"{_BEFORE}(?:transformer_blocks|blocks|layers)[._]\d": "a model that is a transformer, and no U-Net",
    r"lora_prior_": "Stable Cascade",
    r"lora_te2_|text_encoder_2\.|(?:text_encoders\.)?clip_g\.": XL,
    rf"{_BEFORE}(?:down_blocks|mid_block|up_blocks)[._].*motion_modules": "AnimateDiff",
    rf"(?:lora_controlnet_|control_model\.|controlnet\.)|{_BEFORE}input_hint_block": "a ControlNet",
}
# Channels of the text that a U-Net looks at -> the model, for the error.
_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: XL, 1280: "Stable Diffusion XL's refiner"}
# A name of the matrix whose rows are as wide as that text, in all layouts.
_LOOKS_AT_TEXT = re.compile(r".*attn2[._](processor\.)?to_[kv](_lora\.down|\.lora[._](linear_layer\.)?(down|A\b)).*")

# Settings of peft with which the same matrices mean something else. An adapter that has one of them on is refused.
_MUST_BE_OFF = """
alora_invocation_tokens arrow_config kasa_config layer_replication lora_bias modules_to_save monteclora_config
target_parameters trainable_token_indices use_bdlora use_dora use_qalora velora_config
""".split()
# The values of peft's `init_lora_weights` with which training begins from the base weights unchanged.
_HARMLESS_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


class LowRank(NamedTuple):
    """One layer's adapter."""

    down: Tensor  # A: (r in) for a linear layer, (r in h w) for a convolution
    up: Tensor  # B: (out r), or (out r 1 1)
    scale: float  # α/r

    def delta(self, like: Tensor, weight: float = 1.0) -> Tensor:
        """weight · α/r · B A: what is added to a layer's weight.

        Args:
            like: the layer's weight, whose shape and device the result has; float64 if it is, else float32.
            weight: how strong the adapter is; 1 is as it was trained.
        """
        wide = torch.promote_types(like.dtype, torch.float32)
        down, up = (matrix.to(like.device, wide).flatten(1) for matrix in (self.down, self.up))
        return (up @ down).mul_(weight * self.scale).view(like.shape)


class _Layers:
    """The layers of one network that can have an adapter, found by any of the names that files have for them."""

    def __init__(self, network: nn.Module) -> None:
        modules = network.named_modules()
        self.weights = {name: layer.weight for name, layer in modules if isinstance(layer, (nn.Linear, nn.Conv2d))}
        self.flat = {name.replace(".", "_"): name for name in self.weights}
        layers = getattr(getattr(network, "config", None), "layers_per_block", None)
        counts = set(layers) if isinstance(layers, (list, tuple)) else {layers}
        self.layers_per_block = counts.pop() if len(counts) == 1 else None

    def dotted(self, name: str) -> str | None:
        """The layer of a name with dots, which may be peft's, of one of diffusers' layouts or of the original one.

        None if there is no such layer.
        """
        stem, _, leaf = name.replace(".processor.", ".").rpartition(".")
        leaves = [leaf, f"{leaf}.0" if leaf == "to_out" else leaf, _OLD_LEAVES.get(leaf, leaf)]
        names = [f"{stem}.{leaf}" if stem else leaf for leaf in leaves]
        names += [f"text_model.{n}" for n in names] + [self._renamed(n) for n in names]
        return next((n for n in names if n in self.weights), None)

    def underscored(self, name: str) -> str | None:
        """The layer of a name with underscores in place of dots, as kohya writes it; None if there is none.

        The name may be diffusers' or that of Stable Diffusion's original layout.
        """
        names = (name, f"text_model_{name}", self._original(name))
        return next((self.flat[n] for n in names if n in self.flat), None)

    def _renamed(self, name: str) -> str:
        """A name of the original layout as diffusers' name; "" if it is no original name."""
        if not isinstance(self.layers_per_block, int):
            return ""
        return unet_name(f"{name}.weight", self.layers_per_block).removesuffix(".weight")

    def _original(self, name: str) -> str:
        """A name of the original layout as diffusers' name, both with underscores; "" if it is no original name."""
        ends = {end.replace(".", "_"): end for end in UNET_ENDS}
        if match := re.fullmatch(r"(?:(input|output)_blocks_(\d{1,4})|middle_block)_(\d)_(.+)", name):
            way, number, place, rest = match.groups()
            rest = next((part for part in UNET_RESNET if part.replace(".", "_") == rest), rest)
            block = f"{way}_blocks.{number}" if way else "middle_block"
            dotted = f"{block}.{place}.{rest}"
        else:
            dotted = ""
        return self._renamed(ends.get(name, dotted)).replace(".", "_")


def parse(
    tensors: Mapping[str, Any], networks: Mapping[str, nn.Module], config: Mapping[str, Any], what: str
) -> dict[str, dict[str, LowRank]]:
    """Sort a file's tensors by networks and their layers, and check them. Neither tensors nor networks are changed.

    Args:
        tensors: the file's tensors by their names.
        networks: by their names in a pipeline, such as "unet", "text_encoder" and "text_encoder_2".
        config: the settings that peft or diffusers wrote beside the tensors, such as `lora_alpha` and `alpha_pattern`:
            for all networks, or for each by its name ("unet.lora_alpha"). Empty if there are none.
        what: the error's first words, which name the file.

    Returns:
        For each network that the file has tensors for, {layer: its adapter}.

    Raises:
        WeightsError: names are unknown, missing or repeated, shapes are not the layers', values are not finite, or
            settings are not implemented; the message lists all of these.
    """
    layers = {name: _Layers(network) for name, network in networks.items()}
    # A name without a network's name is looked for in that network first that most of such tensors fit.
    layers = dict(sorted(layers.items(), key=lambda item: -_fitting(tensors, item[1])))
    found, unknown, problems = _sort(tensors, layers)
    families = [family for pattern, family in _FAMILIES.items() if any(re.match(pattern, name) for name in unknown)]
    families = [family for family in families if family is not XL or "text_encoder_2" not in networks]
    families += _other_widths(tensors, layers.get("unet"))
    result: dict[str, dict[str, LowRank]] = {}
    for network, own in layers.items():
        settings = _settings(config, network)
        problems += _check_settings(settings, network) if any(place[0] == network for place in found) else []
        for (_, layer), parts in ((place, parts) for place, parts in found.items() if place[0] == network):
            weight = own.weights[layer]
            wrong = _check_tensors(f"{network}.{layer}", parts, weight)
            if not wrong:
                # Copies, because the tensors are mapped from a file that may change.
                down, up = (parts[way][1].detach().clone() for way in ("down", "up"))
                scale, wrong = _scale(f"{network}.{layer}", layer, len(down), parts, settings)
                result.setdefault(network, {})[layer] = LowRank(down, up, scale)
            problems += wrong
    hint = f"; it may be for {families[0]}" if families else ""
    raise_for_problems(problems, f"{what} is no LoRA for the {' and the '.join(networks)} of this pipeline{hint}")
    return result


def _fitting(tensors: Mapping[str, Any], own: _Layers) -> int:
    """How many of the matrices whose names begin with no network's name fit a network's layers.

    By that the two text encoders of Stable Diffusion XL, whose layers have the same names, are told apart.
    """
    count = 0
    for key, tensor in tensors.items():
        match = (
            _NAME.fullmatch(key) if isinstance(key, str) and isinstance(tensor, Tensor) and tensor.ndim > 1 else None
        )
        name = match["layer"].removeprefix(PEFT_PREFIX) if match else ""
        if match is None or name.startswith(tuple(_PREFIXES)):
            continue
        weight = own.weights.get(own.dotted(name) or "")
        is_up = "B" in (match["letter"] or "") or "up" in (match["way"] or match["kohya"] or "")
        if weight is not None:
            count += tensor.shape[0] == weight.shape[0] if is_up else tensor.shape[1:] == weight.shape[1:]
    return count


def _other_widths(tensors: Mapping[str, Any], unet: _Layers | None) -> list[str]:
    """The models whose U-Nets look at texts as wide as the adapter's matrices, if this one does not."""
    weights = {} if unet is None else unet.weights
    own = next((weight.shape[1] for name, weight in weights.items() if name.endswith("attn2.to_k")), None)
    down = (tensor for key, tensor in tensors.items() if isinstance(key, str) and _LOOKS_AT_TEXT.fullmatch(key))
    widths = (tensor.shape[-1] for tensor in down if isinstance(tensor, Tensor) and tensor.ndim)
    return [_WIDTHS[width] for width in widths if width in _WIDTHS and width != own][:1]


def _sort(
    tensors: Mapping[str, Any], layers: Mapping[str, _Layers]
) -> tuple[dict[Place, Stored], list[str], list[str]]:
    """The tensors of each layer, the names that mean no layer, and what is wrong with all names, in words."""
    found: dict[Place, Stored] = {}
    unknown = []
    problems = [] if tensors else ["missing: there is no tensor at all"]
    adapters = set()
    for key, tensor in tensors.items():
        match = _NAME.fullmatch(key) if isinstance(key, str) else None
        place = _place(match["layer"], layers) if match else None
        if not isinstance(tensor, Tensor):
            problems.append(f"no tensor: {str(key)[:200]} is {type(tensor).__name__}")
        elif match is None or place is None:
            unknown.append(str(key))
            problems.append(f"unexpected: {str(key)[:200]} {tuple(tensor.shape)}{_kind(str(key))}")
        else:
            part = match["alpha"] or match["kohya"] or match["way"] or _PARTS[match["letter"]]
            stored = found.setdefault(place, {})
            if part in stored:
                problems.append(f"twice: {key[:200]} means the same matrix as {stored[part][0][:200]}")
            stored[part] = key, tensor
            adapters |= {match["adapter"]} - {None}
    if len(adapters) > 1:
        listed = ", ".join(sorted(adapters)[:5])
        problems.append(f"more than one adapter: {listed[:200]}; save each in a file of its own")
    return found, unknown, problems


def _place(name: str, layers: Mapping[str, _Layers]) -> Place | None:
    """The network and the layer that a name means, which is without its last part; None if it means none."""
    name = name.removeprefix(PEFT_PREFIX)
    for prefix, network in _PREFIXES.items():
        if name.startswith(prefix):
            if network not in layers:
                return None
            own, rest = layers[network], name.removeprefix(prefix)
            layer = own.dotted(rest) if prefix.endswith(".") else own.underscored(rest)
            return None if layer is None else (network, layer)
    places = ((network, own.dotted(name)) for network, own in layers.items())
    return next(((network, layer) for network, layer in places if layer is not None), None)


def _kind(key: str) -> str:
    """What kind of adapter an unknown name belongs to, in words that end an error; "" if that is not known."""
    return next((f", of {kind}" for mark, kind in _KINDS.items() if mark in key), "")


def _check_tensors(name: str, parts: Stored, weight: Tensor) -> list[str]:
    """What is wrong with the tensors that a file has for a layer with this weight, in words."""
    problems = [f"missing: the {way} matrix of {name}" for way in ("down", "up") if way not in parts]
    for part, (key, tensor) in parts.items():
        if not (tensor.is_floating_point() or (part == "alpha" and tensor.dtype == torch.int64)):
            problems.append(f"wrong type: {key[:200]} is {tensor.dtype}")
        elif part == "alpha" and tensor.numel() != 1:
            problems.append(f"wrong shape: {key[:200]} is {tuple(tensor.shape)}, needed is one number")
    if problems:
        return problems
    rank = len(parts["down"][1]) if parts["down"][1].ndim else 0
    if rank == 0:
        problems.append(f"no rank: {parts['down'][0][:200]} is {tuple(parts['down'][1].shape)}")
    wanted = {"down": (rank, *weight.shape[1:]), "up": (weight.shape[0], rank, *(1 for _ in weight.shape[2:]))}
    for way, shape in wanted.items():
        key, tensor = parts[way]
        if tuple(tensor.shape) != shape:
            problems.append(f"wrong shape: {key[:200]} is {tuple(tensor.shape)}, needed is {shape}")
    if not problems:  # only of tensors of the right shape, as the values of larger ones could take any time to read
        finite = {key: bool(tensor.float().isfinite().all()) for key, tensor in parts.values()}
        problems += [f"not finite: {key[:200]}" for key, is_finite in finite.items() if not is_finite]
    return problems


# --- what stands beside the tensors ----------------------------------------------------------------------------------

Pattern = dict[str, tuple[int, Any]]  # the name of a layer, or the end of one -> the place in the file, and the value


class _Settings(NamedTuple):
    """The settings that a file has for one network."""

    values: dict[str, Any]
    ranks: Pattern  # r of layers whose r is not the general one
    alphas: Pattern  # α of layers whose α is not the general one


def _settings(config: Mapping[str, Any], network: str) -> _Settings:
    """Those of a file's settings that are for one network, or all of them if they are for every network."""
    values = dict(config)
    if any(str(key).startswith(("unet.", "text_encoder.", "text_encoder_2.")) for key in config):
        own = f"{network}."
        values = {key.removeprefix(own): value for key, value in config.items() if key.startswith(own)}
    return _Settings(values, _pattern(values.get("rank_pattern")), _pattern(values.get("alpha_pattern")))


def _pattern(given: Any) -> Pattern:
    """The values of a `rank_pattern` or `alpha_pattern` by the layers' names.

    peft takes the keys for regular expressions. Programs write plain names there, at most with the signs that escape a
    dot and mark the end, which are removed here; `_check_settings` refuses any other expression.
    """
    found: Pattern = {}
    for key, value in given.items() if isinstance(given, dict) else ():
        found.setdefault(key.removesuffix("$").replace("\\", ""), (len(found), value))
    return found


def _at(pattern: Pattern, layer: str) -> Any:
    """A pattern's value for a layer; None if it has none.

    As in peft, a key means all layers whose names end in it, or with a ^ in front the one layer of that name, and the
    first key that fits decides.
    """
    names = (layer, layer.removeprefix("text_model."))
    words = [name.split(".") for name in names]
    ends = {".".join(each[i:]) for each in words for i in range(len(each))} | {f"^{name}" for name in names}
    return min((pattern[end] for end in ends if end in pattern), key=lambda hit: hit[0], default=(0, None))[1]


def _check_settings(settings: _Settings, network: str) -> list[str]:
    """What is wrong with the settings: those that are not implemented or of the wrong kind, each in words."""
    values = settings.values
    wrong = {key: "not implemented" for key in _MUST_BE_OFF if values.get(key)}
    if values.get("peft_type") not in (None, "LORA"):
        wrong["peft_type"] = "not LORA"
    if values.get("bias") not in (None, "none"):
        wrong["bias"] = "not implemented"
    if values.get("init_lora_weights") not in _HARMLESS_STARTS:
        wrong["init_lora_weights"] = "a start that changes the base weights"
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(values.get(key), (dict, type(None))):
            wrong[key] = "no object"
    problems = [f"setting: {network}.{key} is {reprlib.repr(values[key])}, {why}" for key, why in wrong.items()]
    numbers = {key: values[key] for key in ("r", "lora_alpha") if values.get(key) is not None}
    for what, pattern in (("rank_pattern", settings.ranks), ("alpha_pattern", settings.alphas)):
        numbers |= {f"{what}[{key[:100]}]": value for key, (_, value) in pattern.items()}
        strange = [key for key in pattern if re.search(r"[*+?()[\]{}|]", key)]
        problems += [f"setting: {network}.{what} has {key[:100]!r}, which is no layer's name" for key in strange]
    return problems + [
        f"setting: {network}.{key} is {reprlib.repr(value)}, no number"
        for key, value in numbers.items()
        if not _is_number(value)
    ]


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number of a size that a rank or α may have."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _scale(name: str, layer: str, rank: int, parts: Stored, settings: _Settings) -> tuple[float, list[str]]:
    """The factor of a layer's adapter, and what is wrong with it, in words.

    It is α/r or, where the settings have `use_rslora` (Kalajdzievski 2023), α/√r. Where nothing says α, it is r.
    """
    values = settings.values
    alphas = (_at(settings.alphas, layer), values.get("lora_alpha"))
    alpha = next((value for value in alphas if value is not None), None)
    if "alpha" in parts:
        own = float(parts["alpha"][1])
        if alpha is not None and alpha != own:
            return 0.0, [f"alpha: {name} has {own:g}, but {reprlib.repr(alpha)} in the settings"]
        return own / rank, []
    ranks = (_at(settings.ranks, layer), values.get("r"))
    said = next((value for value in ranks if value is not None), rank)
    if said != rank:
        return 0.0, [f"rank: {name} has {rank}, but {reprlib.repr(said)} in the settings"]
    alpha = alpha if _is_number(alpha) else rank  # an α that is no number was listed by `_check_settings` already
    return float(alpha) / (math.sqrt(rank) if values.get("use_rslora") else rank), []
