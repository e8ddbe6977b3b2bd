"""Stable Diffusion 1, 2 and XL from one `.safetensors` file in the layout of the programs that trained them.

Such a file holds a U-Net, an autoencoder and one or two text encoders; `original_layout` says which tensor is which.
"""

from __future__ import annotations

import copy
import inspect
import os
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from ddim.checkpoint import PretrainedModel, choose_dtype
from ddim.checkpoint.files import outline, read_metadata, read_tensors
from ddim.checkpoint.hub import Repository
from ddim.checkpoint.loading import differences, fill, raise_for_problems, skeleton
from ddim.checkpoint.located import locate
from ddim.checkpoint.lora_layout import LORA
from ddim.checkpoint.original_layout import SD, XL, XL_REFINER, Family, Part, State, convert, family_of
from ddim.checkpoint.predicted import Notes, read_notes
from ddim.errors import ConfigError
from ddim.models import AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection, UNet2DConditionModel
from ddim.models.byte_pairs import END
from ddim.models.tokenizer import CLIPTokenizer
from ddim.pipelines.base import WITHOUT_EFFECT
from ddim.process import PredictionType, prediction
from ddim.scheduler import DDIMScheduler

__all__ = ["FromSingleFile", "class_of", "load_single_file"]

CLASSES: dict[str, type[PretrainedModel]] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
PARTS = (*CLASSES, "scheduler")
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
# For each family, the pipelines' classes: for a U-Net between latents, and for one that was trained to inpaint.
PIPELINES = {
    SD.name: ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"),
    XL.name: ("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline"),
    XL_REFINER.name: ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
}
# What the constructors of the pipelines are given for a family beside the parts.
SETTINGS = {XL_REFINER.name: {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}}
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
    "text_encoders.": "Stable Diffusion 3 or later",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "Flux",
    "control_model.": "a ControlNet, which ControlNetModel.from_single_file loads",
    "controlnet_": "a ControlNet, which ControlNetModel.from_single_file loads",
    "depth_model.": "Stable Diffusion 2's depth model",
    "edm_": "a model of EDM's noise levels (such as Playground 2.5 and CosXL), which are continuous and which DDIM, "
    "whose levels are those of a table of timesteps, has no schedule for",
    "down_blocks.": "a U-Net in diffusers' layout, whose folder from_pretrained loads",
    "scaled_fp8": "one whose weights of 8 bits need scales beside them, as some programs write it, which is not "
    "implemented: take the same model in float16 or bfloat16",
}
# What diffusers' users pass, as its networks' structure comes from elsewhere than the file.
NOT_READ = ("config", "original_config", "original_config_file")
# By which the name of a file says that its network predicts v.
V_IN_NAME = re.compile(r"((?<![A-Za-z])v|V)[-_ .]?(?i:pred|param)")
# The beginning of names that a Stable Diffusion 1 or 2 has.
SURELY_SD = re.compile(r"cond_stage_model\.|(model\.diffusion_model\.)?input_blocks\.")


