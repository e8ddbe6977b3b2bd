"""What a picture, or a file of noise, says of how it was made, so that it can be made again.

It is the data of a stranger, whoever wrote it. Each setting has a rule here, of its type and of its bounds, or it is
not followed: no path to a file, no backend or device, and no model but a bundled one, unless the user gives it.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from ddim._version import __version__
from ddim.checkpoint.said import LONGEST, parse
from ddim.cli.typed import typed, typed_fields
from ddim.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from ddim.cli.invert import InvertSettings
    from ddim.cli.sample import SampleSettings
    from ddim.pipelines import DiffusionPipeline
    from ddim.plan import SamplingPlan

PROMPT = 100_000  # characters
PICTURES = 1000  # of one recipe
SIDE = 2048  # pixels
STEPS = 1000
TIMESTEPS = 100_000  # that a model was trained on
# What may be typed beside noise, of which the steps and the class are settled.
_BESIDE_NOISE = {
    *(
        "model",
        "lora",
        "textual_inversion",
        "weights",
        "vae",
        "variant",
        "tokenizer",
        "prediction_type",
        "prompt",
        "negative_prompt",
        "guidance_scale",
    ),
    *("guidance_rescale", "dtype", "backend", "device", "scale", "from_image", "trust", "out", "overwrite"),
}

Rule = Callable[[Any], Any]
"""From a value in JSON to the setting's; a ValueError says what it must be."""


# --- rules ------------------------------------------------------------------------------------------------------------


