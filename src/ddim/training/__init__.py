"""Training: pixels, autoencoders, text to image and what is added to it, each an objective of the one trainer.

settings        what a run is told
run             from settings to a run
trainer         the loop, for whatever is trained
objective       what is trained: a module whose forward pass is the losses of a batch
forecast        what a run comes to, advice, and how long it takes
interruption    Ctrl-C and signals
trackers        where a run is shown
pasted          flags of diffusers' scripts that are no settings here
checkpoints     what a run goes on from
diffusion       what diffusion models are trained on: schedules, noise, targets, weights
pixels, autoencoder, text_to_image, lora, textual_inversion, controlnet, distillation   the objectives
parts           what a text-to-image pipeline is made of, and where a run has it from
texts           what a U-Net is told of captions
trajectories    what a teacher does, for its student
caches          latents and texts that are computed once
frozen          networks that a run uses as they are, in little memory
vocabulary      a tokenizer learnt from captions
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddim.training.settings import DistillSettings, TrainSettings

__all__ = ["distill", "train"]


def train(settings: TrainSettings) -> Path:
    """Train what the settings say and save it; returns the folder, which `from_pretrained` loads.

    Raises:
        ConfigError, DataError: settings or data that cannot work together, before anything is written.
        MissingExtraError: a library that the settings need is not installed; nothing was loaded yet.
        Interrupted: Ctrl-C or a signal ended the run, which is saved; a `KeyboardInterrupt`.
        NonFiniteError: the loss became NaN; the checkpoints before it are left as they are.
    """
    settings.check_installed()
    from ddim.training.run import make_trainer  # and with it PyTorch, which settings and `--help` do without

    return make_trainer(settings).run()


def distill(settings: DistillSettings) -> Path:
    """Teach a student to draw in few steps; returns its folder, which `from_pretrained` loads.

    Raises:
        ConfigError, DataError: settings, model or prompts that cannot work together, before anything is written.
        MissingExtraError, Interrupted, NonFiniteError: as `train`.
    """
    settings.check_installed()
    from ddim.training.run import distill as run

    return run(settings)
