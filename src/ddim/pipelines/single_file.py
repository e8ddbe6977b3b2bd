"""Stable Diffusion 1 and 2 from one `.safetensors` file in the layout of the programs that trained them.

Such a file holds a U-Net, an autoencoder and a text encoder; `original_layout` says which tensor is which.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ddim.checkpoint import PretrainedModel, choose_dtype
from ddim.checkpoint.files import outline, read_metadata, read_tensors
from ddim.checkpoint.hub import Repository
from ddim.checkpoint.loading import differences, fill, raise_for_problems, skeleton
from ddim.checkpoint.original_layout import PREFIXES, Part, State, convert
from ddim.checkpoint.predicted import Notes, read_notes
from ddim.errors import CheckpointError, ConfigError
from ddim.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from ddim.models.byte_pairs import END
from ddim.models.tokenizer import CLIPTokenizer
from ddim.process import PredictionType, prediction
from ddim.scheduler import DDIMScheduler

__all__ = ["load_single_file"]

CLASSES: dict[str, type[PretrainedModel]] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
}
PARTS = (*CLASSES, "scheduler")
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
# What a network besides needs whose last timestep has no signal at all (Lin et al. 2024).
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
GLOBAL_STEP = "global_step"
# How long Stable Diffusion 2's model for 512x512 was trained, which predicts ε. diffusers tells it by that, too.
STEPS_OF_SD2_BASE = 875_000
# How the names of the tensors in other kinds of file begin, and what those files hold.
OTHERS = {
    "conditioner.embedders.": "Stable Diffusion XL",
    "text_encoders.": "Stable Diffusion 3 or later",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "Flux",
    "control_model.": "a ControlNet",
    "depth_model.": "Stable Diffusion 2's depth model",
    "edm_": "a model of EDM's noise levels, for which DDIM has no schedule",
    "down_blocks.": "a U-Net in diffusers' layout, whose folder from_pretrained loads",
}
# A part of the names in all layouts of LoRAs, which otherwise begin as those of the models that they are for.
LORA = re.compile(r"(^|[._])lora[._]|_lora\.|^lora_")


def load_single_file(
    path: str | os.PathLike[str],
    *,
    parts: Sequence[str] = PARTS,
    tokenizer: CLIPTokenizer | str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    torch_dtype: torch.dtype | None = None,
    prediction_type: PredictionType | None = None,
    use_ema: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Load the networks of a Stable Diffusion 1 or 2 checkpoint in the original layout, and make their scheduler.

    Args:
        path: a `.safetensors` file, or `https://huggingface.co/OWNER/NAME/blob/main/FILE.safetensors`. One that holds a
            U-Net or an autoencoder alone, without their prefix, will do for that part.
        parts: which to load, of "unet", "vae", "text_encoder" and "scheduler".
        tokenizer: there is none in such a file. One that is given is returned; of a folder or a hub id (of a tokenizer,
            or of a pipeline that has one) one is loaded that fills texts up as the file's text encoder knows it.
        dtype: the parameters' type, float32 unless told; `torch_dtype` is its older name.
        prediction_type: what the U-Net predicts, whatever the file says. The weights do not say it; many files have a
            note of it (`checkpoint.predicted`), and of zero terminal SNR. Without one, "epsilon" is right for Stable
            Diffusion 1, "v_prediction" is taken for Stable Diffusion 2, with a warning, as its models for 512x512
            ("base") predict epsilon; its inpainting model predicts epsilon.
        use_ema: take the U-Net's averaged weights, which files for further training have beside the others.
        options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub.

    Returns:
        The parts by their names; networks in eval mode.

    Raises:
        CheckpointError: no such file or tokenizer, or not this format. Pickles (`.ckpt`) are never read.
        WeightsError: names or shapes are not Stable Diffusion's; all are listed.
        ConfigError: the weights are of no sensible structure, `prediction_type` is unknown, or it is not given and the
            file's notes contradict each other.

    Warns:
        UserWarning: what is predicted had to be guessed, or the file's zero terminal SNR cannot be had with it.
    """
    dtype = choose_dtype(dtype, torch_dtype)
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ValueError(f"a single file has no part {', '.join(unknown)}: its parts are {', '.join(PARTS)}")
    file = _locate(path, {**options})
    tensors = outline(file)
    found, problems = convert(tensors, use_ema)
    unet, vae = found["unet"].config, found["vae"].config
    notes = read_notes(tensors, read_metadata(file))
    if prediction_type is not None:
        prediction(prediction_type)  # raises a ConfigError unless it is known
    elif "unet" in parts or "scheduler" in parts:
        prediction_type = _prediction_type(file, tensors, notes, unet)
    unet["sample_size"] = 96 if unet["use_linear_projection"] and prediction_type == "v_prediction" else 64
    vae["sample_size"] = 8 * unet["sample_size"]

    networks: dict[str, PretrainedModel] = {}
    for name in [name for name in CLASSES if name in parts]:
        part = found[name]
        if not part.state:
            problems.append(f"missing: {' or '.join(PREFIXES[name])}…, the whole {name}: load it from another file")
            continue
        with skeleton():
            network = networks[name] = CLASSES[name].construct(part.config, file)
        wanted = {f"{name}.{key}": tensor for key, tensor in network.state_dict().items()}
        offered = {f"{name}.{key}": tensor for key, tensor in part.state.items()}
        offered = {
            key if key in wanted else part.stored[key.removeprefix(f"{name}.")]: tensor
            for key, tensor in offered.items()
        }
        problems += differences(wanted, offered)
    raise_for_problems(problems, f"{file} is no Stable Diffusion 1 or 2{_hint(tensors)}")
    if tokenizer is not None:  # before the weights are read, as it may have to be fetched
        tokenizer = _tokenizer(tokenizer, found["text_encoder"], options)

    for name, network in networks.items():
        part = found[name]

        def read(keys: Collection[str], name: str = name, part: Part = part) -> State:
            mapped = read_tensors(file, {part.stored[key] for key in keys})
            state = convert({**tensors, **mapped}, use_ema)[0][name].state
            return {key: state[key] for key in keys}

        fill(network, part.state, read, dtype, f"{file} does not fit {type(network).__name__}")
        network.eval()
    made: dict[str, Any] = {**networks}
    if prediction_type is not None and "scheduler" in parts:
        made["scheduler"] = _scheduler(file, notes, prediction_type)
    made = {name: made[name] for name in PARTS if name in parts}
    return made if tokenizer is None else {**made, "tokenizer": tokenizer}


