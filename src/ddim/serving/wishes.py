"""From what a client asks for to what an engine draws: what a model has to say of each parameter."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ddim.pipelines import DiffusionPipeline, StableDiffusionXLPipeline
from ddim.pipelines.control import networks_of
from ddim.pipelines.fitting import Size, resized, start_size, structure
from ddim.pipelines.xl_sizes import Sizes
from ddim.serving.limits import Limits
from ddim.serving.parameters import HOW_CONTROLLED, OF_XL, OTHER_NAMES, Drawing, Edit, Generation, Variation
from ddim.serving.refusal import Refusal
from ddim.serving.requests import Request

__all__ = ["Start", "Wish", "asked_as", "is_for_inpainting", "refusal_of", "told", "wish"]

# What the library calls the parameters.
_LIBRARY = {
    "num_inference_steps": "steps",
    "timestep_spacing": "spacing",
    "class_labels": "class_label",
    "height": "size",
    "width": "size",
    "image": "image",
    "mask_image": "mask",
    **OTHER_NAMES,
}


@dataclass(frozen=True)
class Start:
    """The picture to start from, in the size that is drawn, and its mask: white where to paint."""

    image: Image.Image
    mask: Image.Image | None = None


@dataclass(frozen=True)
class Wish:
    """What a client asks for, for one model.

    Attributes:
        asked: the parameters.
        seed: that was asked for, or chosen.
        size: (width, height), in which it is drawn.
        classes: one for each picture; empty for a model that knows none.
        start: what it starts from.
        controls: what each ControlNet is shown, in the size that is drawn.
        scales: how strongly each of them acts, where that is said.
        notes: what the client ought to know of how it is followed.
    """

    asked: Drawing
    seed: int
    size: Size
    classes: tuple[int, ...] = ()
    start: Start | None = None
    controls: Sequence[Image.Image] = ()
    scales: Sequence[float] = ()
    notes: list[str] = field(default_factory=list)

    def requests(self, draws_texts: bool, deadline: float | None, preview_every: int | None = None) -> list[Request]:
        """One for each picture.

        Args:
            deadline: in seconds from now.
            preview_every: show the predicted x0 of every so manieth step; else as many as `partial_images` says.
        """
        asked = self.asked
        settings: dict[str, Any] = {
            name: getattr(asked, name)
            for name in ("negative_prompt", "steps", "eta", "order", "spacing", "guidance_scale", "guidance_rescale")
        }
        if draws_texts:
            settings["prompt"] = getattr(asked, "prompt", None) or ""
            if is_unsaid(asked):
                settings["guidance_scale"] = 1.0
            settings |= told(asked)
        if asked.guidance_interval is not None:
            settings["guidance_interval"] = tuple(asked.guidance_interval)
        if self.start is not None:
            settings |= {"image": self.start.image, "mask": self.start.mask}
            is_noised = settings.get("denoising_start") is not None
            settings["strength"] = None if is_noised else getattr(asked, "strength", None)
        if self.controls:
            scale = asked.control_scale if asked.control_scale is not None else [*self.scales] or None
            settings |= {
                "control_image": list(self.controls),
                "controlnet_conditioning_scale": scale,
                "guess_mode": asked.guess_mode,
                "control_guidance_start": asked.control_guidance_start,
                "control_guidance_end": asked.control_guidance_end,
            }
        if draws_texts and (self.start is None or self.start.mask is not None):
            settings |= {"width": self.size[0], "height": self.size[1]}
        return [
            Request(
                **settings,
                class_label=self.classes[number] if self.classes else None,
                seed=self.seed,
                number=number,
                previews=getattr(asked, "partial_images", 0),
                preview_every=preview_every,
                deadline=deadline,
            )
            for number in range(asked.n)
        ]


def wish(
    name: str,
    pipe: DiffusionPipeline,
    asked: Drawing,
    limits: Limits,
    image: Image.Image | None = None,
    mask: Image.Image | None = None,
    controls: Sequence[Image.Image] = (),
    scales: Sequence[float] = (),
) -> Wish:
    """What is asked for, checked against the model that is to draw it.

    Args:
        name: what the client calls the model.
        image: that was sent, as it is.
        mask: that was sent, white where to paint, of the image's size.
        controls: that were sent for its ControlNets, as they are.
        scales: how strongly each of these acts, where the request does not say.

    Raises:
        Refusal: the model cannot draw it; names the parameter.
    """
    if asked.n > limits.n:
        raise Refusal(f"n must be from 1 to {limits.n} on this server, not {asked.n}", "n")
    _check_kind(name, pipe, asked, limits)
    _check_controls(name, pipe, asked, len(controls))
    if mask is None and is_for_inpainting(pipe):
        needed = "mask" if isinstance(asked, Edit) else "model"
        raise Refusal(f"{needed}: {name} paints parts of pictures anew, so ask it for edits with a mask", needed)
    own = _size_asked(asked)
    first = image if image is not None else controls[0] if controls else None
    if first is None:
        size = _trained(pipe) if own is None else own
    elif not pipe.draws_texts:
        size = _trained(pipe)
        if own is not None:
            _check_size(name, pipe, own, limits)
    else:
        size = start_size(first.size, pipe, None, None) if own is None else own
    by = "size" if first is None or own is not None else "image" if image is not None else "control_image"
    _check_size(name, pipe, size, limits, by)
    start = None
    if image is not None:
        channels = pipe.picture_shape()[0]
        start = Start(resized(image, size, channels), None if mask is None else resized(mask, size, 1))
    seed = secrets.randbelow(2**32) if asked.seed is None else asked.seed
    shown = [resized(each, size, 3) for each in controls]
    return Wish(asked, seed, size, _classes(pipe, asked), start, shown, scales, _notes(pipe, asked))


def told(asked: Drawing) -> dict[str, Any]:
    """What only Stable Diffusion XL is told of what was asked for, by the names of the engine's requests."""
    theirs = {ours: name for name, ours in OTHER_NAMES.items()}
    given = {theirs.get(name, name): getattr(asked, name, None) for name in OF_XL}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v is not None}


