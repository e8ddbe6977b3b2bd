"""What a client may ask for: every parameter with its type and bounds, and those that are refused with the reason.

The same classes read JSON, read forms and describe themselves in the OpenAPI document. What a model has to say of a
value, such as which sizes it draws, is asked later.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddim.serving.refusal import Refusal

__all__ = ["Drawing", "Edit", "Generation", "Variation", "check_parts", "from_form", "from_json", "under_our_names"]

SEEDS = 2**63 - 1  # the largest seed
MOST_CONTROLS = 8  # pictures for ControlNets
STEPS = 1000

Spacing = Literal["leading", "trailing", "linspace", "quadratic", "optimized"]

# Parameters that nothing here could follow, OpenAI's and of ours that are for pipelines alone, and why.
_REFUSED = {
    "weights": "prompts are read without weights here, where those of many are drawn together: see docs/prompts.md",
    **dict.fromkeys(
        ("refiner", "refiner_start"),
        "one model draws a picture here: ddim sample --refiner has two go the way in turn",
    ),
    "style": "there are no styles: say it in the prompt",
    "complexity": "it is for drawings as svg, and pictures are drawn in pixels here",
    "svg": "pictures are drawn in pixels here: ask for the output_format png, webp or jpeg",
    "frame_count": "one picture is drawn, and no animation",
    "frame_duration_ms": "one picture is drawn, and no animation",
    "input_fidelity": "how much of the picture is kept is said by strength, from 0 (all) to 1 (nothing)",
    "markup": "marks on a picture are not understood: say with a mask where to paint",
}

# What diffusers' users call parameters that have the names of `ddim sample` here; both are taken.
OTHER_NAMES = {
    "crops_coords_top_left": "crop",
    "negative_crops_coords_top_left": "negative_crop",
    "controlnet_conditioning_scale": "control_scale",
}

# What only Stable Diffusion XL is told: the parameters of sizes, and all.
SIZES = ("original_size", "crop", "target_size", "negative_original_size", "negative_crop", "negative_target_size")
OF_XL = (
    "prompt_2", "negative_prompt_2", *SIZES, "aesthetic_score", "negative_aesthetic_score", "denoising_start",
    "denoising_end",
)  # fmt: skip

# How ControlNets act: one value for all of them, or a list with one for each.
HOW_CONTROLLED = ("control_scale", "guess_mode", "control_guidance_start", "control_guidance_end")

_LISTS = ("guidance_interval", *SIZES)
_MAYBE_LISTS = ("control_scale", "control_guidance_start", "control_guidance_end")

# Why a value is refused that OpenAI's servers take, or what to give instead.
_WHY = {
    "background": "pictures are opaque here: leave it out, or say auto or opaque",
    "moderation": "nothing is moderated here: leave it out, or say low",
    "output_format": "pictures are written as png, webp or jpeg",
    "quality": "how much work is put into a picture is said by steps: leave it out, or say auto",
    "size": 'it is "auto", or a width and a height such as "512x512"',
    "eta": 'it is a number from 0 on, or "sigma_hat"',
    "guidance_interval": "it is a list of two timesteps, the lower one first",
    **{
        name: f"it is a list of two numbers, {'top and left' if 'crop' in name else 'height and width'}"
        for name in SIZES
    },
    **dict.fromkeys(_MAYBE_LISTS, "it is a number, or a list with one for each ControlNet"),
    "control_image": "in JSON it is the base64 of a picture, or a list of them; in a form, a file, or several",
    "denoising_start": "it is a share of the way, from 0 on and below 1",
    "denoising_end": "it is a share of the way, above 0 and up to 1",
}

# Two numbers of pixels: height and width, or top and left.
Pair = Annotated[list[Annotated[int, Field(ge=0, le=100_000)]], Field(min_length=2, max_length=2)]
Score = Annotated[float, Field(ge=-1000, le=1000)]
_Scale = Annotated[float, Field(ge=-100, le=100)]
_Share = Annotated[float, Field(ge=0, le=1)]
Start = Annotated[
    float | None,
    Field(
        ge=0,
        lt=1,
        description="The share of the way that another model has gone: the image is what it left, with the noise of "
        "there, and goes on by Stable Diffusion XL.",
    ),
]


class Drawing(BaseModel):
    """What all requests for pictures may say.

    Those from `seed` on are no parameters of OpenAI's: its Python client sends them by `extra_body`.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: Annotated[str | None, Field(max_length=200, description="Which of the server's models; its first.")] = None
    n: Annotated[int, Field(ge=1, le=10, description="How many pictures.")] = 1
    size: Annotated[
        str,
        Field(
            pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$",
            description="Width and height in pixels, or auto: what the model was trained on.",
        ),
    ] = "auto"
    response_format: Annotated[
        Literal["b64_json", "url"], Field(description="The picture itself, or an address that has it for a while.")
    ] = "b64_json"
    user: Annotated[str | None, Field(max_length=512, description="The older name of safety_identifier.")] = None

    seed: Annotated[
        int | None, Field(ge=0, le=SEEDS, description="Of the noise; picture k of a seed is always the same. Random.")
    ] = None
    steps: Annotated[int | None, Field(ge=1, le=STEPS, description="Sampling steps; what the model recommends.")] = None
    eta: Annotated[
        Annotated[float, Field(ge=0, le=100)] | Literal["sigma_hat"],
        Field(description="How much noise each step adds: 0 is DDIM, 1 is DDPM."),
    ] = 0.0
    order: Annotated[Literal[1, 2] | None, Field(description="Of the steps; 2 needs an eta of 0.")] = None
    spacing: Annotated[Spacing | None, Field(description="How timesteps are chosen; as the model says.")] = None
    guidance_scale: Annotated[
        float | None,
        Field(ge=-1000, le=1000, description="How strongly to prefer the text or class over none; 1 is no guidance."),
    ] = None
    guidance_rescale: Annotated[
        float | None, Field(ge=0, le=1, description="How much of the contrast that guidance adds to take back.")
    ] = None
    guidance_interval: Annotated[
        list[Annotated[int, Field(ge=0, le=100_000)]] | None,
        Field(min_length=2, max_length=2, description="Guide only at timesteps from the first to the second."),
    ] = None
    negative_prompt: Annotated[
        str | None, Field(max_length=32_000, description="What guidance is to keep away from.")
    ] = None
    class_label: Annotated[
        int | None, Field(ge=0, le=1_000_000, description="The class to draw, for a class-conditional model.")
    ] = None

    prompt_2: Annotated[
        str | None,
        Field(max_length=32_000, description="For Stable Diffusion XL's second text encoder; the prompt unless told."),
    ] = None
    negative_prompt_2: Annotated[
        str | None,
        Field(
            max_length=32_000,
            description="For Stable Diffusion XL's second text encoder; the negative prompt unless told.",
        ),
    ] = None
    original_size: Annotated[
        Pair | None,
        Field(description="What Stable Diffusion XL is told that the picture's height and width were; what is drawn."),
    ] = None
    crop: Annotated[
        Pair | None,
        Field(
            description="What Stable Diffusion XL is told of where the picture was cut: top and left; 0, 0. Its name "
            "in diffusers, crops_coords_top_left, is taken as well."
        ),
    ] = None
    target_size: Annotated[
        Pair | None,
        Field(description="What Stable Diffusion XL is told that the picture's height and width are; what is drawn."),
    ] = None
    negative_original_size: Annotated[
        Pair | None, Field(description="As original_size, told with the negative prompt; original_size unless told.")
    ] = None
    negative_crop: Annotated[
        Pair | None,
        Field(
            description="As crop, told with the negative prompt; crop unless told. Its name in diffusers, "
            "negative_crops_coords_top_left, is taken as well."
        ),
    ] = None
    negative_target_size: Annotated[
        Pair | None, Field(description="As target_size, told with the negative prompt; target_size unless told.")
    ] = None
    aesthetic_score: Annotated[
        Score | None, Field(description="How good it is to look, for a model that knows scores, as XL's refiner; 6.")
    ] = None
    negative_aesthetic_score: Annotated[
        Score | None, Field(description="As aesthetic_score, told with the negative prompt; 2.5 unless told.")
    ] = None

    control_image: Annotated[
        str | Annotated[list[str], Field(min_length=1, max_length=MOST_CONTROLS)] | None,
        Field(
            description="What the model's ControlNet is shown: the base64 of a picture, also as a data: address, or of "
            "several ControlNets a list of them. In a form it may be a file, and several are control_image[]."
        ),
    ] = None
    control_scale: Annotated[
        _Scale | list[_Scale] | None,
        Field(
            description="How strongly a ControlNet acts, or each of several. Its name in diffusers, "
            "controlnet_conditioning_scale, is taken as well. As the server was started with, or 1."
        ),
    ] = None
    guess_mode: Annotated[
        bool, Field(description="Have ControlNets guess what their pictures show, for use without a prompt.")
    ] = False
    control_guidance_start: Annotated[
        _Share | list[_Share] | None, Field(description="The share of the steps from which ControlNets act; 0.")
    ] = None
    control_guidance_end: Annotated[
        _Share | list[_Share] | None, Field(description="The share of the steps to which ControlNets act; 1.")
    ] = None


