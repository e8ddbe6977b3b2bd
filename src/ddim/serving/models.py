"""What the engine asks of a pipeline, of each kind: to check a request, to start a sample, and to make pictures.

All of it is done by the pipeline's own pieces, those that its call is made of.
"""

from __future__ import annotations

import inspect
import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ddim.errors import ConfigError, DataError
from ddim.guidance import check_guidance
from ddim.images import to_images
from ddim.models.controlnet import WIDTHS
from ddim.models.core import HasCore
from ddim.noise import gaussian_noise
from ddim.pipelines import DDIMPipeline, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from ddim.pipelines.control import ControlRequest, check_fits, networks_of
from ddim.pipelines.draws import Draws
from ddim.pipelines.recommended import plan_of_call, steps_of_call, warn_if_not_trained
from ddim.pipelines.starts import Origin
from ddim.pipelines.xl_prompts import check_xl_prompts
from ddim.pipelines.xl_sizes import Sizes
from ddim.plan import SamplingPlan
from ddim.scheduler.recommended import choose_guidance
from ddim.serving.futures import Future
from ddim.serving.network import Network
from ddim.serving.requests import Request
from ddim.serving.samples import Sample, Shown, Text, Words, shown_steps
from ddim.serving.steering import SteeredNetwork

KEPT_TEXTS = 16  # how many texts are kept that nobody draws any more, such as the usual negative one

# The settings of a request that only Stable Diffusion XL is told: of them those of `xl_sizes.Sizes`, and all.
SIZES = tuple(each.name for each in fields(Sizes))
OF_XL = ("prompt_2", "negative_prompt_2", *SIZES, "denoising_start", "denoising_end")

# The settings of a request that are about ControlNets.
HOW_CONTROLLED = (
    "controlnet_conditioning_scale", "guess_mode", "control_guidance_start", "control_guidance_end"
)  # fmt: skip
OF_CONTROL = ("control_image", *HOW_CONTROLLED)

# What the pipelines call an argument, and how a request calls it.
_WORDS = {"num_inference_steps": "steps", "mask_image": "mask", "class_labels": "class_label"}


class Model:
    """A pipeline as the engine uses it. `check` may be called by any thread, the rest by the engine's alone."""

    pipe: DiffusionPipeline
    is_exact = False  # whether each text is encoded alone, so that its bits do not depend on others
    # The settings of a request that are not for this kind of pipeline, and why.
    refused: ClassVar[tuple[str, ...]] = ()
    because: ClassVar[str] = ""

    def sample(self, request: Request, future: Future) -> Sample:
        """A request as a sample that is not started yet, after all checks.

        Raises:
            ConfigError: it cannot be drawn; the message names the setting.
            DataError: its picture or its mask cannot be read.
        """
        usual = Request()
        for each in fields(request):
            if each.name in self.refused and getattr(request, each.name) != getattr(usual, each.name):
                raise ConfigError(f"{each.name} is not for this model, {self.because}")
        _check_numbers(request)
        seed = secrets.randbits(32) if request.seed is None else request.seed
        try:
            return self._checked(replace(request, seed=seed), future)
        except (ConfigError, DataError) as error:
            raise type(error)(_reworded(str(error))) from error
        except (TypeError, ValueError) as error:
            raise ConfigError(_reworded(str(error))) from error

    def _checked(self, request: Request, future: Future) -> Sample:
        raise NotImplementedError

    def network(self, slots: int | None, threads: int | None) -> Network:
        """What draws; see `Network` for the arguments."""
        return Network(self.pipe.components["unet"], slots, threads)

    def begin(self, samples: Sequence[Sample]) -> None:
        """Give samples what they start from."""
        raise NotImplementedError

    def pictures(self, x: Tensor, output_type: Any) -> tuple[list[Any], list[bool] | None]:
        """Clean samples (b c h w) as pictures, and what a safety checker says of each."""
        raise NotImplementedError

    def _plan(self, request: Request, strength: float = 1.0) -> SamplingPlan:
        timesteps: Any = request.timesteps
        if timesteps is not None:
            if isinstance(timesteps, str) or not isinstance(timesteps, (Sequence, Tensor)):
                raise ConfigError(f"timesteps must be a list of ints, not {timesteps!r:.100}")
            timesteps = list(timesteps)
        if timesteps is not None and (request.steps is not None or request.spacing is not None):
            raise ConfigError("give either timesteps, or steps and spacing")
        scheduler: Any = self.pipe.scheduler
        return plan_of_call(
            scheduler, request.steps, request.eta, timesteps, request.order, strength, spacing=request.spacing
        )

    def _settings(self, request: Request, plan: SamplingPlan, size: tuple[int, int]) -> dict[str, Any]:
        """What every picture says of how it was drawn; `size` is its height and width."""
        seed = {"seed": request.seed, "number": request.number}
        frame = {"eta": request.eta, "width": size[1], "height": size[0]}
        if request.timesteps is not None:
            return {**seed, "timesteps": [*request.timesteps], "order": plan.order, **frame}
        scheduler: Any = self.pipe.scheduler
        steps = steps_of_call(scheduler, request.steps, request.eta, request.order, request.spacing)
        return {**seed, "steps": steps.number, "order": steps.order, "spacing": steps.spacing, **frame}


