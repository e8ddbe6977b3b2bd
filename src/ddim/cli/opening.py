"""What every command that draws begins with: a pipeline on its device, options that suit it, and its guidance."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from ddim.checkpoint.known import SINGLE_FILE, guidance_of, known
from ddim.cli.adapters import add_adapters, refuse_adapters
from ddim.cli.checks import address_on_hub, is_single_file
from ddim.cli.controlling import add_controls
from ddim.cli.known import Kind, check_against
from ddim.cli.new_words import add_words, refuse_words
from ddim.cli.options import Backend
from ddim.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch

    from ddim.pipelines import DiffusionPipeline
    from ddim.scheduler.recommended import Steps

_SHOWN = 10  # how many unknown words are shown
TOKENIZER = "openai/clip-vit-large-patch14"  # that of Stable Diffusion, where --tokenizer is not given


def open_pipeline(settings: Any, suits: Callable[[Kind], None] = lambda kind: None) -> DiffusionPipeline:
    """Load the pipeline that a command's settings ask for, with its adapters, ready to draw.

    Args:
        settings: a command's settings. Looked at are `model`, which is given, and as far as the command has them,
            `dtype`, `device`, `backend`, `spacing`, `zero_snr`, `lora`, `textual_inversion`, `weights`, `vae`,
            `variant`, `tokenizer`, `prediction_type`, and the numbers that `known.check_against` names.
        suits: raises a ConfigError unless the command's options are for this kind of model. It is asked before the
            model is loaded, if its configs say what kind it is, else afterwards.

    Raises:
        ConfigError: the device is not there, or options do not go with the model.
        CheckpointError: there is no such model or adapter, or it is broken.
        WeightsError: an adapter does not fit the model.
    """
    model = str(settings.model)
    is_known = check_model(settings, suits)
    with _no_garbage():
        import torch

        from ddim.pipelines import DiffusionPipeline

    place = _device_of(settings)
    backend: Backend = _option(settings, "backend") or "eager"
    dtype = _option(settings, "dtype")
    chosen = None if dtype is None else getattr(torch, dtype)
    how = torch.float32 if backend == "openvino" else chosen
    if is_single_file(model):
        pipe: DiffusionPipeline = _from_single_file(settings, how)
    else:
        pipe = DiffusionPipeline.from_pretrained(model, dtype=how, variant=_option(settings, "variant"))
    if not is_known:
        suits(pipe)
        check_guidance(pipe, settings, **guidance_of(pipe.components["unet"].config, pipe.scheduler.config))
    changes = {
        "timestep_spacing": _option(settings, "spacing"),
        "rescale_betas_zero_snr": _option(settings, "zero_snr"),
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes:
        pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, **changes)
    if _option(settings, "vae") is not None:
        _change_autoencoder(pipe, settings, how)
    add_adapters(pipe, model, _option(settings, "lora"))
    add_words(pipe, model, _option(settings, "textual_inversion"))
    add_controls(pipe, model, _option(settings, "controlnet"))
    _weigh(pipe, _option(settings, "weights"))
    _tell_unknown_words(pipe, settings)
    try:
        pipe.to(place)
    except (RuntimeError, AssertionError) as error:  # torch's words for a device that is not there
        raise ConfigError(f"--device {place} cannot be used: {str(error).splitlines()[0]}") from error
    return pipe if backend == "eager" else pipe.accelerate(backend, chosen)


def check_model(settings: Any, suits: Callable[[Kind], None]) -> bool:
    """Check, without PyTorch, what can be checked of a model and of the options before it is loaded.

    Args:
        settings, suits: as in `open_pipeline`, which does this first.

    Returns:
        Whether it is known what kind of model it is.

    Raises:
        ConfigError, CheckpointError: as `open_pipeline`.
    """
    model = str(settings.model)
    found = SINGLE_FILE if is_single_file(model) else known(model)
    if found is not None:
        suits(found)
        check_guidance(found, settings, found.guidance, found.takes_scale)
        check_against(model, found, settings)
        if not found.draws_texts:
            refuse_adapters(model, _option(settings, "lora"))
            refuse_words(model, _option(settings, "textual_inversion"))
            _refuse_weights(model, _option(settings, "weights"))
            _refuse_autoencoder(settings)
    _check_loading(settings)
    return found is not None


def _option(settings: Any, name: str) -> Any:
    """What was given for an option; None for one that the command has not."""
    return getattr(settings, name, None)


def _weigh(pipe: DiffusionPipeline, weights: Any) -> None:
    """Have a pipeline read weights in its prompts, if that is asked for."""
    if weights is None:
        return
    from ddim.pipelines.latents import LatentPipeline

    if not isinstance(pipe, LatentPipeline):
        _refuse_weights(type(pipe).__name__, weights)
    else:
        pipe.weights = weights


def _refuse_weights(model: str, weights: Any) -> None:
    """Raise a ConfigError if the notation of weights was given, for a model that reads no texts."""
    if weights is not None:
        raise ConfigError(f"{model} reads no texts: leave out --weights, or use a text-to-image model")


def _tell_unknown_words(pipe: DiffusionPipeline, settings: Any) -> None:
    """Say in a line on stderr which words of the texts to draw the model has never seen, and what is near to them."""
    from ddim.pipelines.words import KnowsWords

    given = [_option(settings, name) for name in ("prompt", "prompts", "source", "target")]
    texts = [text for each in given if each for text in ((each,) if isinstance(each, str) else each)]
    if (weights := _option(settings, "weights")) is not None:
        from ddim.pipelines.emphasis import parse

        texts = [" ".join(part.text or "" for part in parse(text, weights)) for text in texts]
    found = pipe.unknown_words(texts) if isinstance(pipe, KnowsWords) else {}
    if not found:
        return
    shown = list(found)[:_SHOWN]
    names = 3 if len(shown) < 4 else 1  # of what is near to each word
    near = list(dict.fromkeys(name for word in shown for name in found[word][:names]))
    print(
        f"ddim: the model has never seen: {', '.join(shown)}"
        + ", …" * (len(found) > _SHOWN)
        + (f"; near: {', '.join(near)}" if near else ""),
        file=sys.stderr,
    )


def _device_of(settings: Any) -> str:
    """The device to run on: the one that is asked for, or else the best that there is.

    Raises:
        ConfigError: it is not there; the message lists those that are.
    """
    import torch

    there = ["cpu"]
    there += [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    asked = _option(settings, "device")
    if asked is None:
        return "cuda" if "cuda:0" in there else there[-1]
    kind, _, index = str(asked).partition(":")
    if kind in ("cpu", "cuda", "mps") and (f"{kind}:{index or 0}" if kind == "cuda" else kind) not in there:
        raise ConfigError(f"--device {asked} cannot be used: PyTorch finds {' and '.join(there)} here")
    return str(asked)


def _check_loading(settings: Any) -> None:
    """Refuse options about loading that have no meaning for the kind of model that is given.

    Raises:
        ConfigError: says which to leave out.
    """
    model = str(settings.model)
    if is_single_file(model) and _option(settings, "variant") is not None:
        raise ConfigError(f"--variant chooses among the files of a folder, and {model} is one file: leave it out")
    for option, name in (("--tokenizer", "tokenizer"), ("--prediction-type", "prediction_type")):
        if not is_single_file(model) and _option(settings, name) is not None:
            raise ConfigError(
                f"{option} is for a --model that is one .safetensors file, and {model} says it itself: leave it out"
            )


def _refuse_autoencoder(settings: Any) -> None:
    """Raise a ConfigError if an autoencoder was given, for a model that has none."""
    if _option(settings, "vae") is not None:
        raise ConfigError(f"{settings.model} has no autoencoder: leave out --vae, or use a text-to-image model")


def _change_autoencoder(pipe: DiffusionPipeline, settings: Any, dtype: torch.dtype | None) -> None:
    """Put the autoencoder that was asked for in the place of the pipeline's.

    Raises:
        CheckpointError, WeightsError: there is none, or it is broken; the message names the option.
        ConfigError: it is not for this model.
    """
    from ddim.errors import DDIMError
    from ddim.pipelines.autoencoders import load_autoencoder, suits

    own = pipe.components.get("vae")
    if own is None:
        _refuse_autoencoder(settings)
        return
    place, name = str(settings.vae), f"--vae {settings.vae}"
    address = address_on_hub(place) if is_single_file(place) else None
    try:
        vae = load_autoencoder(address or place, own.config, **({} if dtype is None else {"dtype": dtype}))
    except DDIMError as error:
        raise type(error)(f"{name}: {error}") from error
    suits(vae, pipe, name)
    pipe.vae = vae


def _from_single_file(settings: Any, dtype: torch.dtype | None) -> DiffusionPipeline:
    """The pipeline of one file in the original layout.

    Raises:
        CheckpointError: as for any model; or the tokenizer is not there, of which the message says how to give one.
    """
    from ddim.pipelines import DiffusionPipeline

    tokenizer = _option(settings, "tokenizer")
    try:
        pipe = DiffusionPipeline.from_single_file(
            address_on_hub(str(settings.model)) or str(settings.model),
            tokenizer=tokenizer or TOKENIZER,
            dtype=dtype,
            prediction_type=_option(settings, "prediction_type"),
        )
    except CheckpointError as error:
        if tokenizer is None and TOKENIZER in str(error):
            raise CheckpointError(
                f"a single file has no tokenizer, and the usual one, {TOKENIZER}, cannot be had: give --tokenizer and "
                f"a folder that has one, such as that of any Stable Diffusion ({error})"
            ) from error
        raise
    return pipe


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Stop Python's garbage collector while PyTorch is imported.

    To look for garbage among all that the import makes would take time then, and more when the program ends.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def check_kind(
    pipe: Kind,
    model: str,
    *,
    for_texts: Mapping[str, object] | None = None,
    for_classes: Mapping[str, object] | None = None,
    example: str | None = None,
    only_texts: bool = False,
) -> None:
    """Refuse options that this kind of model has no use for, and a text-to-image model without a text.

    Args:
        model: what the user calls the model, for the message.
        for_texts: the options that only text-to-image models have a use for: their names, as a user types them, and
            what was given; None and an empty tuple mean that nothing was.
        for_classes: the same for class-conditional models.
        example: a command that would work. If there is one, a text-to-image model needs a text here, which is the first
            of `for_texts`.
        only_texts: whether the command is for text-to-image models alone.

    Raises:
        ConfigError: says which options to leave out, or what to give.
    """
    texts, classes = _given(for_texts or {}), _given(for_classes or {})
    if not pipe.draws_texts and only_texts:
        raise ConfigError(f"{model} draws no texts: use a text-to-image model, such as --model emoji")
    if not pipe.draws_texts and texts:
        raise ConfigError(f"{model} draws no texts: leave out {_listed(texts)}, or use a text-to-image model")
    if pipe.class_count is None and classes:
        raise ConfigError(f"{model} knows no classes: leave out {_listed(classes)}")
    if pipe.draws_texts and example is not None and next(iter(for_texts or {}), None) not in texts:
        raise ConfigError(f"{model} draws what a text says: give one, for example {example}")


def check_guidance(kind: Kind, settings: Any, guidance: float | None = None, takes_scale: bool = False) -> None:
    """Refuse options about guidance where there is none.

    Args:
        kind: what the model is for.
        settings: a command's settings, of which those are looked at that are named as here.
        guidance: the scale that the model recommends.
        takes_scale: whether its network takes the scale as an input, and so needs no second prediction to be guided.

    Raises:
        ConfigError: says what to give, or to leave out.
    """
    model, scale = settings.model, _option(settings, "guidance_scale")
    if scale not in (None, 1) and not kind.draws_texts and kind.class_count is None:
        raise ConfigError(
            f"--guidance-scale {scale:g} has nothing to prefer, as {model} knows neither texts nor classes"
        )
    inverts = _option(settings, "images") and not hasattr(settings, "source")
    if scale is None and not inverts:  # where pictures are inverted, suitable guidance is none
        scale = guidance
        is_guided = kind.draws_texts if scale is None else scale != 1
    else:
        is_guided = scale is not None and (scale > 1 if kind.draws_texts else scale != 1)
    about = {
        "--negative-prompt": _option(settings, "negative_prompt") is not None,
        **{
            f"--{name.replace('_', '-')}": _option(settings, name) is not None
            for name in (
                "negative_prompt_2",
                "negative_original_size",
                "negative_crop",
                "negative_target_size",
                "negative_aesthetic_score",
            )
        },
        "--guidance-rescale": bool(_option(settings, "guidance_rescale")),
        "--guidance-interval": _option(settings, "guidance_interval") is not None,
    }
    for option, is_given in about.items():
        if is_given and takes_scale:
            raise ConfigError(
                f"{option} changes nothing here: {model} was distilled under guidance and takes its scale as an input, "
                "so that there is no second prediction to compare with; leave it out"
            )
        if is_given and not is_guided:
            raise ConfigError(
                f"{option} changes nothing without guidance: give a --guidance-scale above 1, or leave it out"
            )


def _given(options: Mapping[str, object]) -> list[str]:
    """The names of the options that were given."""
    return [name for name, value in options.items() if value is not None and value != ()]


def _listed(names: list[str]) -> str:
    """
    >>> _listed(["the prompt"]), _listed(["the prompt", "--height", "--width"])
    ('the prompt', 'the prompt, --height and --width')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def suitable_guidance(
    pipe: DiffusionPipeline, scale: float | None, rescale: float | None, *, for_texts: float | None = None
) -> tuple[float, float]:
    """(guidance_scale, guidance_rescale): what was given, and what suits the model; see `recommended`.

    Args:
        for_texts: the scale for texts, whatever the model recommends.

    Raises:
        ConfigError: what the folder recommends cannot be followed.
    """
    from ddim.scheduler import recommended

    if scale is None and pipe.draws_texts:
        scale = for_texts
    usual: float = getattr(pipe, "usual_guidance", 7.5)
    return recommended.suitable_guidance(pipe.scheduler.config, pipe.draws_texts, scale, rescale, usual)


def suitable_steps(
    pipe: DiffusionPipeline, number: int | None, order: Literal[1, 2] | None = None, *, eta: Any = 0.0
) -> Steps:
    """The steps of a run: what was given, and what suits the model where nothing was.

    From then on the pipeline's scheduler has their spacing, as if --spacing had said it.

    Raises:
        ConfigError: what the folder recommends cannot be followed.
    """
    from ddim.scheduler.recommended import choose_steps

    config = pipe.scheduler.config
    steps = choose_steps(config, number, order, eta=eta)
    pipe.scheduler = pipe.scheduler.from_config(config, timestep_spacing=steps.spacing)
    return steps