def load_single_file(
    path: str | os.PathLike[str],
    *,
    parts: Sequence[str] | None = None,
    tokenizer: Any = None,
    tokenizer_2: Any = None,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    prediction_type: PredictionType | None = None,
    use_ema: bool = False,
    families: Sequence[Family] = (SD, XL, XL_REFINER),
    **options: Any,
) -> dict[str, Any]:
    """Load the networks of a Stable Diffusion 1, 2 or XL checkpoint in the original layout, and make their scheduler.

    Args:
        path: a `.safetensors` file, or `https://huggingface.co/OWNER/NAME/blob/main/FILE.safetensors`. One that holds a
            U-Net or an autoencoder alone, without their prefix, will do for that part.
        parts: which to load, of "unet", "vae", "text_encoder", "text_encoder_2" (Stable Diffusion XL's) and
            "scheduler"; all that such a file has unless told.
        tokenizer: there is none in such a file. One that is given is returned; of a folder or a hub id (of a tokenizer,
            or of a pipeline that has one) one is loaded that fills texts up as the file's text encoder knows it.
        tokenizer_2: the same for "text_encoder_2". If one of the two is given, the other is made of it.
        dtype: the parameters' type, float32 unless told, "auto" for those that are stored; `torch_dtype` is its older
            name.
        prediction_type: what the U-Net predicts, whatever the file says. The weights do not say it; many files have a
            note of it (`checkpoint.predicted`), and of zero terminal SNR. Without one, "epsilon" is right for Stable
            Diffusion 1 and XL, "v_prediction" is taken for Stable Diffusion 2, with a warning, as its models for
            512x512 ("base") predict epsilon; its inpainting model predicts epsilon.
        use_ema: take the U-Net's averaged weights, which files for further training have beside the others.
        families: which models the file may be of.
        options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub.

    Returns:
        The parts by their names; networks in eval mode.

    Raises:
        CheckpointError: no such file or tokenizer, or not this format. Pickles (`.ckpt`) are never read.
        WeightsError: names or shapes are not Stable Diffusion's; all are listed.
        ConfigError: the file is of another family; the weights are of no sensible structure; `prediction_type` is
            unknown, or it is not given although the file's notes contradict each other, or its name what they say.

    Warns:
        UserWarning: what is predicted had to be guessed, or the file's zero terminal SNR cannot be had with it.
    """
    chosen = choose_dtype(dtype, torch_dtype, auto=None)
    unknown = sorted(set(parts or ()) - set(PARTS))
    if unknown:
        raise ValueError(f"a single file has no part {', '.join(unknown)}: its parts are {', '.join(PARTS)}")
    file = locate(path, {**options})
    tensors = outline(file)
    family = _family(file, tensors, families)
    found, problems = convert(tensors, use_ema, family)
    parts = [name for name in PARTS if name in (*found, "scheduler")] if parts is None else parts
    lacking = [name for name in parts if name not in (*found, "scheduler")]
    if lacking:
        raise ValueError(f"{file} is {family.name}, which has no {' and no '.join(lacking)}")
    unet, vae = found["unet"].config, found["vae"].config
    said = read_metadata(file)
    notes = read_notes(tensors, said)
    if prediction_type is not None:
        prediction(prediction_type)  # raises a ConfigError unless it is known
    elif "unet" in parts or "scheduler" in parts:
        prediction_type = _prediction_type(file, tensors, notes, family, unet)
    unet["sample_size"] = _sample_size(family, unet, prediction_type)
    vae["sample_size"] = 8 * unet["sample_size"]
    if said.get("modelspec.architecture", "").startswith("stable-diffusion-xl"):  # of an autoencoder alone
        vae["scaling_factor"] = XL.scaling_factor

    networks: dict[str, PretrainedModel] = {}
    for name in [name for name in CLASSES if name in parts]:
        part = found[name]
        if not part.state:
            prefixes = " or ".join(f"{prefix}…" for prefix in family.prefixes[name])
            problems.append(f"missing: {prefixes}, the whole {name}: load it from another file")
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
    raise_for_problems(problems, f"{file} is no {family.name}{_hint(tensors)}")
    # Before the weights are read, as they may have to be fetched.
    tokenizers = _tokenizers({"tokenizer": tokenizer, "tokenizer_2": tokenizer_2}, found, options)

    for name, network in networks.items():
        part = found[name]

        def read(keys: Collection[str], name: str = name, part: Part = part) -> State:
            mapped = read_tensors(file, {part.stored[key] for key in keys})
            state = convert({**tensors, **mapped}, use_ema, family)[0][name].state
            return {key: state[key].contiguous() for key in keys}

        fill(network, part.state, read, chosen, f"{file} does not fit {type(network).__name__}")
        network.eval()
    made: dict[str, Any] = {**networks}
    if prediction_type is not None and "scheduler" in parts:
        made["scheduler"] = _scheduler(file, notes, prediction_type)
    return {name: made[name] for name in PARTS if name in parts} | tokenizers