def _tokenizer(given: Any, text_encoder: Part, options: Mapping[str, Any]) -> CLIPTokenizer:
    """The tokenizer that is given, or the one that is at the given place: in it or in its folder "tokenizer".

    Raises:
        ConfigError: it has more tokens than the text encoder, so it is another model's.
    """
    if isinstance(given, CLIPTokenizer):
        return given
    config = text_encoder.config
    repository = Repository.open(given, {name: value for name, value in options.items() if name != "revision"})
    names = ("tokenizer.json", "vocab.json")
    subfolder = "tokenizer" if any(repository.find(name, "tokenizer") for name in names) else None
    # OpenCLIP fills texts up with token 0, CLIP with the end token; the tokens are the same.
    pad = "!" if config["hidden_act"] == "gelu" else END
    tokenizer: CLIPTokenizer = CLIPTokenizer.load(repository, subfolder, pad_token=pad)
    if text_encoder.state and len(tokenizer) > config["vocab_size"]:
        raise ConfigError(
            f"the tokenizer of {repository.name} has {len(tokenizer)} tokens, and the text encoder knows "
            f"{config['vocab_size']}: give another tokenizer"
        )
    return tokenizer


def _locate(path: str | os.PathLike[str], options: dict[str, Any]) -> Path:
    """The file, fetched from the hub if it is there.

    Raises:
        CheckpointError: it is not there, or a pickle.
        TypeError: options that are not of the hub.
    """
    name = os.fspath(path)
    if Path(name).suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise CheckpointError(
            f"{name} is a pickle, which can run code when it is read, so it is not: get the .safetensors file of the "
            "same model, or convert it where you trust it"
        )
    url = re.fullmatch(
        r"(?:https://)?(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/(?:blob|resolve)/([^/]+)/([^?]+)(?:\?.*)?", name
    )
    if url is not None:
        options = {"revision": url[2], **options}
    repository = Repository.open(url[1] if url else name, options)
    if options:
        raise TypeError(f"load_single_file has no argument {', '.join(sorted(options))}")
    if url is not None:
        found = repository.find(url[3])
        if found is None:
            raise CheckpointError(f"{url[1]} has no file {url[3]}")
        return found
    if "://" in name:
        raise CheckpointError(f"{name} is no file of the hub: download it, and give its path")
    if os.path.isdir(name):
        raise CheckpointError(f"{name} is a folder: from_pretrained loads those")
    return Path(name)