def is_for_inpainting(pipe: DiffusionPipeline) -> bool:
    """Whether the network is given a picture and its mask beside the noise."""
    vae = pipe.components.get("vae")
    return vae is not None and bool(pipe.components["unet"].config.in_channels > vae.config.latent_channels)


def _size_asked(asked: Drawing) -> Size | None:
    if asked.size == "auto":
        return None
    width, _, height = asked.size.partition("x")
    return int(width), int(height)


def _trained(pipe: DiffusionPipeline) -> Size:
    _, height, width = pipe.picture_shape()
    return width, height


def _check_size(name: str, pipe: DiffusionPipeline, size: Size, limits: Limits, param: str = "size") -> None:
    """Raise a `Refusal` unless a model can draw pictures of a size, and may."""
    trained = _trained(pipe)
    if not pipe.draws_texts:
        if size != trained:
            raise Refusal(
                f"{param}: {name} draws pictures of {asked_as(trained)} alone, not of {asked_as(size)}", param
            )
        return
    factor, depth = structure(pipe)
    least, most = factor * 2 ** (depth - 1), limits.side or 2 * max(trained)
    for side in size:
        if not least <= side <= most:
            what = "it is" if param == "size" else "its proportions make it"
            raise Refusal(
                f"{param}: the sides must be from {least} to {most} pixels here, and {what} {size[0]}x{size[1]}", param
            )
        if side % factor:
            raise Refusal(
                f"size: the sides must be multiples of {factor} for {name}, and it is {asked_as(size)}", param
            )


def asked_as(size: Size) -> str:
    """
    >>> asked_as((64, 32))
    '64x32'
    """
    return f"{size[0]}x{size[1]}"


def _check_kind(name: str, pipe: DiffusionPipeline, asked: Drawing, limits: Limits) -> None:
    """Raise a `Refusal` for parameters that this kind of model has no use for, and for a text that is missing."""
    if isinstance(asked, Edit) and not pipe.draws_texts:
        raise Refusal(f"{name} draws no texts, by which pictures are edited: ask another model", "model")
    prompt: str | None = getattr(asked, "prompt", None)
    texts = {name: getattr(asked, name) for name in ("negative_prompt", "prompt_2", "negative_prompt_2")}
    for param, text in {"prompt": prompt, **texts}.items():
        if text is not None and len(text) > limits.prompt_letters:
            raise Refusal(f"{param} has {len(text)} letters, and {limits.prompt_letters} are the most", param)
        if text and not pipe.draws_texts:
            raise Refusal(f"{name} draws no texts: let {param} be empty, or ask another model", param)
    if prompt is None and pipe.draws_texts and isinstance(asked, (Generation, Edit)):
        raise Refusal(f"{name} draws what a text says: give a prompt", "prompt")
    label = asked.class_label
    if label is not None and pipe.class_count is None:
        raise Refusal(f"{name} knows no classes: leave class_label out", "class_label")
    if label is not None and label >= (pipe.class_count or 0):
        raise Refusal(f"class_label {label} is none: {name} knows 0 to {(pipe.class_count or 1) - 1}", "class_label")
    trained = int(pipe.scheduler.config.num_train_timesteps)
    if asked.steps is not None and asked.steps > trained:
        raise Refusal(f"steps must be from 1 to {trained} for {name}, not {asked.steps}", "steps")
    _check_xl(name, pipe, asked)
    _check_guidance(name, pipe, asked)


def _check_controls(name: str, pipe: DiffusionPipeline, asked: Drawing, count: int) -> None:
    """Raise a `Refusal` unless there are as many pictures for ControlNets as the model has of these, or none at all."""
    for param in HOW_CONTROLLED if not count else ():
        if getattr(asked, param) not in (None, False):
            raise Refusal(f"{param} is for a ControlNet: send control_image, or leave it out", param)
    if not count:
        return
    network = pipe.components.get("controlnet")
    networks = 0 if network is None else len(networks_of(network))
    if not networks:
        raise Refusal(
            f"control_image: {name} has no ControlNet here: leave it out, or have it started with --controlnet",
            "control_image",
        )
    if count != networks:
        one = "its ControlNet is shown one" if networks == 1 else f"its {networks} ControlNets are shown one each"
        raise Refusal(f"control_image: {count} pictures were sent for {name}, and {one}", "control_image")