def _family(file: Path, tensors: State, families: Sequence[Family]) -> Family:
    """The family of a file. One that may be of any is taken for the first that is asked for.

    Raises:
        ConfigError: it is of none that is asked for; the message says what loads it.
    """
    family = family_of(tensors)
    if family.name in [each.name for each in families]:
        return family
    if family is SD and not any(SURELY_SD.match(name) and not LORA.search(name) for name in tensors):
        return families[0]  # it is of none for sure
    raise ConfigError(
        f"{file} is {family.name}, not {families[0].name}: load it with {PIPELINES[family.name][0]}.from_single_file, "
        "or with DiffusionPipeline.from_single_file, which takes any"
    )


def _sample_size(family: Family, unet: Mapping[str, Any], prediction_type: str | None) -> int:
    """The side of the latents that a U-Net with this config was trained on, by what is published."""
    if family is not SD:
        return 128
    return 96 if unet["use_linear_projection"] and prediction_type == "v_prediction" else 64


def _tokenizers(
    given: Mapping[str, Any], found: Mapping[str, Part], options: Mapping[str, Any]
) -> dict[str, CLIPTokenizer]:
    """The tokenizers for a file's text encoders, by their names in a pipeline; none, if none is given."""
    made: dict[str, CLIPTokenizer] = {}
    for name, tokenizer in TOKENIZERS.items():
        others = [each for each in given.values() if each is not None]
        source = next(iter(others), None) if given[tokenizer] is None else given[tokenizer]
        if name in found and source is not None:
            made[tokenizer] = _tokenizer(source, found[name], options, tokenizer, source is given[tokenizer])
    return made


def _tokenizer(
    given: Any, text_encoder: Part, options: Mapping[str, Any], name: str, is_its_own: bool
) -> CLIPTokenizer:
    """The tokenizer that is given, or the one that is at the given place: in it or in its folder of this name.

    Args:
        is_its_own: whether it was given for this text encoder. A copy of another one's is made to suit it.

    Raises:
        ConfigError: it has more tokens than the text encoder, so it is another model's.
    """
    config = text_encoder.config
    # OpenCLIP fills texts up with token 0, CLIP with the end token; the tokens are the same.
    pad = "!" if config["hidden_act"] == "gelu" else END
    if not isinstance(given, (str, os.PathLike)):
        if is_its_own:
            return given  # type: ignore[no-any-return]
        other = copy.deepcopy(given)
        other.pad_token_id = other.convert_tokens_to_ids(pad)
        return other  # type: ignore[no-any-return]
    repository = Repository.open(given, {name: value for name, value in options.items() if name != "revision"})
    files = ("tokenizer.json", "vocab.json")
    folders = [name, "tokenizer", "tokenizer_2"]
    subfolder = next((each for each in folders if any(repository.find(file, each) for file in files)), None)
    tokenizer: CLIPTokenizer = CLIPTokenizer.load(repository, subfolder, pad_token=pad)
    if text_encoder.state and len(tokenizer) > config["vocab_size"]:
        raise ConfigError(
            f"the tokenizer of {repository.name} has {len(tokenizer)} tokens, and the text encoder knows "
            f"{config['vocab_size']}: give another tokenizer"
        )
    return tokenizer


