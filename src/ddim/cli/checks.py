"""What is checked of a command's options before anything is imported that takes time: by one table, for all commands.

A rule is a function of a value and of its option as it is typed, which raises a ConfigError in one sentence. Options of
one name have one rule in all commands, unless `OWN` says another; a test holds that none was forgotten.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import secrets
import stat
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from ddim.checkpoint.nearby import alike, did_you_mean, nearby
from ddim.cli.adapters import check_adapter
from ddim.cli.controlling import check_controlnet
from ddim.cli.new_words import check_word
from ddim.cli.pickles import refuse_pickle
from ddim.cli.typed import typed
from ddim.errors import ConfigError, check_installed

Rule = Callable[[Any, str], None]

ANIMATIONS = (".gif", ".webp", ".mp4")  # what the name of an animation ends in
PLOTS = (".png", ".svg", ".pdf")
NOISE = ".safetensors"


def check(words: str, settings: Any, given: Collection[str] = ()) -> None:
    """Check every option of a command by its rule, and then those that depend on others by its own `check_together`.

    Args:
        words: the command, such as "plot schedule".
        settings: its settings.
        given: the names of the fields that were typed, whatever their values; `check_together` is told.

    Raises:
        ConfigError: a value cannot work; says which option to change.
        CheckpointError: there can be no such model.
        MissingExtraError: the command needs a library that is not installed.
    """
    for field in dataclasses.fields(settings):
        rule = OWN.get((words, field.name)) or RULES.get(field.name)
        value = getattr(settings, field.name)
        if rule is None or value is None:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            rule(one, typed(type(settings), field.name))
    for module, extra in NEEDED.get(words.split()[0], ()):
        check_installed(module, extra)
    if getattr(settings, "backend", None) == "openvino":
        check_installed("openvino", "fast")
    if hasattr(settings, "check_together"):
        settings.check_together(given)
    if hasattr(settings, "resume_from_checkpoint"):
        _checkpoint(settings.resume_from_checkpoint, settings.output_dir)


# --- numbers ---------------------------------------------------------------------------------------------------------


def number(least: float = -math.inf, most: float = math.inf, *, above: bool = False, below: bool = False) -> Rule:
    """A rule for numbers from `least`, itself allowed unless `above`, to `most`, allowed unless `below`; texts, such as
    sigma_hat, may be."""
    low = "" if least == -math.inf else f"above {least:g}" if above else f"{least:g} or more"
    if most == math.inf:
        wanted = low or "a finite number"
    else:
        wanted = f"above {least:g}" if above else f"from {least:g}"
        wanted += f" and below {most:g}" if below else f" and up to {most:g}" if above else f" to {most:g}"

    def rule(value: Any, option: str) -> None:
        if isinstance(value, str):
            return
        is_finite = isinstance(value, int) or math.isfinite(value)
        is_end = (above and value == least) or (below and value == most)
        if not is_finite or not least <= value <= most or is_end:
            raise ConfigError(f"{option} must be {wanted}, not {value!s:.30}")

    return rule


def check_order(order: int | None, eta: float | str) -> None:
    """Refuse steps of second order with noise.

    Raises:
        ConfigError: says which options do not go together.
    """
    if order == 2 and eta != 0:
        raise ConfigError(f"--order 2 needs an --eta of 0, not {eta}: leave one of them out")


# --- files and folders that are read ---------------------------------------------------------------------------------


def file(value: str, option: str) -> None:
    """A file that is there."""
    _present(value, option)
    if not stat.S_ISREG(os.stat(value).st_mode):
        kind = "a folder" if os.path.isdir(value) else "no ordinary file"
        raise ConfigError(f"{option} {value} is {kind}: give a file")


def picture(value: str, option: str) -> None:
    """A picture that is there, is of a kind that is read and is not too large. It is not decoded."""
    file(value, option)
    from ddim.images import check_picture

    check_picture(value, f"{option} {value}")


def folder(value: str, option: str) -> None:
    """A folder that is there."""
    _present(value, option)
    if not os.path.isdir(value):
        raise ConfigError(f"{option} {value} is a file: give the folder that it is in")


def file_or_folder(value: str, option: str) -> None:
    (folder if os.path.isdir(value) else file)(value, option)


def _present(value: str, option: str) -> None:
    with contextlib.suppress(ValueError):  # a zero byte
        if os.path.exists(value):
            if not os.access(value, os.R_OK):
                raise ConfigError(f"{option} {value} cannot be read: its permissions forbid it")
            return
    meant = did_you_mean(nearby(value, lambda path: path.exists()))
    raise ConfigError(f"there is no file or folder {value[:300]!r}, given as {option}{meant}")


def _checkpoint(value: str | None, output_dir: str) -> None:
    """The checkpoint that a training is to go on from: a word, a folder, or a name in the folder of the run."""
    places = [Path(value or ""), Path(output_dir) / (value or "")]
    if value not in (None, "latest", "none") and not any(place.exists() for place in places):
        meant = nearby(str(places[1]), Path.is_dir)
        raise ConfigError(
            f"there is no checkpoint {value!r:.300}, given as --resume-from-checkpoint{did_you_mean(meant)}"
        )


def data(value: str, option: str) -> None:
    """Pictures to learn from or to compare with: a name, a folder, a file, a pattern, or an id on the hub."""
    if value.partition(":")[0] == "digits" or any(letter in value for letter in "*?[") or os.path.exists(value):
        return
    if re.search(r"^[./~]|\\|/.*/", value) or value.endswith((".parquet", ".zip", ".tar", ".csv", ".jsonl")):
        _present(value, option)
    if "/" not in value and alike(value, ["digits"]):
        raise ConfigError(f"there is no data {value}, given as {option}: did you mean digits?")


# --- what is drawn with ----------------------------------------------------------------------------------------------


def model(value: str, option: str) -> None:
    """A folder, a bundled model, a single file, or an id on the hub, which is not asked."""
    from ddim.checkpoint.hub import Repository

    if is_single_file(value):
        if address_on_hub(value) is None:
            file(value, option)
        return
    refuse_pickle(value)
    Repository(value).check_name()


def is_single_file(value: str) -> bool:
    """Whether a model is one `.safetensors` file, here or on the hub."""
    return value.lower().endswith(".safetensors") and not os.path.isdir(value)


def address_on_hub(value: str) -> str | None:
    """The address of a single file on the hub, which may be given as owner/name/file; None for a file that is here."""
    if "://" in value:
        return value
    match = re.fullmatch(r"(\w[\w.-]*)/([\w.-]+)/(.+)", value)
    if match is None or os.path.isdir(match[1]):
        return None
    return f"https://huggingface.co/{match[1]}/{match[2]}/blob/main/{match[3]}"


def named(value: str, option: str) -> None:
    """The name of a network or of a pipeline, or its folder."""
    from ddim.checkpoint.hub import Repository

    Repository(value).check_name()


def served(value: str, option: str) -> None:
    """A model, or a name for clients and a model, as in mine=/models/sd15."""
    name, equals, place = value.partition("=")
    if equals and not (name and place):
        raise ConfigError(f"{option} {value} must be a model, or a name and a model, as in mine=/models/sd15")
    model(place if equals else value, option)


_DEVICES = r"(cpu|cuda|mps|xpu|hpu|npu|xla|mtia|privateuseone)(:\d+)?"
_MEANT = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "amd": "cuda",
    "rocm": "cuda",
    "apple": "mps",
    "metal": "mps",
    "intel": "xpu",
}


def device(value: str, option: str) -> None:
    """The name of a device as PyTorch writes it; whether it is there is seen later."""
    if re.fullmatch(_DEVICES, value):
        return
    kind, colon, index = value.lower().partition(":")
    meant = _MEANT.get(kind) or alike(kind, ["cpu", "cuda", "mps", "xpu"])
    meant = meant and meant + (colon + index if index.isdigit() else "")
    raise ConfigError(
        f"{option} {value} is no device: there are cpu, cuda (cuda:0, cuda:1 and so on; cards of NVIDIA and AMD), "
        f"mps (Apple's) or xpu (Intel's){did_you_mean(meant)}"
    )


# --- what is written -------------------------------------------------------------------------------------------------


def pictures_to(*others: str) -> Rule:
    """A rule for a picture's file, or a file with another of these endings, or a folder for a file each."""

    def rule(value: str, option: str) -> None:
        if value.endswith(("/", os.sep)) or os.path.isdir(value):
            _writable(Path(value) / "00000.png", option)
            return
        suffix = Path(value).suffix.lower()
        # To know the other kinds, Pillow imports them all, which takes 20 ms.
        if suffix != ".png" and suffix not in (*others, *picture_endings()):
            wanted = ".png (or .jpg, .webp and other pictures' endings"
            wanted += f"; {', '.join(others)} for an animation)" if others else ")"
            raise ConfigError(
                f"{option} {value} is not the name of a picture: let it end in {wanted}, or in / for a folder"
            )
        _writable(Path(value), option)

    return rule


