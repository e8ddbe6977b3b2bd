"""What every command that draws begins with: a pipeline on its device, with the guidance that suits it."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Any

from ddim.errors import ConfigError


def open_pipeline(
    model: str,
    dtype: str | None = None,
    device: str | None = None,
    *,
    backend: str = "eager",
    spacing: str | None = None,
    zero_snr: Any = None,
) -> Any:
    """A pipeline by its folder, name or id.

    Args:
        dtype: the name of a torch type; float32 unless told, or what `backend` likes best.
        device: the best there is unless told.
        backend: see `ddim.backends`.
        spacing, zero_snr: of the scheduler, instead of the model's own.

    Raises:
        ConfigError: a device that is not there.
        CheckpointError: no such model.
    """
    with _no_garbage():
        import torch

        from ddim.pipelines import DiffusionPipeline

    chosen = None if dtype is None else getattr(torch, dtype)
    pipe: Any = DiffusionPipeline.from_pretrained(model, dtype=torch.float32 if backend == "openvino" else chosen)
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
    """For PyTorch's import: to look for garbage among all that it makes takes 0.1 s then, and 0.3 s at the end."""
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


def draws_texts(pipe: Any) -> bool:
    """Whether a pipeline draws what a text says, rather than classes or nothing in particular."""
    from ddim.pipelines import DDIMPipeline

    return not isinstance(pipe, DDIMPipeline)


def suitable_guidance(
    pipe: Any, scale: float | None, rescale: float | None, *, for_texts: float | None = None
) -> tuple[float, float]:
    """(guidance_scale, guidance_rescale): as given; else 3 and 0.7 for texts at zero terminal SNR, for which the
    bundled model was judged, 7.5 and 0 for other texts, and 1 and 0 without texts. `for_texts` stands for 3 and 7.5.
    """
    texts = draws_texts(pipe)
    is_zero_snr = pipe.scheduler.config.rescale_betas_zero_snr
    if scale is None:
        suitable = for_texts or (3.0 if is_zero_snr else 7.5)
        scale = suitable if texts else 1.0
    if rescale is None:
        rescale = 0.7 if texts and scale != 1 and is_zero_snr else 0.0
    return scale, rescale