class _Written(Drawing):
    """How pictures are written and streamed, which OpenAI's variations do not say."""

    background: Annotated[Literal["auto", "opaque"], Field(description="Pictures are opaque.")] = "auto"
    quality: Annotated[Literal["auto"], Field(description="Say steps instead.")] = "auto"
    output_format: Annotated[Literal["png", "webp", "jpeg"], Field(description="Only a png says its recipe.")] = "png"
    output_compression: Annotated[
        int | None, Field(ge=0, le=100, description="The quality of a webp or jpeg, from 0 to 100.")
    ] = None
    stream: Annotated[bool, Field(description="Send events while it is drawn.")] = False
    partial_images: Annotated[
        int, Field(ge=0, le=3, description="How many pictures to send before each is done, when streaming.")
    ] = 0
    safety_identifier: Annotated[str | None, Field(max_length=512, description="Comes back, and is logged.")] = None
    denoising_end: Annotated[
        float | None,
        Field(
            gt=0, le=1, description="The share of the way at which Stable Diffusion XL stops, with the noise of there."
        ),
    ] = None


class Generation(_Written):
    """A picture from a text, a class, or nothing."""

    prompt: Annotated[str | None, Field(max_length=32_000, description="What to draw, for a text-to-image model.")] = (
        None
    )
    moderation: Annotated[Literal["low"] | None, Field(description="Nothing is moderated.")] = None


