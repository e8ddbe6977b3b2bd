"""What every command that draws begins with: a pipeline on its device, options that suit it, and its guidance."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ddim.errors import ConfigError

if TYPE_CHECKING:
    from ddim.pipelines import DiffusionPipeline


def open_pipeline(
    model: str,
    dtype: str | None = None,
    device: str | None = None,
    *,
    backend: str = "eager",
    spacing: str | None = None,
    zero_snr: bool | None = None,
) -> DiffusionPipeline:
    """Load a pipeline by its folder, its name or its id on the hub, ready to draw.

    Args:
        dtype: the name of the torch type to compute in. If not given, float32, or what the backend likes best.
        device: where to run. If not given, the best device that there is.
        backend: what runs the networks; see `ddim.backends`.
        spacing, zero_snr: settings of the scheduler; the model's own if not given.

    Raises:
        ConfigError: the device is not there.
        CheckpointError: there is no such model, or it is broken.
    """
    with _no_garbage():
        import torch

        from ddim.pipelines import DiffusionPipeline

    chosen = None if dtype is None else getattr(torch, dtype)
    pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32 if backend == "openvino" else chosen)
    changes: dict[str, Any] = {}
    if spacing is not None:
        changes["timestep_spacing"] = spacing
    if zero_snr is not None:
        changes["rescale_betas_zero_snr"] = zero_snr
    if changes:
        pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, **changes)
    try:
        pipe.to(device or _best_device())
    except (RuntimeError, AssertionError) as error:  # torch's words for a device that is not there
        raise ConfigError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    return pipe if backend == "eager" else pipe.accelerate(backend, chosen)


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Stop Python's garbage collector while PyTorch is imported.

    To look for garbage among all that the import makes would take 0.1 s then, and 0.3 s when the program ends.
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


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_kind(
    pipe: DiffusionPipeline,
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
    """(guidance_scale, guidance_rescale): what was given, and what suits the model where nothing was.

    For texts at zero terminal SNR that is 3 and 0.7, by which the bundled model was judged; for other texts 7.5 and 0,
    as is usual; without texts 1 and 0, which is no guidance.

    Args:
        for_texts: the scale for texts instead of 3 and 7.5.
    """
    is_zero_snr = pipe.scheduler.config.rescale_betas_zero_snr
    if scale is None:
        suitable = for_texts or (3.0 if is_zero_snr else 7.5)
        scale = suitable if pipe.draws_texts else 1.0
    if rescale is None:
        rescale = 0.7 if pipe.draws_texts and scale != 1 and is_zero_snr else 0.0
    return scale, rescale
