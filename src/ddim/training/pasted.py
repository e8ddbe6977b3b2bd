"""Flags of diffusers' training scripts that are no settings here: what they are called, and why they need not be.

The scripts are `train_text_to_image.py`, `train_text_to_image_lora.py`, `train_controlnet.py` and
`textual_inversion.py`, those of the same names that end in `_sdxl.py`, and `train_unconditional.py`. Most of their
flags are settings of ours, of the same name. The others are looked up here, before the command line is read.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence

from ddim.errors import ConfigError
from ddim.training.settings import (
    ControlNetSettings,
    LoraSettings,
    PixelSettings,
    TextToImageSettings,
    TextualInversionSettings,
    TrainSettings,
    VAESettings,
)

# What flags are called here.
RENAMED = {
    "validation_prompt": "validation_prompts",
    "validation_image": "validation_images",
    "model": "pretrained_model_name_or_path",
    "num_epochs": "num_train_epochs",
    "logger": "report_to",
    "eval_batch_size": "num_validation_images",
    "save_images_epochs": "validation_epochs",
    "ddpm_num_steps": "num_train_timesteps",
    "ddpm_num_inference_steps": "validation_inference_steps",
    "ddpm_beta_schedule": "beta_schedule",
    "ema_max_decay": "ema_decay",
    "save_steps": "checkpointing_steps",
    "proportion_empty_prompts": "caption_dropout",
    "enable_bucket": "aspect_ratio_buckets",  # as kohya's scripts call it
    "dataset_name": "data",  # these two where there is no setting of the name: for pixels
    "train_data_dir": "data",
}

_ATTENTION = "PyTorch's own attention is used, which takes as little memory"
# Flags that change nothing of the result, and why they are not needed; those that take a value are marked.
NEEDLESS = {
    "enable_xformers_memory_efficient_attention": (_ATTENTION, False),
    "enable_npu_flash_attention": (_ATTENTION, False),
    "foreach_ema": ("the average of all weights is computed at once in any case", False),
    "overwrite_output_dir": (
        "as with diffusers' script nothing is deleted: give a new --output-dir to begin anew",
        False,
    ),
    "tokenizer_name": ("the pipeline has a tokenizer", True),
    "repeats": ("the pictures are gone through as often as there are steps", True),
    "no_safe_serialization": ("words are saved as safetensors, which diffusers loads", False),
    "save_as_full_pipeline": ("pipe.load_textual_inversion and pipe.save_pretrained make one", False),
    "set_grads_to_none": ("that is done in any case", False),
    "crops_coords_top_left_h": ("the corner of each picture's own crop is told", True),
    "crops_coords_top_left_w": ("the corner of each picture's own crop is told", True),
    "debug_loss": ("the loss is logged by timestep in any case", False),
    "local_rank": ("`accelerate launch` and torchrun say it by an environment variable", True),
}

# Flags that would change the result, and are not followed.
REFUSED = {
    "preserve_input_precision": "pictures are read with 8 bits a colour: leave it out",
}

COMMANDS: dict[str, type[TrainSettings]] = {
    "pixels": PixelSettings,
    "vae": VAESettings,
    "text-to-image": TextToImageSettings,
    "lora": LoraSettings,
    "textual-inversion": TextualInversionSettings,
    "controlnet": ControlNetSettings,
}


def translate(kind: type[TrainSettings], arguments: Sequence[str]) -> list[str]:
    """A command line in which every flag is one of the settings; says on stderr what is left out and why.

    Args:
        kind: the settings of the command.
        arguments: as they were typed, after the command's name.

    Raises:
        ConfigError: a flag would change the result and is not followed, or is one of another command.
    """
    mine = _names(kind)
    translated: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else ""
        if name in NEEDLESS:
            reason, takes_value = NEEDLESS[name]
            if takes_value and not equals and rest:
                rest.pop(0)
            _say(f"{flag} is not needed: {reason}")
        elif name in REFUSED:
            raise ConfigError(f"{flag} is not followed: {REFUSED[name]}")
        elif name in mine or name.removeprefix("no_") in mine:
            translated.append(argument)
        elif RENAMED.get(name) in mine:
            translated.append(f"--{RENAMED[name].replace('_', '-')}{equals}{value}")
        else:
            others = [command for command, other in COMMANDS.items() if RENAMED.get(name, name) in _names(other)]
            if others:
                own = next(command for command, other in COMMANDS.items() if other is kind)
                first = ", ".join(f"`ddim train {command}`" for command in others[:-1])
                listed = f"{first} and `ddim train {others[-1]}`" if first else f"`ddim train {others[-1]}`"
                raise ConfigError(f"{flag} is an option of {listed}, not of `ddim train {own}`")
            translated.append(argument)
    # The script's average begins with a small decay, and its options say how it rises.
    names = {argument.partition("=")[0].removeprefix("--").replace("-", "_") for argument in arguments}
    if names & {"ema_max_decay", "ema_inv_gamma"} and "ema_power" not in names:
        translated += ["--ema-power", "0.75"]
    return translated


def _names(kind: type[TrainSettings]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind) if field.init}


def _say(what: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # the first of several processes
        print(f"ddim: {what}", file=sys.stderr)