def picture_endings() -> Sequence[str]:
    """The endings of the kinds of picture that can be written here."""
    from PIL import Image

    return [ending for ending, kind in Image.registered_extensions().items() if kind in Image.SAVE]


def file_to(*endings: str) -> Rule:
    """A rule for a file to write, whose name ends in one of these."""

    def rule(value: str, option: str) -> None:
        if Path(value).suffix.lower() not in endings:
            raise ConfigError(f"{option} {value} must end in {' or '.join(endings)}")
        if os.path.isdir(value):
            raise ConfigError(f"{option} {value} is a folder: give the name of a file")
        _writable(Path(value), option)

    return rule


def folder_to(value: str, option: str) -> None:
    """A folder to write into, which need not be there."""
    if not value:
        raise ConfigError(f"{option} is empty: give the name of a folder")
    _writable(Path(value) / "x", option)


def _writable(path: Path, option: str) -> None:
    """Find out whether a file can be written, by making another one in its folder, or in the nearest that is there.

    Nothing is left behind. Only trying tells: of a file system that cannot be written, permissions may say otherwise.
    """
    home = path.parent
    temporary = None
    try:
        while not os.path.lexists(home) and home != home.parent:
            home = home.parent
        if not home.is_dir():
            raise ConfigError(f"{option} {path} cannot be written: {home} is no folder")
        name = path.name if home == path.parent else "x"
        temporary = home / f".{name}.{secrets.token_hex(4)}.tmp{path.suffix}"  # as long as the name that is used later
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{option} {path} cannot be written: {why}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError, ValueError):
                temporary.unlink(missing_ok=True)