class Edit(_Written):
    """A picture painted anew, as a whole or where a mask is transparent."""

    prompt: Annotated[str | None, Field(max_length=32_000, description="What the picture is to show.")] = None
    strength: Annotated[
        float, Field(ge=0, le=1, description="How much of the picture is lost, from 0 (nothing) to 1 (all).")
    ] = 0.8
    denoising_start: Start = None


class Variation(Drawing):
    """A picture like another one."""

    prompt: Annotated[str | None, Field(max_length=32_000, description="What the picture shows; nothing.")] = None
    strength: Annotated[float, Field(ge=0, le=1, description="How far to go from the picture.")] = 0.5
    method: Annotated[
        Literal["noise", "inversion"],
        Field(
            description="noise adds noise to the picture and takes it away again; inversion finds the noise that the "
            "picture is drawn of, and draws of a noise near to that."
        ),
    ] = "noise"


Asked = TypeVar("Asked", bound=Drawing)


def from_json(kind: type[Asked], values: Mapping[str, Any]) -> Asked:
    """What a body in JSON asks for; null stands for a parameter that is left out.

    Raises:
        Refusal: names the parameter.
    """
    given = {name: value for name, value in values.items() if value is not None}
    return _checked(kind, under_our_names(given), given, strict=True)


def under_our_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same parameters, but for those of diffusers' names, which have ours.

    Raises:
        Refusal: one is there by both names.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        end = "[]" if name.endswith("[]") else ""
        plain = OTHER_NAMES.get(name.removesuffix("[]"), name.removesuffix("[]"))
        if plain + end in found:
            raise Refusal(f"{plain} is there by two names: give it once", plain)
        found[plain + end] = value
    return found


def from_form(kind: type[Asked], fields: Mapping[str, list[str]]) -> Asked:
    """What the fields of a form ask for, in which all values are texts; an empty one stands for one that is left out.

    A list is several fields of its name, or of its name and [], or one text of JSON.

    Raises:
        Refusal: names the parameter.
    """
    values: dict[str, Any] = {}
    for name, texts in under_our_names(fields).items():
        plain = name.removesuffix("[]")
        if any(texts) and (plain in _LISTS or (plain in _MAYBE_LISTS and (name != plain or _is_list(texts)))):
            values[plain] = values.get(plain, []) + [number for text in texts for number in _listed(text)]
        elif plain == "control_image" and any(texts):
            given = [each for text in texts if text for each in (_listed(text) if text.startswith("[") else [text])]
            values[plain] = values.get(plain, []) + given
        elif len(texts) > 1 or name != plain or plain in values:
            raise Refusal(f"{plain} was given {len(texts)} times: give it once", plain)
        elif plain == "order":  # the one choice among numbers, of which pydantic would not take the texts
            values[plain] = {"1": 1, "2": 2, "": None}.get(texts[0], texts[0])
        elif texts[0] or plain in ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2"):
            values[plain] = texts[0]
    return _checked(kind, values, [name.removesuffix("[]") for name in fields], strict=False)