def whole(least: int, most: int) -> Rule:
    def rule(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return value

    return rule


def number(least: float, most: float, *words: str) -> Rule:
    def rule(value: Any) -> Any:
        if isinstance(value, str) and value in words:
            return value
        if type(value) not in (int, float) or not least <= value <= most:  # of which NaN is none
            raise ValueError(f"a number from {least:g} to {most:g}")
        return value

    return rule


def text(longest: int, pattern: str = r"(?s).*") -> Rule:
    def rule(value: Any) -> str:
        if not isinstance(value, str) or len(value) > longest or not re.fullmatch(pattern, value):
            raise ValueError(f"a text of up to {longest} characters")
        return value

    return rule


def flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def several(each: Rule, least: int, most: int) -> Rule:
    def rule(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise ValueError(f"a list of {least} to {most}")
        return tuple(each(one) for one in value)

    return rule


def optional(rule: Rule) -> Rule:
    return lambda value: None if value is None else rule(value)


def one_of(value: Any) -> Any:
    """What the setting's own type lists; see `_choices`."""
    raise AssertionError("this is a mark")


FOLLOWED: dict[str, Rule] = {
    "prompt": optional(text(PROMPT)),
    "negative_prompt": optional(text(PROMPT)),
    "prompt_2": optional(text(PROMPT)),
    "negative_prompt_2": optional(text(PROMPT)),
    "original_size": optional(several(whole(0, 100_000), 2, 2)),
    "crop": optional(several(whole(0, 100_000), 2, 2)),
    "target_size": optional(several(whole(0, 100_000), 2, 2)),
    "negative_original_size": optional(several(whole(0, 100_000), 2, 2)),
    "negative_crop": optional(several(whole(0, 100_000), 2, 2)),
    "negative_target_size": optional(several(whole(0, 100_000), 2, 2)),
    "aesthetic_score": optional(number(-1000, 1000)),
    "negative_aesthetic_score": optional(number(-1000, 1000)),
    "denoising_start": optional(number(0, 1)),
    "denoising_end": optional(number(0, 1)),
    "refiner_start": number(0, 1),
    "variant": optional(text(50, r"[\w.-]*")),
    "prediction_type": one_of,
    "weights": one_of,
    "class_label": optional(whole(0, 1_000_000)),
    "class_labels": several(whole(0, 1_000_000), 0, PICTURES),
    "guidance_scale": optional(number(-1000, 1000)),
    "guidance_rescale": optional(number(0, 1)),
    "guidance_interval": optional(several(whole(0, TIMESTEPS), 2, 2)),
    "steps": whole(1, STEPS),
    "eta": number(0, 100, "sigma_hat"),
    "order": one_of,
    "spacing": one_of,
    "zero_snr": optional(flag),
    "seed": whole(0, 2**63 - 1),
    "batch": optional(whole(1, PICTURES)),
    "height": optional(whole(1, SIDE)),
    "width": optional(whole(1, SIDE)),
    "strength": number(0, 1),
    "guess_mode": flag,
    "control_guidance_start": several(number(0, 1), 0, 8),
    "control_guidance_end": several(number(0, 1), 0, 8),
    "condition": one_of,
    "condition_cells": whole(1, SIDE),
    "method": one_of,
    "dtype": one_of,
    "scale": optional(whole(1, 64)),
    "labels": flag,
}

# Files that a picture was made of. They are paths of a stranger: the user has to give them.
FILES = (
    "lora",
    "textual_inversion",
    "vae",
    "tokenizer",
    "refiner",
    "image",
    "mask_image",
    "controlnet",
    "control_image",
    "control_from",
)

# What is the user's alone, whatever the picture says.
OWN = ("backend", "device", "from_image", "trust", "out", "overwrite", "images", "check")


def _choices(kind: type, field: str) -> Rule:
    """The rule of a setting whose type lists what it may be."""
    listed: list[Any] = []
    kinds = [get_type_hints(kind)[field]]
    while kinds:
        hint = kinds.pop()
        if get_origin(hint) is Literal:
            listed += get_args(hint)
        elif hint is type(None):
            listed.append(None)
        else:
            kinds += get_args(hint)

    def rule(value: Any) -> Any:
        if not any(value == one and type(value) is type(one) for one in listed):
            raise ValueError(f"one of {', '.join(str(one) for one in listed)}")
        return value

    return rule


# --- reading ----------------------------------------------------------------------------------------------------------


class Recipe(NamedTuple):
    """What a picture says of how it was made.

    Attributes:
        settings: of the command that makes it again.
        only: the number of the picture, of those that the settings make; None for all.
        told: the settings that the picture decided, and no user: {name: value}.
    """

    settings: SampleSettings
    only: int | None
    told: Mapping[str, Any]


def read_picture_recipe(settings: SampleSettings) -> Recipe:
    """The recipe of the PNG at `settings.from_image`, in which what was typed goes before what the picture says.

    Raises:
        ConfigError: the picture says nothing, or what it says is not followed; the message says what to give.
    """
    from ddim.images import png_text

    path = str(settings.from_image)
    try:
        said = png_text(path, "ddim", LONGEST)
        if said is None:
            raise ValueError("it says nothing")
        made = parse(said)
        if made.get("command", "sample") != "sample":
            raise ValueError("it is of another command")
        stored = made["settings"]
        if not isinstance(stored, dict):
            raise TypeError("no settings")
        only = optional(whole(0, PICTURES - 1))(made["image"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is no PNG of `ddim sample` that says how ddim made it: give --from a picture that `ddim sample` "
            f"wrote and no other program has saved since ({_shown(str(error), 100)})"
        ) from error
    _say_version(path, made)
    own = typed_fields(settings)
    told = followed(path, "picture", type(settings), _with_steps_that_fit(path, stored, settings), settings)
    merged = dataclasses.replace(settings, **told)
    if told.get("batch") is not None and only is not None and only >= told["batch"]:
        raise ConfigError(f"{path} says that it is number {only} of {told['batch']} pictures: they are counted from 0")
    merged = dataclasses.replace(merged, from_image=None)
    from ddim.cli.checks import check

    check("sample", merged, own - {"from_image"})
    return Recipe(merged, None if "batch" in own else only, told)


def _with_steps_that_fit(path: str, stored: Mapping[str, Any], settings: SampleSettings) -> dict[str, Any]:
    """What a picture says, but for what of its steps, their order and their spacing does not go with what was typed.

    Searched timesteps are of one model and for one number of steps, and steps with noise are of first order. A line on
    stderr says what is left out.
    """
    own, left = typed_fields(settings), set()
    if stored.get("spacing") == "optimized" and "spacing" not in own:
        if "model" in own and settings.model != stored.get("model"):
            left |= {"steps", "order", "spacing"}
        elif "steps" in own and settings.steps != stored.get("steps"):
            left |= {"order", "spacing"}
    if "eta" in own and settings.eta != 0 and stored.get("order") == 2:
        left.add("order")
    left -= own
    if left:
        told = " and ".join(f"{typed(type(settings), name)} {_shown(stored.get(name))}" for name in sorted(left))
        print(f"ddim: {path} has {told}, which do not go with what is given beside it", file=sys.stderr)
    return {name: value for name, value in stored.items() if name not in left}


def read_noise_recipe(path: str, said: Mapping[str, str], settings: SampleSettings) -> InvertSettings:
    """The settings with which noise was found, by the metadata of its file, and what was typed beside --from.

    Raises:
        CheckpointError: it is no file of `ddim invert`.
        ConfigError: what it says is not followed, or what was typed has no meaning for noise.
    """
    from ddim.cli.invert import InvertSettings

    try:
        made = parse(said["ddim"])
        stored = made["settings"]
        if made.get("command", "invert") != "invert" or not isinstance(stored, dict):
            raise TypeError("no settings")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not noise that `ddim invert` saved: give --from the file that it wrote"
        ) from error
    own = typed_fields(settings)
    for name in sorted(own - _BESIDE_NOISE):
        raise ConfigError(
            f"{typed(type(settings), name)} has no meaning beside the noise of {path}, which was found without it: "
            "leave it out"
        )
    names = {field.name for field in dataclasses.fields(InvertSettings)}
    told = followed(path, "noise", InvertSettings, stored, settings)
    given = {name: getattr(settings, name) for name in names & (own | {"backend", "device"})}
    return InvertSettings(**{**told, **given, "images": (), "out": "noise.safetensors"})


def read_plan(path: str, said: Mapping[str, str]) -> SamplingPlan:
    """The plan in the metadata of a file of noise.

    Raises:
        CheckpointError: it is none, or of more steps than are followed.
    """
    from ddim.plan import SamplingPlan

    try:
        values = parse(said["plan"], longest=8 * LONGEST)
        lists = [value for value in values.values() if isinstance(value, list)]
        if max(map(len, lists), default=0) > TIMESTEPS or len(values.get("timesteps", ())) > STEPS:
            raise ValueError(f"more than {STEPS} steps are not followed")
        return SamplingPlan.from_dict(values)
    except (ArithmeticError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not noise that `ddim invert` saved, or its plan is none ({_shown(str(error), 100)}): give "
            "--from the file that it wrote"
        ) from error


def followed(path: str, what: str, kind: type, stored: Mapping[str, Any], settings: SampleSettings) -> dict[str, Any]:
    """What is taken of a stranger's settings: {name: value}. Says on stderr what goes before it.

    Args:
        path: the file that says it.
        what: "picture" or "noise", which it is.
        kind: the dataclass of settings that are stored.
        stored: what the file says.
        settings: what the user gave.

    Raises:
        ConfigError: a setting is of another type or beyond its bounds, or only the user can give it.
    """
    told: dict[str, Any] = {}
    own = typed_fields(settings)
    instead = []
    for field in dataclasses.fields(kind):
        name = field.name
        option = typed(kind, name)
        value = stored.get(name)
        if name not in stored or name in OWN:
            continue
        if name in own:
            given = getattr(settings, name)
            if value != (list(given) if isinstance(given, tuple) else given):
                instead.append(f"{option} {_shown(given)} instead of the {what}'s {_shown(value)}")
        elif name in FILES:
            if value not in (None, [], "", ()):
                raise ConfigError(
                    f"{path} was made with {option} {_shown(value)}, which names a file: as it may be from anyone, "
                    f"give {option} yourself"
                )
        elif name == "model":
            told[name] = _model(path, what, value, settings.trust)
        else:
            rule = FOLLOWED[name] if FOLLOWED[name] is not one_of else _choices(kind, name)
            try:
                told[name] = rule(value)
            except ValueError as error:
                raise ConfigError(
                    f"{path} says {option} {_shown(value)}, where {error} is followed: give {option} yourself"
                ) from error
    if instead:
        print(f"ddim: {', '.join(instead)}", file=sys.stderr)
    backend = stored.get("backend")
    if "backend" not in own and isinstance(backend, str) and backend != "eager":
        print(
            f"ddim: {path} was made with --backend {_shown(backend)}, which is yours to choose: give it for the same "
            "result",
            file=sys.stderr,
        )
    return told


def check_drawn(pipe: DiffusionPipeline, recipe: Recipe, settings: SampleSettings) -> None:
    """Refuse what a picture asks of a model that is known only now: far larger pictures than it draws, or a number that
    is none of its pictures'.

    Raises:
        ConfigError: says what to give.
    """
    _, height, width = pipe.picture_shape()
    for name, trained in (("height", height), ("width", width)):
        asked = recipe.told.get(name)
        if asked is not None and asked > 2 * trained:
            raise ConfigError(
                f"the picture asks for a {name} of {asked}, and {settings.model} draws {trained}: over twice as many "
                f"pixels are not followed, so give --{name} yourself"
            )
    count = settings.batch or len(settings.class_labels) or pipe.class_count or (1 if pipe.draws_texts else 16)
    if recipe.only is not None and recipe.only >= count:
        raise ConfigError(f"the picture says that it is number {recipe.only} of {count}: they are counted from 0")


def _model(path: str, what: str, value: Any, trusts: bool) -> str | None:
    """The model that a file names, if it may be used.

    Raises:
        ConfigError: it is none of those that come with this package, and the user neither gave it nor trusts the file.
    """
    from ddim.checkpoint.hub import bundled_models

    if value is None:
        return None
    if not isinstance(value, str) or len(value) > 1000:
        raise ConfigError(f"{path} names no model: give --model yourself")
    if trusts or (value in bundled_models() and not Path(value).exists()):
        return value
    where = "a folder here is called like it" if value in bundled_models() else "it does not come with ddim"
    raise ConfigError(
        f"{path} says that it was made with the model {_shown(value)}, and {where}: give --model yourself, or --trust "
        f"if you know who made this {what}"
    )


def _say_version(path: str, made: Mapping[str, Any]) -> None:
    if made.get("version") != __version__:
        print(
            f"ddim: {path} was made by version {_shown(made.get('version'))} of ddim, and this is version "
            f"{__version__}: the picture may differ",
            file=sys.stderr,
        )


def _shown(value: Any, longest: int = 60) -> str:
    """A stranger's value for a terminal: short, and without characters that might upset it."""
    shown = " ".join(str(one) for one in value) if isinstance(value, (list, tuple)) else str(value)
    shown = shown if len(shown) <= longest else f"{shown[:longest]}…"
    return shown if shown.isprintable() else ascii(shown)
