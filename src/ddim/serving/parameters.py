"""What a client may ask for: every parameter with its type and bounds, and those that are refused with the reason.

The same classes read JSON, read forms and describe themselves in the OpenAPI document. What a model has to say of a
value, such as which sizes it draws, is asked later.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddim.serving.refusal import Refusal

__all__ = ["Drawing", "Edit", "Generation", "Variation", "from_form", "from_json"]

SEEDS = 2**63 - 1  # the largest seed
STEPS = 1000

Spacing = Literal["leading", "trailing", "linspace", "quadratic", "optimized"]

# Parameters that nothing here could follow, OpenAI's and of ours that are for pipelines alone, and why.
_REFUSED = {
    "weights": "prompts are read without weights here, where those of many are drawn together: see docs/prompts.md",
    "style": "there are no styles: say it in the prompt",
    "complexity": "it is for drawings as svg, and pictures are drawn in pixels here",
    "svg": "pictures are drawn in pixels here: ask for the output_format png, webp or jpeg",
    "frame_count": "one picture is drawn, and no animation",
    "frame_duration_ms": "one picture is drawn, and no animation",
    "input_fidelity": "how much of the picture is kept is said by strength, from 0 (all) to 1 (nothing)",
    "markup": "marks on a picture are not understood: say with a mask where to paint",
}

# Why a value is refused that OpenAI's servers take, or what to give instead.
_WHY = {
    "background": "pictures are opaque here: leave it out, or say auto or opaque",
    "moderation": "nothing is moderated here: leave it out, or say low",
    "output_format": "pictures are written as png, webp or jpeg",
    "quality": "how much work is put into a picture is said by steps: leave it out, or say auto",
    "size": 'it is "auto", or a width and a height such as "512x512"',
    "eta": 'it is a number from 0 on, or "sigma_hat"',
    "guidance_interval": "it is a list of two timesteps, the lower one first",
}


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
    return _checked(kind, {name: value for name, value in values.items() if value is not None}, strict=True)


def from_form(kind: type[Asked], fields: Mapping[str, list[str]]) -> Asked:
    """What the fields of a form ask for, in which all values are texts; an empty one stands for one that is left out.

    A list is several fields of its name, or of its name and [], or one text of JSON.

    Raises:
        Refusal: names the parameter.
    """
    values: dict[str, Any] = {}
    for name, texts in fields.items():
        plain = name.removesuffix("[]")
        if plain == "guidance_interval":
            values[plain] = values.get(plain, []) + [number for text in texts for number in _listed(text)]
        elif len(texts) > 1 or name != plain or plain in values:
            raise Refusal(f"{plain} was given {len(texts)} times: give it once", plain)
        elif plain == "order":  # the one choice among numbers, of which pydantic would not take the texts
            values[plain] = {"1": 1, "2": 2, "": None}.get(texts[0], texts[0])
        elif texts[0] or plain in ("prompt", "negative_prompt"):
            values[plain] = texts[0]
    return _checked(kind, values, strict=False)


def _listed(text: str) -> list[Any]:
    """The numbers of a list in a form: "[0, 500]", "0,500" or one of several fields."""
    try:
        value = json.loads(text if text.startswith("[") else f"[{text}]")
    except (ValueError, RecursionError):
        return [text[:50]]
    return value if isinstance(value, list) else [value]


def _checked(kind: type[Asked], values: dict[str, Any], *, strict: bool) -> Asked:
    for name in values:
        if name in _REFUSED:
            raise Refusal(f"{name} cannot be followed: {_REFUSED[name]}", name, code="unsupported_parameter")
    try:
        asked = kind.model_validate(values, strict=strict)
    except ValidationError as error:
        raise _explained(kind, error) from error
    _check_together(asked, values)
    return asked


def _explained(kind: type[Drawing], error: ValidationError) -> Refusal:
    """The first of the faults, in a sentence."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = str(first["loc"][0])[:100] if first["loc"] else None
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(param or "", kind.model_fields, n=1)
        meant = f": did you mean {near[0]}?" if near else ""
        return Refusal(f"there is no parameter {param} here{meant}", param, code="unknown_parameter")
    said = first["msg"][:1].lower() + first["msg"][1:]
    why = f"; {_WHY[param]}" if param in _WHY else ""
    return Refusal(f"{param}: {said}{why}", param, code="invalid_value")


def _check_together(asked: Drawing, values: Mapping[str, Any]) -> None:
    """Raise a `Refusal` for parameters that do not go together."""
    interval = asked.guidance_interval
    if interval is not None and interval[0] > interval[1]:
        raise Refusal(f"guidance_interval {interval} is the wrong way round", "guidance_interval")
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