def _is_list(texts: Sequence[str]) -> bool:
    """Whether the fields of one name say a list, and not a value alone."""
    return len(texts) > 1 or texts[0].startswith("[") or "," in texts[0]


def _listed(text: str) -> list[Any]:
    """The numbers of a list in a form: "[0, 500]", "0,500" or one of several fields."""
    try:
        value = json.loads(text if text.startswith("[") else f"[{text}]")
    except (ValueError, RecursionError):
        return [text[:50]]
    return value if isinstance(value, list) else [value]


def _checked(kind: type[Asked], values: dict[str, Any], typed: Collection[str], *, strict: bool) -> Asked:
    """What values ask for; `typed` are their names as the client has them."""
    for name in values:
        if name in _REFUSED:
            raise Refusal(f"{name} cannot be followed: {_REFUSED[name]}", name, code="unsupported_parameter")
        if name == "denoising_start" and name not in kind.model_fields:
            raise Refusal(
                f"{name} goes on from a picture that another model left: send it as the image of an edit", name
            )
    try:
        asked = kind.model_validate(values, strict=strict)
    except ValidationError as error:
        raise _explained(kind, error, {OTHER_NAMES.get(name, name): name for name in typed}) from error
    _check_together(asked, values)
    return asked


def _explained(kind: type[Drawing], error: ValidationError, typed: Mapping[str, str]) -> Refusal:
    """The first of the faults, in a sentence."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    # Of a value that may be of several types, that what is wrong within the one that it has.
    of_types = ("string_type", "float_type", "list_type")
    ours = [each for each in found if each["loc"][:1] == found[0]["loc"][:1]]
    first = next((each for each in ours if each["type"] not in of_types), ours[0])
    own = str(first["loc"][0]) if first["loc"] else ""
    param = typed.get(own, own)[:100] or None
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(param or "", kind.model_fields, n=1)
        meant = f": did you mean {near[0]}?" if near else ""
        return Refusal(f"there is no parameter {param} here{meant}", param, code="unknown_parameter")
    said = first["msg"][:1].lower() + first["msg"][1:]
    why = f"; {_WHY[own]}" if own in _WHY else ""
    return Refusal(f"{param}: {said}{why}", param, code="invalid_value")


def check_parts(asked: Drawing) -> None:
    """Raise a `Refusal` for shares of the way between which nothing lies."""
    start, end = getattr(asked, "denoising_start", None), getattr(asked, "denoising_end", None)
    if start is not None and end is not None and start >= end:
        raise Refusal(f"denoising_start {start:g} must be below denoising_end {end:g}", "denoising_start")


def _check_together(asked: Drawing, values: Mapping[str, Any]) -> None:
    """Raise a `Refusal` for parameters that do not go together."""
    interval = asked.guidance_interval
    if interval is not None and interval[0] > interval[1]:
        raise Refusal(f"guidance_interval {interval} is the wrong way round", "guidance_interval")
    if "strength" in values and getattr(asked, "denoising_start", None) is not None:
        raise Refusal("strength says how much noise to add, and with denoising_start none is: leave it out", "strength")
    check_parts(asked)
    if asked.order == 2 and asked.eta != 0:
        raise Refusal(f"order 2 needs an eta of 0, not {asked.eta}: leave one of them out", "order")
    if not isinstance(asked, _Written):
        return
    if asked.partial_images and not asked.stream:
        raise Refusal("partial_images are sent while streaming: give stream=true, or leave them out", "partial_images")
    if asked.stream and asked.response_format == "url":
        raise Refusal("a stream has the pictures themselves: leave response_format out, or stream", "response_format")
    if asked.output_format == "png" and asked.output_compression not in (None, 100):
        raise Refusal(
            "a png loses nothing, so that output_compression is 100: ask for the output_format webp or jpeg",
            "output_compression",
        )
    if "user" in values and "safety_identifier" in values:
        raise Refusal("user is the older name of safety_identifier: give one of them", "user")