class TextModel(Model):
    """A pipeline on latents, with or without pictures to start from."""

    refused: ClassVar[tuple[str, ...]] = ("class_label", *OF_XL)
    because = "which draws texts: give prompt"
    needed: ClassVar[tuple[str, ...]] = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
    unsaid: ClassVar[str | None] = ""  # the negative prompt of a request that says none

    def __init__(self, pipe: Draws) -> None:
        self.pipe: Draws = pipe
        self.controlnets = [] if pipe.controlnet is None else networks_of(pipe.controlnet)
        for network in self.controlnets:
            check_fits(network.config, pipe.unet.config)
            shrinks_by = 2 ** (len(network.config.get("conditioning_embedding_out_channels") or WIDTHS) - 1)
            if shrinks_by != pipe.vae_scale_factor:
                raise ConfigError(
                    f"the ControlNet is for another model: it reads pictures {shrinks_by} times as large as latents, "
                    f"and the pipeline's are {pipe.vae_scale_factor} times as large"
                )
        self._known: WeakValueDictionary[Words, Text] = WeakValueDictionary()
        self._recent: deque[Text] = deque(maxlen=KEPT_TEXTS)
        self._encoder: tuple[Any, ...] = ()

    def _checked(self, request: Request, future: Future) -> Sample:
        pipe = self.pipe
        pipe.require_parts(*self.needed)
        if pipe.weights is not None:
            raise ConfigError(
                "the pipeline's prompts have weights, and may differ in length, which texts that are drawn together "
                "must not: set pipe.weights = None, or call the pipeline itself"
            )
        if not isinstance(request.prompt, str):
            raise ConfigError(f"prompt must be a text, not {request.prompt!r:.100}")
        for name in ("negative_prompt", "prompt_2", "negative_prompt_2"):
            value = getattr(request, name)
            if value is not None and not isinstance(value, str):
                raise ConfigError(f"{name} must be a text, not {value!r:.100}")
        for name in ("denoising_start", "denoising_end"):
            share = getattr(request, name)
            if share is not None and (isinstance(share, bool) or not isinstance(share, (int, float))):
                raise ConfigError(f"{name} must be a number, not {share!r:.100}")
        if request.image is None and (request.strength is not None or request.mask is not None):
            what = "strength" if request.mask is None else "mask"
            raise ConfigError(f"{what} is for a picture to start from: give image, or leave it out")
        scale, rescale = choose_guidance(
            pipe.scheduler.config, request.guidance_scale, request.guidance_rescale, usual=pipe.usual_guidance
        )
        interval = _interval(request)
        check_guidance(scale, rescale, interval)
        strength = request.strength
        if strength is None:
            strength = 1.0 if request.image is None else _usual(pipe, "strength")
        is_noised = request.denoising_start is not None
        plan = self._plan(request, 1.0 if request.image is None or is_noised else strength)
        if is_noised or request.denoising_end is not None:
            plan = plan.part(request.denoising_start, request.denoising_end)
        takes_scale = pipe.unet.config.get("time_cond_proj_dim") is not None
        warn_if_not_trained(pipe.scheduler, plan, scale, takes_scale=takes_scale)
        size_asked = request.height, request.width
        origin = Origin(size_asked, None, request.image, strength, request.mask, None, None, is_noised)
        origin.check("pil")
        control = self._control(request)
        origin = pipe.sized(origin, control, len(self.controlnets))
        task = pipe.task(origin, plan, 1, None, None, request.seed)
        for name, given in (("image", task.canvas.picture), ("mask", task.canvas.mask)):
            if given is not None and len(given) != 1:
                raise ConfigError(f"{name} must be one picture, not {len(given)}")
        assert request.seed is not None
        is_guided = pipe.is_guided(scale)
        negative = self.unsaid if request.negative_prompt is None else request.negative_prompt
        factor = pipe.vae_scale_factor
        settings: dict[str, Any] = {"prompt": request.prompt}
        settings |= {"negative_prompt": negative} if is_guided else {}
        size = task.shape[2] * factor, task.shape[3] * factor
        words = self._words(request, size, is_guided)
        controls = [] if control is None else control.controls(self.controlnets, size, _one_each, task.canvas.crop)
        settings |= {name: value for name in OF_XL if (value := getattr(request, name)) is not None}
        settings |= self._settings(request, plan, size)
        settings |= {"guidance_scale": scale, "guidance_rescale": rescale, "guidance_interval": interval}
        settings |= {} if request.image is None or is_noised else {"strength": strength}
        if control is not None:
            how = control.scale, control.guess_mode, control.start, control.end
            settings |= dict(zip(HOW_CONTROLLED, how, strict=True))
        condition = scale if takes_scale else None
        return Sample(
            request,
            future,
            plan,
            request.seed,
            task.shape,
            scale,
            rescale,
            interval,
            is_guided,
            condition=condition,
            negative=condition,
            prompts=(request.prompt, negative if is_guided else None),
            words=words,
            task=task,
            settings=settings,
            shown=shown_steps(request, len(plan)),
            controls=[Shown(each) for each in controls],
            is_apart=bool(controls) and self.is_exact,  # the bits of who is not steered must not depend on who is
        )

    def _control(self, request: Request) -> ControlRequest | None:
        """What a request asks of the ControlNets; None for nothing.

        Raises:
            ConfigError: there are none, or it says how they are to act and not what they are shown.
        """
        given = {name: getattr(request, name) for name in HOW_CONTROLLED}
        if not isinstance(request.guess_mode, bool):
            raise ConfigError(f"guess_mode must be True or False, not {request.guess_mode!r:.100}")
        if request.control_image is None:
            for name, value in given.items():
                if value is not None and value is not False:
                    raise ConfigError(f"{name} is for a ControlNet: give control_image, or leave it out")
            return None
        if not self.controlnets:
            raise ConfigError(
                "control_image is for a ControlNet, and this pipeline has none: assign pipe.controlnet, and make the "
                "engine of that"
            )
        scale, guesses, start, end = (_usual(self.pipe, n) if v is None else v for n, v in given.items())
        return ControlRequest(request.control_image, scale, guesses, start, end)

    def network(self, slots: int | None, threads: int | None) -> Network:
        unet = self.pipe.components["unet"]
        return (
            SteeredNetwork(unet, self.controlnets, slots, threads)
            if self.controlnets
            else super().network(slots, threads)
        )

    def begin(self, samples: Sequence[Sample]) -> None:
        wanted = [words for sample in samples if (words := sample.words) is not None]
        texts = self._texts([each for words in wanted for each in words if each is not None])
        for sample in samples:
            assert sample.words is not None
            assert sample.task is not None
            own, negative = sample.words
            sample.texts = texts[own], None if negative is None else texts[negative]
            if sample.x is None:
                start = self.pipe.start(replace(sample.task, generator=sample.restart()))
                sample.channels, sample.kept, sample.x = start.channels, start.keep, start.x

    def _words(self, request: Request, size: tuple[int, int], is_guided: bool) -> tuple[Words, Words | None]:
        """What the texts of a request are made of; `size` is the picture's height and width."""
        return Words(request.prompt), Words(request.negative_prompt or "") if is_guided else None

    def _texts(self, wanted: Sequence[Words]) -> dict[Words, Text]:
        """Texts by what they are made of; what nobody has asked for lately is encoded, all at once or each alone."""
        now = tuple(part for pair in self._encoders() for part in pair)
        if len(self._encoder) != len(now) or any(a is not b for a, b in zip(self._encoder, now, strict=True)):
            self._encoder = now
            self._known.clear()
            self._recent.clear()
        found = {words: text for words in wanted if (text := self._known.get(words)) is not None}
        new = [words for words in dict.fromkeys(wanted) if words not in found]
        groups = [[words] for words in new] if self.is_exact else [new] if new else []
        for some in groups:
            for words, text in zip(some, self._encoded(some), strict=True):
                found[words] = self._known[words] = text
        self._recent.extend(text for text in found.values() if text not in self._recent)
        return found

    def _encoders(self) -> list[tuple[Any, Any, Any]]:
        """Each text encoder with its tokenizer and its weights, of which a change makes all texts other ones."""
        pipe, found = self.pipe, []
        for end in ("", "_2"):
            encoder, tokenizer = (getattr(pipe, f"{name}{end}", None) for name in ("text_encoder", "tokenizer"))
            found.append((encoder, tokenizer, encoder.look() if isinstance(encoder, HasCore) else encoder))
        return found

    def _encoded(self, some: Sequence[Words]) -> list[Text]:
        """What the text encoders make of these."""
        encoder: Any = self.pipe.text_encoder
        # They say nothing, and all differ, as the same text would be encoded once.
        filling = [" " * count for count in range(1, _missing(encoder, len(some)) + 1)]
        all_texts = [words.prompt or "" for words in some] + filling
        embeds = self.pipe.conditions(all_texts).embeds
        return [Text(embeds[place : place + 1].clone()) for place in range(len(some))]

    def pictures(self, x: Tensor, output_type: Any) -> tuple[list[Any], list[bool] | None]:
        count = len(x)
        missing = _missing(self.pipe.vae, count)
        if missing:
            x = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
        drawn, found = self.pipe.drawn(x, output_type)
        return list(drawn)[:count], None if found is None else list(found)[:count]