def _prediction_type(
    file: Path, tensors: State, notes: Notes, family: Family, config: Mapping[str, Any]
) -> PredictionType:
    """What the U-Net predicts, from what the file says or, if it says nothing, from its family.

    Raises:
        ConfigError: the file contradicts itself, says a word that is not known, or only its own name says something.
    """
    said = notes.prediction_type(file)
    if said is not None:
        return said
    is_second = family is SD and config["use_linear_projection"]
    if notes.zero_snr:
        if not is_second:
            warnings.warn(
                f"{file} does not say what it predicts, but by {notes.zero_snr} that its last timestep has no signal: "
                "it is taken for v_prediction, as epsilon cannot be predicted there. To be silent, or if it is "
                "another, pass prediction_type=",
                stacklevel=3,
            )
        return "v_prediction"
    if not is_second and V_IN_NAME.search(file.stem):
        raise ConfigError(
            f"the name of {file} says that it predicts v, and nothing in it does: pass "
            "prediction_type='v_prediction' if that is right, else prediction_type='epsilon', as the wrong one spoils "
            "every picture"
        )
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


# --- pipelines -------------------------------------------------------------------------------------------------------


def class_of(file: Path) -> str:
    """The name of the pipeline's class for a single file.

    Raises:
        CheckpointError: it is no readable safetensors file.
    """
    tensors = outline(file)
    family = family_of(tensors)
    channels = convert(tensors, family=family)[0]["unet"].config["in_channels"]
    return PIPELINES[family.name][channels == 9]


class FromSingleFile:
    """For pipelines of the models that were published as single files."""

    parts: ClassVar[tuple[str, ...]]
    single_files: ClassVar[tuple[Family, ...]]  # the families that the class is for

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | os.PathLike[str],
        *,
        tokenizer: Any = None,
        tokenizer_2: Any = None,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        prediction_type: PredictionType | None = None,
        use_ema: bool = False,
        **options: Any,
    ) -> Self:
        """Load a checkpoint that is one `.safetensors` file in the original layout.

        Args:
            pretrained_model_link_or_path: the file, or its address at huggingface.co.
            tokenizer: one, or where one is, such as "openai/clip-vit-large-patch14": there is none in such a file.
            tokenizer_2: of a second text encoder. If one of the two is given, the other is made of it.
            dtype: the networks' type, float32 unless told, "auto" for those that are stored; `torch_dtype` is its older
                name.
            prediction_type, use_ema: see `single_file.load_single_file`.
            options: the hub's; a part by its name (`vae=…`, `scheduler=…`) is used instead of the file's, and other
                arguments of the constructor are passed on. Those in `WITHOUT_EFFECT` are without effect.

        Raises:
            CheckpointError: no such file or tokenizer, or not this format.
            WeightsError: names or shapes are not Stable Diffusion's; all are listed.
            ConfigError: the file is of another family of models.
        """
        options = {name: value for name, value in options.items() if name not in WITHOUT_EFFECT}
        for name in [name for name in NOT_READ if name in options]:
            raise TypeError(
                f"{name}= is not needed: what the weights do not say is given by tokenizer=, prediction_type= and "
                "scheduler="
            )
        taken = [name for name in inspect.signature(cls.__init__).parameters if name not in TOKENIZERS.values()]
        given = {name: options.pop(name) for name in taken if name in options}
        file = locate(pretrained_model_link_or_path, {**options})
        family = _family(file, outline(file), cls.single_files)
        read = [name for name in (*family.prefixes, "scheduler") if name not in given]
        reads_texts = any(given.get(name, cls) is not None for name in family.prefixes if name in TOKENIZERS)
        if tokenizer is None and tokenizer_2 is None and reads_texts:
            raise TypeError(
                "a single file has no tokenizer: give tokenizer=, for example a folder that has one, "
                "or 'openai/clip-vit-large-patch14'"
            )
        loaded = load_single_file(
            file,
            parts=read,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            torch_dtype=torch_dtype,
            dtype=dtype,
            prediction_type=prediction_type,
            use_ema=use_ema,
            families=cls.single_files,
            **options,
        )
        of_family = {name: value for name, value in SETTINGS.get(family.name, {}).items() if name in taken}
        missing = dict.fromkeys(name for name in (*TOKENIZERS, *TOKENIZERS.values()) if name in cls.parts)
        return cls(**{**missing, **of_family, **loaded, **given})
