"""`ddim sample`: draw, and make again what was drawn."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ddim.cli.bundled import with_model
from ddim.cli.checks import check_order
from ddim.cli.controlling import check_together as check_controls
from ddim.cli.controlling import files_shown
from ddim.cli.drawing import FROM_FILES, Drawing, draw_into_file, draw_into_folder
from ddim.cli.opening import check_kind, check_model, open_pipeline, suitable_guidance, suitable_steps
from ddim.cli.options import (
    Autoencoder,
    Backend,
    ControlEnd,
    ControlImages,
    ControlNets,
    ControlStart,
    Device,
    DType,
    Eta,
    GuessMode,
    GuidanceRescale,
    GuidanceScale,
    Labels,
    Loras,
    ModelOrBundled,
    NegativePrompt,
    Overwrite,
    PictureOut,
    Predicts,
    Prompt,
    PromptWeights,
    Scale,
    Side,
    Spacing,
    SuitableOrder,
    SuitableSteps,
    TextualInversions,
    TokenizerPlace,
    Variant,
    ZeroSNR,
)
from ddim.cli.pictures import check_images, check_look
from ddim.cli.places import announce, is_folder
from ddim.cli.recipe import check_drawn, read_picture_recipe
from ddim.cli.xl import (
    AestheticScore,
    Crop,
    DenoisingEnd,
    DenoisingStart,
    NegativeAestheticScore,
    NegativeCrop,
    NegativeOriginalSize,
    NegativeTargetSize,
    OriginalSize,
    Refiner,
    SecondNegativePrompt,
    SecondPrompt,
    TargetSize,
    check_parts,
    check_xl,
    open_refiner,
)
from ddim.cli.xl import given as given_of_xl
from ddim.errors import ConfigError

if TYPE_CHECKING:
    from ddim.cli.known import Kind


@dataclass(frozen=True)
class SampleSettings:
    """Draw pictures with a model: of a text, of a class, or of nothing in particular.

    All of them are written as a grid in one file or, if --out is a folder, as one file each. Into a folder they are
    written as they are drawn, and the same command goes on where it was stopped. A PNG says how it was made, and --from
    makes it again.

        ddim sample "a red heart on a black background" --out heart.png
        ddim sample "a grinning face" --batch 4 --seed 1 --out faces/
        ddim sample --class-labels 7 --batch 1 --out seven.png
        ddim sample "a blue heart on black" --image heart.png --out blue.png
        ddim sample "a cat face" --controlnet runs/edges --control-from heart.png --condition edges --out cat.png
        ddim sample --from heart.png --out again.png
    """

    prompt: tyro.conf.Positional[Prompt] = None
    model: ModelOrBundled = None
    lora: Loras = ()
    textual_inversion: TextualInversions = ()
    weights: PromptWeights = None
    vae: Autoencoder = None
    variant: Variant = None
    tokenizer: TokenizerPlace = None
    prediction_type: Predicts = None
    negative_prompt: NegativePrompt = None
    prompt_2: SecondPrompt = None
    negative_prompt_2: SecondNegativePrompt = None
    original_size: OriginalSize = None
    crop: Crop = None
    target_size: TargetSize = None
    negative_original_size: NegativeOriginalSize = None
    negative_crop: NegativeCrop = None
    negative_target_size: NegativeTargetSize = None
    aesthetic_score: AestheticScore = None
    negative_aesthetic_score: NegativeAestheticScore = None
    denoising_start: DenoisingStart = None
    denoising_end: DenoisingEnd = None
    refiner: Refiner = None
    refiner_start: float = 0.8
    """The share of the way at which --refiner takes over, between 0 and 1."""
    class_labels: tuple[int, ...] = ()
    """The classes to draw, in turn, with a class-conditional model. If not given, all of its classes."""
    guidance_scale: GuidanceScale = None
    guidance_rescale: GuidanceRescale = None
    guidance_interval: Annotated[
        tuple[int, int] | None,
        tyro.conf.arg(
            help="Guide at the timesteps from the first number to the second alone, both included; the other "
            "timesteps take half the work. If not given, all timesteps are guided.",
        ),
    ] = None
    steps: SuitableSteps = None
    eta: Eta = 0.0
    order: SuitableOrder = None
    spacing: Spacing = None
    zero_snr: ZeroSNR = None
    seed: int = 0
    """The seed of the noise. Picture k of a seed is the same whatever the batch size."""
    batch: Annotated[
        int | None,
        tyro.conf.arg(
            help="How many pictures to draw. If not given, one for each of --class-labels, or else for each class of "
            "the model; 1 for a text; 16 for a model that knows neither.",
        ),
    ] = None
    height: Side = None
    width: Side = None
    image: Annotated[
        str | None,
        tyro.conf.arg(
            help="The file of a picture to start from instead of noise, for a text-to-image model. It is resized to "
            "about as many pixels as the model draws, in its own proportions, or as --height and --width say.",
        ),
    ] = None
    strength: float = 0.8
    """How much of --image is lost, from 0 (nothing) to 1 (all)."""
    controlnet: ControlNets = ()
    control_image: ControlImages = ()
    control_from: Annotated[
        str | None,
        tyro.conf.arg(
            help="The file of a picture to make a condition of, by --condition, instead of the last --control-image."
        ),
    ] = None
    condition: Annotated[
        Literal["edges", "layout"] | None,
        tyro.conf.arg(
            help="What is made of --control-from: its edges, or its colours in coarse cells (layout), as `ddim train "
            "controlnet` makes them. Needed if --control-from is given; of no use if not given."
        ),
    ] = None
    condition_cells: int = 8
    """How many cells the shorter side has, for --condition layout."""
    guess_mode: GuessMode = False
    control_guidance_start: ControlStart = ()
    control_guidance_end: ControlEnd = ()
    mask_image: Annotated[
        str | None,
        tyro.conf.arg(
            help="A picture in the proportions of --image that is white where that is to be painted anew, and black "
            "elsewhere. If not given, all is.",
        ),
    ] = None
    dtype: DType = None
    backend: Backend = "eager"
    device: Device = None
    from_image: Annotated[
        str | None,
        tyro.conf.arg(
            name="from",
            help="A PNG that this command wrote, to make it again by its own settings; or the noise that `ddim invert` "
            "saved, to draw the picture that it came from. Options that are given beside it go before what it says. As "
            "it may be from anyone, files that it names are to be given again, and it decides neither --backend nor "
            "--device; see also --trust.",
        ),
    ] = None
    trust: bool = False
    """Load whatever model --from names, and not only one that comes with ddim: you know who made it."""
    scale: Scale = None
    labels: Labels = False
    out: PictureOut = "samples.png"
    overwrite: Overwrite = False

    def check_together(self, given: Collection[str]) -> None:
        check_look(self.labels, self.out, self.batch)
        if self.from_image is not None:
            return  # the picture has the others
        if self.image is None and "strength" in given:
            raise ConfigError("--strength says how much of --image is lost: give one, or leave it out")
        if self.image is None and self.mask_image is not None:
            raise ConfigError("--mask-image says where --image is to be painted anew: give one, or leave it out")
        if self.refiner is None and "refiner_start" in given:
            raise ConfigError("--refiner-start says where --refiner takes over: give one, or leave it out")
        check_parts(self, given)
        check_controls(self)
        check_order(self.order, self.eta)
        if self.guidance_interval is not None and self.guidance_interval[0] > self.guidance_interval[1]:
            first, second = self.guidance_interval
            raise ConfigError(f"--guidance-interval {first} {second} is the wrong way round: give {second} {first}")


def run_sample(settings: SampleSettings) -> None:
    if not is_folder(settings.out):
        announce(settings.out, settings.overwrite)
    if settings.from_image is not None and settings.from_image.endswith(".safetensors"):
        from ddim.cli.invert import sample_again

        sample_again(settings.from_image, settings)
        return
    recipe = None
    if settings.from_image is not None:
        recipe = read_picture_recipe(settings)
        settings = recipe.settings
    settings = with_model(settings, for_texts=settings.prompt is not None)
    started = time.perf_counter()

    def suits(kind: Kind) -> None:
        _check_kind(kind, settings)

    check_model(settings, suits)
    given = [path for name in FROM_FILES if (path := getattr(settings, name)) is not None]
    given += files_shown(settings)
    if given:
        check_images(given)
    pipe = open_pipeline(settings, suits)
    from ddim.scheduler.recommended import guidance_in_words

    scale, rescale = suitable_guidance(pipe, settings.guidance_scale, settings.guidance_rescale)
    steps = suitable_steps(pipe, settings.steps, settings.order, eta=settings.eta)
    settings = dataclasses.replace(
        settings,
        guidance_scale=scale,
        guidance_rescale=rescale,
        steps=steps.number,
        order=steps.order,
        spacing=steps.spacing,
    )
    if recipe is not None:
        check_drawn(pipe, recipe, settings)
    refiner = open_refiner(settings, pipe)
    drawing = Drawing(pipe, settings, None if recipe is None else recipe.only, refiner)
    drawn = draw_into_folder(drawing) if is_folder(settings.out) else draw_into_file(drawing)
    what = "" if settings.prompt is None else f"of {settings.prompt!r} "
    print(
        f"{drawn} image{'s' * (drawn != 1)} {what}by {settings.model}: {steps}, "
        f"{guidance_in_words(scale, rescale)}, seed {settings.seed}, "
        + f"{pipe.backend}, " * (settings.backend != "eager")
        + f"{time.perf_counter() - started:.1f} s",
        file=sys.stderr,
    )


def _check_kind(kind: Kind, settings: SampleSettings) -> None:
    xl_options = given_of_xl(settings)
    check_kind(
        kind,
        str(settings.model),
        for_texts={
            "the prompt": settings.prompt,
            "--negative-prompt": settings.negative_prompt,
            "--height": settings.height,
            "--width": settings.width,
            "--image": settings.image,
            "--mask-image": settings.mask_image,
            **xl_options,
            "--controlnet": settings.controlnet or None,
        },
        for_classes={"--class-labels": settings.class_labels},
        example=f'ddim sample "a red heart" --model {settings.model}',
    )
    check_xl(kind.is_xl, str(settings.model), xl_options)