class TextModelXL(TextModel):
    """A pipeline of Stable Diffusion XL."""

    refused = ("class_label",)
    needed = ("unet", "vae", "scheduler", "text_encoder_2", "tokenizer_2")
    unsaid = None  # which is another thing than the empty text

    def __init__(self, pipe: StableDiffusionXLPipeline) -> None:
        super().__init__(pipe)
        self.xl = pipe

    def _words(self, request: Request, size: tuple[int, int], is_guided: bool) -> tuple[Words, Words | None]:
        given = {name: getattr(request, name) for name in SIZES if getattr(request, name) is not None}
        numbers = self.xl.numbers(Sizes(**given), size)
        asked = check_xl_prompts(
            request.prompt,
            request.prompt_2,
            request.negative_prompt,
            request.negative_prompt_2,
            *[None] * 4,
            zeros_for_none=self.xl.force_zeros_for_empty_prompt,
            weights=self.xl.weights,
        )
        words = Words(_only(asked.first.texts), _only(asked.second), numbers[0])
        if not is_guided:
            return words, None
        if asked.is_empty:
            return words, Words(None, None, numbers[1])
        return words, Words(_only(asked.first.negative_texts), _only(asked.negative_second), numbers[1])

    def _encoded(self, some: Sequence[Words]) -> list[Text]:
        texts = [words.prompt or "" for words in some]
        condition = self.xl.conditions(texts, [words.second or "" for words in some])
        found = []
        for place, words in enumerate(some):
            ids = condition.added["time_ids"].new_tensor([words.numbers])
            embeds, pooled = (each[place : place + 1].clone() for each in condition.tensors()[:2])
            if words.prompt is None:
                embeds, pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
            found.append(Text(embeds, {"text_embeds": pooled, "time_ids": ids}))
        return found