# --- the tables ------------------------------------------------------------------------------------------------------

COUNT = number(1)
NATURAL = number(0)

RULES: dict[str, Rule] = {
    # what is drawn with
    "model": model,
    "device": device,
    "lora": check_adapter,
    "controlnet": check_controlnet,
    "textual_inversion": check_word,
    "tokenizer": named,
    "vae": model,
    "refiner": model,
    "pretrained_model_name_or_path": named,
    "pretrained_vae_model_name_or_path": named,
    "model_config_name_or_path": named,
    # numbers
    "batch": COUNT,
    "batch_size": COUNT,
    "class_label": NATURAL,
    "class_labels": NATURAL,
    "eta": NATURAL,
    "fps": number(1, 60),
    "frames": number(2),
    "guidance_interval": NATURAL,
    "guidance_rescale": number(0, 1),
    "guidance_scale": number(),
    "height": COUNT,
    "moments": COUNT,
    "reference": COUNT,
    "samples": COUNT,
    "scale": COUNT,
    "seed": NATURAL,
    "seeds": NATURAL,
    "source_guidance_scale": number(),
    "steps": COUNT,
    "strength": number(0, 1),
    "crop": NATURAL,
    "original_size": NATURAL,
    "target_size": NATURAL,
    "negative_crop": NATURAL,
    "negative_original_size": NATURAL,
    "negative_target_size": NATURAL,
    "aesthetic_score": number(-1000, 1000),
    "negative_aesthetic_score": number(-1000, 1000),
    "denoising_start": number(0, 1, below=True),
    "denoising_end": number(0, 1, above=True),
    "refiner_start": number(0, 1, above=True, below=True),
    "width": COUNT,
    # of a job
    "threads": COUNT,
    "workers": COUNT,
    # of a server
    "deadline": number(0, above=True),
    "grace": NATURAL,
    "max_batch": COUNT,
    "max_models": COUNT,
    "max_n": number(1, 10),
    "max_queue": COUNT,
    "max_side": COUNT,
    "port": number(0, 65535),
    "replicas": COUNT,
    "store_megabytes": COUNT,
    "store_seconds": number(0, above=True),
    # what is read
    "api_key_file": file,
    "against": data,
    "data": data,
    "dataset_name": data,
    "features_weights": file,
    "from_image": file,
    "image": picture,
    "images": picture,
    "mask_image": picture,
    "control_image": picture,
    "control_from": picture,
    "condition_cells": COUNT,
    "control_guidance_start": number(0, 1),
    "control_guidance_end": number(0, 1),
    "prompts_file": file,
    "results": file_or_folder,
    "templates_file": file,
    "train_data_dir": folder,
    # what is written
    "out": pictures_to(),
    "output_dir": folder_to,
}

# Where an option of one command has another rule: by the command and the option.
OWN: dict[tuple[str, str], Rule] = {
    ("edit", "eta"): number(0, 1, above=True),
    ("edit", "strength"): number(0, 1, above=True),
    ("evaluate", "out"): folder_to,
    ("evaluate", "samples"): number(4),
    ("generate", "out"): folder_to,
    ("generate", "prompts"): file,
    ("interpolate", "out"): pictures_to(*ANIMATIONS),
    ("invert", "out"): file_to(NOISE),
    ("optimize", "out"): folder_to,
    ("serve", "model"): served,
    ("plot schedule", "model"): named,
    ("plot schedule", "out"): file_to(*PLOTS),
    ("plot tradeoff", "out"): file_to(*PLOTS),
    ("plot trajectory", "out"): file_to(*PLOTS),
}

# The libraries that all commands of a group need and that may not be installed, each with its extra.
NEEDED: dict[str, tuple[tuple[str, str], ...]] = {
    "evaluate": (("matplotlib", "plot"),),
    "generate": (("pydantic", "serve"),),
    "plot": (("matplotlib", "plot"),),
    "serve": (
        ("fastapi", "serve"),
        ("uvicorn", "serve"),
        ("prometheus_client", "serve"),
        ("python_multipart", "serve"),
    ),
    "train": (("accelerate", "train"),),
    "distill": (("accelerate", "train"),),
}
