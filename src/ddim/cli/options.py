"""The options that several commands take: the type and the help of each, once.

Nothing here imports torch, so that `--help` is instant.
"""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

ChosenSpacing = Literal["leading", "trailing", "linspace", "quadratic", "optimized"]
AnyEta = float | Literal["sigma_hat"]
Precision = Literal["float32", "bfloat16", "float16"]

# --- models and what they draw ---------------------------------------------------------------------------------------

Model = Annotated[
    str,
    tyro.conf.arg(
        help="A folder in diffusers' layout, the name of a bundled model (`ddim info` lists them), an id on the "
        "Hugging Face hub, or a .safetensors file with a whole Stable Diffusion 1, 2 or XL."
    ),
]
ModelOrBundled = Annotated[
    str | None,
    tyro.conf.arg(
        help="A folder in diffusers' layout, the name of a bundled model (`ddim info` lists them), an id on the "
        "Hugging Face hub, or a .safetensors file with a whole Stable Diffusion 1, 2 or XL. If not given, texts are "
        "drawn by emoji-fast in 4 steps without guidance; but where an option says how to sample or to guide, or gives "
        "a picture or adapters, by emoji, of which it is the student. All else is drawn by digits."
    ),
]
Loras = Annotated[  # a tuple for each time that it is given, of which `cli.adapters.joined` makes one
    tuple[tuple[str, ...], ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(
        metavar="PATH[:WEIGHT] ...",
        help="Low-rank adapters to draw with, one or several: files, folders or ids on the hub (owner/name, or "
        "owner/name/file). A number after a colon says how strong one is to be. If not given, 1: as it was trained.",
    ),
]
TextualInversions = Annotated[  # as Loras
    tuple[tuple[str, ...], ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(
        metavar="PATH[=TOKEN] ...",
        help="Words that the model is to learn, one or several: files of textual inversion, folders or ids on the hub "
        "(owner/name, or owner/name/file). What follows the sign = is what the prompt says for one. If not given, what "
        "its file says.",
    ),
]
ControlNets = Annotated[  # as Loras
    tuple[tuple[str, ...], ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(
        metavar="PATH[=SCALE] ...",
        help="ControlNets that steer the model, one or several: folders, .safetensors files or ids on the hub. A "
        "number after the sign = says how strongly one acts. If not given, 1: as it was trained. Each needs a "
        "--control-image.",
    ),
]
ControlImages = Annotated[  # as Loras
    tuple[tuple[str, ...], ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(
        metavar="PATH ...",
        help="What each --controlnet is shown, in their order: files of pictures such as edges or poses. They are "
        "resized as --image is. Give this or --control-from.",
    ),
]
GuessMode = Annotated[
    bool,
    tyro.conf.arg(
        help="Have each --controlnet guess what its picture shows: it acts on the half with the text alone, and less "
        "in detail. For use without a text."
    ),
]
ControlStart = Annotated[
    tuple[float, ...],
    tyro.conf.arg(
        metavar="SHARE ...",
        help="The share of the steps, from 0 to 1, from which each --controlnet acts; one for all, or one for each. If "
        "not given, 0.",
    ),
]
ControlEnd = Annotated[
    tuple[float, ...],
    tyro.conf.arg(
        metavar="SHARE ...",
        help="The share of the steps, from 0 to 1, to which each --controlnet acts; one for all, or one for each. If "
        "not given, 1.",
    ),
]
PromptWeights = Annotated[
    Literal["a1111", "compel"] | None,
    tyro.conf.arg(
        help="How the texts say what weighs how much: a1111 for (word:1.3), [word] and texts of more than 75 tokens, "
        "as AUTOMATIC1111's web UI reads them; compel for word++, word- and (word)1.3. If not given, brackets and "
        "signs are what they are."
    ),
]
Autoencoder = Annotated[
    str | None,
    tyro.conf.arg(
        help="Another autoencoder, for a text-to-image model: a folder, an id on the hub or a .safetensors file. A "
        "small one (AutoencoderTiny, such as madebyollin/taesd or taesdxl) turns what was drawn into a picture much "
        "faster, with a little less detail. If not given, the model's own."
    ),
]
Variant = Annotated[
    str | None,
    tyro.conf.arg(
        help="Which of a model's files to take, such as fp16 for those whose names end in .fp16.safetensors. If not "
        "given, the plain ones or, where there are none, the only variant that there is."
    ),
]
TokenizerPlace = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="FOLDER",
        help="Where the tokenizer is for a --model that is a single file, which has none: a folder, or an id on the "
        "hub. If not given, CLIP's is taken from the hub.",
    ),
]
Predicts = Annotated[
    Literal["epsilon", "v_prediction", "sample"] | None,
    tyro.conf.arg(
        help="What the network of a --model that is a single file predicts. If not given, what the file says of it, or "
        "else what is usual: epsilon for Stable Diffusion 1 and XL, v_prediction for 2."
    ),
]
Prompt = Annotated[str | None, tyro.conf.arg(help="The text that says what to draw, for a text-to-image model.")]
NegativePrompt = Annotated[
    str | None,
    tyro.conf.arg(
        help="A text that says what guidance is to keep away from, for a text-to-image model. If not given, the empty "
        "text."
    ),
]
PictureFiles = Annotated[
    tuple[str, ...],
    tyro.conf.arg(
        help="The picture files. Each is cropped in the middle to the proportions that the model draws, and resized."
    ),
]

# --- sampling --------------------------------------------------------------------------------------------------------

GuidanceScale = Annotated[
    float | None,
    tyro.conf.arg(
        help="How strongly to prefer the text or class over none; 1 is no guidance. If not given, what the model "
        "recommends, which `ddim info` shows; or else 1 for classes, 3 for a text-to-image model with zero terminal "
        "SNR, 5 for Stable Diffusion XL, 7.5 for other text-to-image models."
    ),
]
GuidanceRescale = Annotated[
    float | None,
    tyro.conf.arg(
        help="How much of the contrast that guidance adds to take back, from 0 (none) to 1 (all). If not given, what "
        "the model recommends; or else 0.7 where a text-to-image model with zero terminal SNR is guided, and 0 "
        "elsewhere."
    ),
]
Steps = Annotated[
    int, tyro.conf.arg(help="The number of sampling steps, from 1 to the number of the model's training timesteps.")
]
SuitableSteps = Annotated[
    int | None,
    tyro.conf.arg(
        help="The number of sampling steps, from 1 to the number of the model's training timesteps. If not given, as "
        "many as the model recommends, which `ddim info` shows, or else 50. The recommended number comes with the "
        "order and the spacing that are recommended with it."
    ),
]
Order = Annotated[
    Literal[1, 2],
    tyro.conf.arg(
        help="The order of the steps. Those of second order ask the network as often as those of first order, and "
        "come nearer to what many steps give. They need an eta of 0."
    ),
]
SuitableOrder = Annotated[
    Literal[1, 2] | None,
    tyro.conf.arg(
        help="The order of the steps. Those of second order ask the network as often as those of first order, and "
        "come nearer to what many steps give. They need an eta of 0. If not given, what the model recommends with the "
        "number of steps that it recommends, and else 1."
    ),
]
Eta = Annotated[
    AnyEta,
    tyro.conf.arg(
        help="How much noise each step adds: 0 is DDIM, 1 is DDPM, sigma_hat is DDPM with the larger variance."
    ),
]
Spacing = Annotated[
    ChosenSpacing | None,
    tyro.conf.arg(help="How to choose among the training timesteps. If not given, as the model's scheduler says."),
]
ZeroSNR = Annotated[
    bool | None,
    tyro.conf.arg(
        help="Whether to rescale the noise schedule to zero terminal SNR, so that sampling starts from pure noise. It "
        "needs a v-prediction model. If not given, as the model's scheduler says."
    ),
]

# --- where it runs ---------------------------------------------------------------------------------------------------

DType = Annotated[
    Precision | None,
    tyro.conf.arg(
        help="The type of number to compute in. If not given, float32, or with OpenVINO what suits the processor."
    ),
]
Backend = Annotated[
    Literal["eager", "compile", "openvino", "auto"],
    tyro.conf.arg(
        help="What runs the networks: PyTorch (eager); PyTorch after it has compiled them for a minute (compile); "
        "OpenVINO, on CPUs, which converts a model once and keeps the result (openvino); or what suits the device "
        "(auto)."
    ),
]
Device = Annotated[
    str | None,
    tyro.conf.arg(
        help="The device to run on, for example cuda, cuda:1, mps or cpu. If not given, the best one that there is."
    ),
]

# --- what is written -------------------------------------------------------------------------------------------------

PictureOut = Annotated[
    str,
    tyro.conf.arg(
        help="Where the pictures go: a file, which gets one picture or a grid of all; or a folder, which exists or "
        "ends in /, for one file each."
    ),
]
Side = Annotated[
    int | None,
    tyro.conf.arg(
        help="The height or width of the pictures in pixels, for a text-to-image model. If not given, what the model "
        "was trained on; or with --image, what its proportions give."
    ),
]
Scale = Annotated[
    int | None,
    tyro.conf.arg(
        help="How many times to enlarge each picture; 1 keeps it as the model draws it. If not given, a small picture "
        "becomes about 256 pixels wide, and in a grid at least 64; those in a folder, which are taken for data, stay "
        "as they are."
    ),
]
Labels = Annotated[bool, tyro.conf.arg(help="Write under each picture what it shows.")]
Overwrite = Annotated[
    bool,
    tyro.conf.arg(
        help="Replace what is at --out already. If not given, it is kept, and what is new gets a number, such as "
        "x-1.png beside x.png."
    ),
]
PlotOut = Annotated[str, tyro.conf.arg(help="The file to write. Its name ends in .png, .svg or .pdf.")]

# --- servers ---------------------------------------------------------------------------------------------------------

MaxBatch = Annotated[
    int | None,
    tyro.conf.arg(help="How many pictures a model draws at the same time. If not given, what suits the device."),
]
MaxModels = Annotated[
    int | None,
    tyro.conf.arg(
        help="How many models may be in memory at a time; the one that was not asked for the longest leaves. If not "
        "given, all.",
    ),
]
MaxSide = Annotated[
    int | None,
    tyro.conf.arg(help="The most pixels of a side of a picture. If not given, twice what the model was trained on."),
]
Deadline = Annotated[float, tyro.conf.arg(help="After how many seconds a request that is not done is given up.")]
Grace = Annotated[float, tyro.conf.arg(help="For how many seconds what runs may go on after SIGTERM or Ctrl+C.")]
LogFormat = Annotated[Literal["text", "json"], tyro.conf.arg(help="How each line of the log, on stderr, is written.")]