def _one_each(shown: Tensor, name: str) -> Tensor:
    """Raise a ValueError, as there are several pictures for one ControlNet."""
    raise ValueError(f"control_image must be one picture for each ControlNet, not {len(shown)} {name}")


def _only(texts: list[str] | None) -> str:
    """The text of a list that has one."""
    assert texts is not None
    (text,) = texts
    return text


class PixelModel(Model):
    """A pipeline on pixels, with classes or without."""

    refused = ("prompt", "negative_prompt", "image", "mask", "strength", *OF_XL, *OF_CONTROL)
    because = "which draws no texts and starts from noise alone"

    def __init__(self, pipe: DDIMPipeline) -> None:
        self.pipe: DDIMPipeline = pipe

    def _checked(self, request: Request, future: Future) -> Sample:
        pipe = self.pipe
        pipe.require_parts("unet", "scheduler")
        label = request.class_label
        if label is not None and (isinstance(label, bool) or not isinstance(label, int)):
            raise ConfigError(f"class_label must be an int, not {label!r:.100}")
        labels = pipe.labels(label, 1)
        scale, rescale = choose_guidance(
            pipe.scheduler.config, request.guidance_scale, request.guidance_rescale, usual=1.0
        )
        if labels is None and scale != 1:
            if request.guidance_scale is not None:
                raise ConfigError("this model knows no classes: leave guidance_scale out")
            scale = 1.0
        interval = _interval(request)
        check_guidance(scale, rescale, interval)
        plan = self._plan(request)
        warn_if_not_trained(pipe.scheduler, plan, scale)
        shape = pipe.sample_shape(1)
        for name, side, own in (("width", request.width, shape[3]), ("height", request.height, shape[2])):
            if side not in (None, own):
                raise ConfigError(f"this model draws pictures of {shape[3]}x{shape[2]} alone, not of {name} {side}")
        assert request.seed is not None
        settings = self._settings(request, plan, (shape[2], shape[3]))
        if labels is not None:
            settings |= {"class_label": label, "guidance_scale": scale, "guidance_rescale": rescale}
            settings["guidance_interval"] = interval
        none = None if labels is None else pipe.unet.config.num_class_embeds - 1
        return Sample(
            request,
            future,
            plan,
            request.seed,
            shape,
            scale,
            rescale,
            interval,
            scale != 1,
            condition=none if label is None else label,
            negative=none,
            settings=settings,
            shown=shown_steps(request, len(plan)),
        )

    def begin(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if sample.x is None:
                sample.x = gaussian_noise(sample.shape, sample.restart(), self.pipe.device, self.pipe.dtype)

    def pictures(self, x: Tensor, output_type: Any) -> tuple[list[Any], list[bool] | None]:
        return list(to_images(x, output_type)), None


def _missing(network: Any, count: int) -> int:
    """How many a batch of a network is short of a size that its backend has met perhaps; see `Runner.rounded`."""
    runner: Any = getattr(network, "runner", None)
    return runner.rounded(count) - count if hasattr(runner, "rounded") else 0


def uncontrolled(pipe: Any) -> Any:
    """A pipeline without its ControlNets, for what is drawn with none; the same one, if it has none."""
    if pipe.components.get("controlnet") is None:
        return pipe
    return type(pipe).from_pipe(pipe, controlnet=None)


def model_of(pipe: Any) -> Model:
    """What the engine needs of a pipeline.

    Raises:
        ConfigError: it is of another kind.
    """
    if getattr(pipe, "_offload", None) is not None:
        raise ConfigError("an engine keeps its networks where they run: call pipe.to(device) instead of offloading")
    if isinstance(pipe, StableDiffusionXLPipeline):
        return TextModelXL(pipe)
    if isinstance(pipe, StableDiffusionPipeline):
        return TextModel(pipe)
    if isinstance(pipe, DDIMPipeline):
        return PixelModel(pipe)
    raise ConfigError(
        "an engine is for a StableDiffusionPipeline, a StableDiffusionXLPipeline or a DDIMPipeline, not a "
        f"{type(pipe).__name__}"
    )


def _check_numbers(request: Request) -> None:
    """Raise a ConfigError for what no pipeline would be asked."""
    for name, least in (("seed", 0), ("number", 0), ("previews", 0), ("preview_every", 1), ("steps", 1)):
        value = getattr(request, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ConfigError(f"{name} must be an int of {least} or more, not {value!r:.100}")
    for name in ("guidance_scale", "guidance_rescale", "strength", "deadline"):
        value = getattr(request, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ConfigError(f"{name} must be a number, not {value!r:.100}")
    if request.deadline is not None and not request.deadline > 0:
        raise ConfigError(f"deadline must be a positive number of seconds, not {request.deadline!r:.100}")
    if request.output_type not in ("pil", "pt"):
        raise ConfigError(f"output_type={request.output_type!r:.100} is neither 'pil' nor 'pt'")
    if request.previews and request.preview_every is not None:
        raise ConfigError("give previews or preview_every, not both")


def _interval(request: Request) -> tuple[int, int] | None:
    given = request.guidance_interval
    if given is None:
        return None
    whole = isinstance(given, Sequence) and all(isinstance(n, int) and not isinstance(n, bool) for n in given)
    if not whole or len(given) != 2:
        raise ConfigError(f"guidance_interval must be two timesteps, (lowest, highest), not {given!r:.100}")
    return given[0], given[1]


def _usual(pipe: Draws, name: str) -> Any:
    """An argument of a call that does not say it."""
    for kind in type(pipe).__mro__:  # one that draws of texts alone has no strength, and is another one's kind
        parameters = inspect.signature(kind.__call__).parameters if "__call__" in vars(kind) else {}
        if name in parameters:
            return parameters[name].default
    raise AttributeError(name)


def _reworded(message: str) -> str:
    """A pipeline's message, in the words of a request."""
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message