def _check_xl(name: str, pipe: DiffusionPipeline, asked: Drawing) -> None:
    """Raise a `Refusal` for what only Stable Diffusion XL is told, or only some models of it."""
    given = [param for param in OF_XL if getattr(asked, param, None) is not None]
    if not given:
        return
    if not isinstance(pipe, StableDiffusionXLPipeline):
        raise Refusal(
            f"{given[0]} is for Stable Diffusion XL, which {name} is not: leave it out, or ask another model", given[0]
        )
    has_score = len(pipe.numbers(Sizes())[0]) == 5
    for param in given:
        instead = None
        if param.endswith("aesthetic_score") and not has_score:
            instead = "size"
        elif param.endswith("target_size") and has_score:
            instead = "aesthetic score and no target size"
        elif param.endswith("prompt_2") and pipe.text_encoder is None:
            instead = f"{param.removesuffix('_2')} alone, by its one text encoder"
        if instead is not None:
            raise Refusal(f"{param} changes nothing: {name} is told the {instead}; leave it out", param)


def is_unsaid(asked: Drawing) -> bool:
    """Whether it is a variation of which neither a text nor a negative one says anything, so that nothing guides it."""
    return isinstance(asked, Variation) and not asked.prompt and not asked.negative_prompt


def _check_guidance(name: str, pipe: DiffusionPipeline, asked: Drawing) -> None:
    """Raise a `Refusal` for what would change nothing, as there is no guidance."""
    scale = 1.0 if asked.guidance_scale is None and pipe.draws_texts and is_unsaid(asked) else asked.guidance_scale
    if scale not in (None, 1) and pipe.draws_texts and is_unsaid(asked):
        raise Refusal("guidance_scale has nothing to prefer: give a prompt that says what to draw", "guidance_scale")
    if scale not in (None, 1) and not pipe.draws_texts and pipe.class_count is None:
        raise Refusal(f"guidance_scale has nothing to prefer: {name} knows neither texts nor classes", "guidance_scale")
    takes_scale = pipe.components["unet"].config.get("time_cond_proj_dim") is not None
    if scale is None:
        scale = pipe.scheduler.config.get("recommended_guidance_scale")
        is_guided = pipe.draws_texts if scale is None else scale != 1
    else:
        is_guided = scale > 1 if pipe.draws_texts else scale != 1
    about = {
        "negative_prompt": asked.negative_prompt,
        **{param: getattr(asked, param) for param in OF_XL if param.startswith("negative_")},
        "guidance_rescale": asked.guidance_rescale or None,
        "guidance_interval": asked.guidance_interval,
    }
    for param, value in about.items():
        if value is not None and takes_scale:
            raise Refusal(
                f"{param} changes nothing: {name} takes its guidance scale as an input, so leave it out", param
            )
        if value is not None and not is_guided:
            raise Refusal(f"{param} changes nothing without guidance: give a guidance_scale above 1", param)


def _classes(pipe: DiffusionPipeline, asked: Drawing) -> tuple[int, ...]:
    """The classes to draw: the one that was asked for, or all in turn."""
    count = pipe.class_count
    if count is None:
        return ()
    return tuple(number % count if asked.class_label is None else asked.class_label for number in range(asked.n))


def _notes(pipe: DiffusionPipeline, asked: Drawing) -> list[str]:
    from ddim.pipelines.words import KnowsWords

    prompt = getattr(asked, "prompt", None)
    found = pipe.unknown_words(prompt[:4000]) if prompt and isinstance(pipe, KnowsWords) else {}
    notes = []
    tokenizer = tokenizer_of(pipe)
    if prompt and tokenizer is not None:
        most = tokenizer.model_max_length
        if len(tokenizer(prompt, truncation=True, max_length=most + 1).input_ids) > most:
            notes.append(f"only the beginning of the prompt is read, which {most - 2} tokens are made of")
    for word, near in list(found.items())[:10]:
        notes.append(f"the model has never seen {word!r}" + (f"; near to it: {', '.join(near[:3])}" if near else ""))
    return notes


def tokenizer_of(pipe: DiffusionPipeline) -> Any:
    """What reads the prompt, of the refiner the second one; None for a model that draws no texts."""
    return pipe.components.get("tokenizer") or pipe.components.get("tokenizer_2")


def refusal_of(error: Exception, asked: Drawing) -> Refusal:
    """The refusal for a request that the engine finds that it cannot draw."""
    message = str(error)
    names: Mapping[str, str] = {**{name: name for name in type(asked).model_fields}, **_LIBRARY}
    words = re.findall(r"[a-z]+(?:_[a-z]+)*", message)
    param = next((names[word] for word in words if word in names), None)
    theirs = "num_inference_steps", "timestep_spacing", "class_labels", "mask_image", *OTHER_NAMES
    said = re.sub(rf"\b({'|'.join(theirs)})\b", lambda m: _LIBRARY[m[0]], message)
    return Refusal(said, param)