def _prediction_type(file: Path, tensors: State, notes: Notes, config: Mapping[str, Any]) -> PredictionType:
    """What the U-Net predicts, from what the file says or, if it says nothing, from its family.

    Raises:
        ConfigError: the file contradicts itself, or says a word that is not known.
    """
    said = notes.prediction_type(file)
    if said is not None:
        return said
    is_second = config["use_linear_projection"]
    if notes.zero_snr:
        if not is_second:
            warnings.warn(
                f"{file} does not say what it predicts, but by {notes.zero_snr} that its last timestep has no signal: "
                "it is taken for v_prediction, as epsilon cannot be predicted there. To be silent, or if it is "
                "another, pass prediction_type=",
                stacklevel=3,
            )
        return "v_prediction"
    if not is_second or config["in_channels"] == 9:
        return "epsilon"
    if _global_step(file, tensors) == STEPS_OF_SD2_BASE:
        return "epsilon"
    warnings.warn(
        f"{file} does not say what it predicts; it is taken for v_prediction, as of Stable Diffusion 2 and 2.1 for "
        "768x768. If it is one for 512x512 (base), pass prediction_type='epsilon'; to be silent, say either",
        stacklevel=3,
    )
    return "v_prediction"


def _global_step(file: Path, tensors: State) -> float | None:
    """For how many steps the network was trained; None if the file does not say it."""
    if GLOBAL_STEP not in tensors or tensors[GLOBAL_STEP].numel() != 1:
        return None
    return read_tensors(file, {GLOBAL_STEP})[GLOBAL_STEP].item()


def _scheduler(file: Path, notes: Notes, prediction_type: str) -> DDIMScheduler:
    """The scheduler of a file whose network predicts that."""
    config = {**SCHEDULER, "prediction_type": prediction_type}
    if notes.zero_snr and prediction_type == "epsilon":
        warnings.warn(
            f"{file} says by {notes.zero_snr} that its last timestep has no signal, which no network can sample from "
            "that predicts epsilon: the schedule is left as it is. If it predicts v, pass "
            "prediction_type='v_prediction'",
            stacklevel=3,
        )
    elif notes.zero_snr:
        config |= ZERO_SNR
    scheduler: DDIMScheduler = DDIMScheduler.from_config(config)
    return scheduler


def _hint(names: Mapping[str, Any]) -> str:
    """The end of an error's text that says what these tensors may be of instead, if their names tell it."""
    if any(LORA.search(name) for name in names):
        return "; it may be a LoRA, which load_lora_weights of a pipeline loads"
    for prefix, what in OTHERS.items():
        if any(name.startswith(prefix) for name in names):
            return f"; it may be {what}"
    return ""
