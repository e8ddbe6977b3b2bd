"""What several commands take: each option's type and help, once. No torch here, so that `--help` is instant."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

ChosenSpacing = Literal["leading", "trailing", "linspace", "quadratic", "optimized"]
AnyEta = float | Literal["sigma_hat"]
Precision = Literal["float32", "bfloat16", "float16"]

Model = Annotated[
    str,
    tyro.conf.arg(
        help="A folder in diffusers' layout, the name of a bundled model (see `ddim info`), or an id on the hub."
    ),
]
ModelOrBundled = Annotated[
    str | None,
    tyro.conf.arg(
        help="A folder in diffusers' layout, the name of a bundled model (see `ddim info`), or an id on the hub. If "
        "not given, emoji for a text, else digits."
    ),
]
NegativePrompt = Annotated[
    str | None, tyro.conf.arg(help="What to keep away from under guidance, for a text-to-image model.")
]
GuidanceScale = Annotated[
    float | None,
    tyro.conf.arg(
        help="How much to prefer the text or class over none; 1 is no guidance. If not given, 1 for classes, 3 for a "
        "text-to-image model with zero terminal SNR, 7.5 for others."
    ),
]
GuidanceRescale = Annotated[
    float | None,
    tyro.conf.arg(
        help="In [0, 1]: how much of the contrast that guidance adds to take back. If not given, 0.7 for a "
        "text-to-image model with zero terminal SNR under guidance, else 0."
    ),
]
Steps = Annotated[int, tyro.conf.arg(help="Sampling steps, 1 to the model's training timesteps.")]
Eta = Annotated[
    AnyEta,
    tyro.conf.arg(help="Noise added on the way: 0 is DDIM, 1 is DDPM, sigma_hat is DDPM with the larger variance."),
]
Spacing = Annotated[
    ChosenSpacing | None,
    tyro.conf.arg(help="Which of the training timesteps to use. The model's own choice if not given."),
]
ZeroSNR = Annotated[
    bool | None,
    tyro.conf.arg(
        help="Rescale the schedule to zero terminal SNR (needs a v-prediction model). The model's own choice if not "
        "given."
    ),
]
DType = Annotated[
    Precision | None,
    tyro.conf.arg(help="The type to run in. If not given float32, or with OpenVINO what suits the processor."),
]
Backend = Annotated[
    Literal["eager", "compile", "openvino", "auto"],
    tyro.conf.arg(
        help="What runs the networks: PyTorch (eager), PyTorch after a minute of compiling, OpenVINO (for CPUs; "
        "converts a model once, and keeps that), or what suits the device."
    ),
]
Device = Annotated[
    str | None, tyro.conf.arg(help="For example cuda, cuda:1, mps or cpu. The best there is if not given.")
]
