"""Stable Diffusion XL's pipelines against diffusers' on the same weights and noise, and what only ours have."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny_xl import POOLED, SCHEDULE, tiny_xl
from torch import Tensor

import ddim
from ddim.errors import CheckpointError, ConfigError, NonFiniteError, WeightsError
from ddim.models import CLIPTextModelWithProjection, UNet2DConditionModel
from ddim.pipelines import (
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from ddim.pipelines.xl_sizes import Sizes
from ddim.scheduler import DDIMScheduler

PROMPT, OTHER = "a photo of a red cat on stars", "smoke in the castle"
BASE: dict[str, Any] = {**SCHEDULE, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
CLOSE = 1e-4


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def silent(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(width: int = 24, height: int = 16, seed: int = 0) -> Image.Image:
    rows = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(rows).resize((width, height), Image.Resampling.BICUBIC)


def mask(width: int = 16, height: int = 16) -> Image.Image:
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).ellipse((width // 4, height // 8, width * 3 // 4, height * 3 // 4), fill=255)
    return image


class Pair:
    """One checkpoint in pipelines of diffusers and of ours."""

    def __init__(self, folder: Path, kind: Any) -> None:
        self.folder = folder
        own = tiny_xl(folder, kind)
        parts, flags = own.components, {"requires_aesthetics_score": kind == "refiner", "add_watermarker": False}
        self.theirs: dict[str, Any] = {
            "picture": silent(diffusers.StableDiffusionXLImg2ImgPipeline(**parts, **flags)),
            "inpaint": silent(diffusers.StableDiffusionXLInpaintPipeline(**parts, **flags)),
        }
        if kind != "refiner":
            self.theirs["text"] = silent(diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False))
        loaded = silent(ddim.DiffusionPipeline.from_pretrained(folder))
        self.ours: dict[str, Any] = {
            "text": silent(StableDiffusionXLPipeline.from_pipe(loaded)),
            "picture": silent(StableDiffusionXLImg2ImgPipeline.from_pipe(loaded)),
            "inpaint": silent(StableDiffusionXLInpaintPipeline.from_pipe(loaded)),
        }

    def images(self, use: str, scheduler: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any]:
        """What both make of the same arguments and noise: theirs, ours."""
        settings = {**BASE, **(scheduler or {})}
        legacy = settings.pop("legacy_previous_timestep", False)
        results = []
        for pipe in (self.theirs[use], self.ours[use]):
            own = pipe is self.ours[use]
            pipe.scheduler = (
                DDIMScheduler(**settings, legacy_previous_timestep=legacy)
                if own
                else diffusers.DDIMScheduler(**settings)
            )
            noise: Any = generator()
            prompts = len(options["prompt"]) if isinstance(options.get("prompt"), list) else 1
            if options.get("num_images_per_prompt", 1) > 1:
                noise = [generator(k) for k in range(prompts * options["num_images_per_prompt"])]
            given = {"prompt": PROMPT, "num_inference_steps": 3, "output_type": "np", "generator": noise, **options}
            torch.manual_seed(5)
            results.append(pipe(**given).images)
        return results[0], results[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("base"), "base")


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("refiner"), "refiner")


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """With a U-Net that was trained to inpaint."""
    return Pair(tmp_path_factory.mktemp("nine"), "inpaint")


@pytest.fixture
def ours(base: Pair) -> StableDiffusionXLPipeline:
    pipe: StableDiffusionXLPipeline = base.ours["text"]
    pipe.scheduler = DDIMScheduler(**BASE)
    return pipe


def agree(theirs: Any, ours: Any, tolerance: float = CLOSE) -> None:
    theirs, ours = np.asarray(theirs), np.asarray(ours)
    assert theirs.shape == ours.shape
    assert theirs.dtype == ours.dtype == np.float32
    assert np.isfinite(theirs).all()
    assert theirs.std() > 0.02  # a picture, not a plane
    assert np.abs(theirs - ours).max() < tolerance * max(1.0, float(theirs.std()))


def pixels(pipe: Any, **options: Any) -> Tensor:
    given = {"prompt": PROMPT, "num_inference_steps": 3, "output_type": "pt", "seed": 0, **options}
    images = pipe(**given).images
    assert isinstance(images, Tensor)
    return images


# --- texts, against diffusers ----------------------------------------------------------------------------------------

SPACINGS = ("leading", "trailing", "linspace")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("scale", "rescale"), [(1.0, 0.0), (5.0, 0.0), (5.0, 0.7)])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    "spacing", [pytest.param(each, marks=[pytest.mark.slow] * (each != "trailing")) for each in SPACINGS]
)
@pytest.mark.thin(together=2)
def test_images_are_those_of_diffusers(
    spacing: str, kind: str, scale: float, rescale: float, eta: float, base: Pair
) -> None:
    scheduler = {"timestep_spacing": spacing, "prediction_type": kind, "legacy_previous_timestep": True}
    agree(*base.images("text", scheduler, guidance_scale=scale, guidance_rescale=rescale, eta=eta))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(("scale", "rescale"), [(1.0, 0.0), (5.0, 0.7)])
def test_zero_terminal_snr_is_that_of_diffusers(spacing: str, scale: float, rescale: float, base: Pair) -> None:
    scheduler = {"timestep_spacing": spacing, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    agree(*base.images("text", scheduler, num_inference_steps=4, guidance_scale=scale, guidance_rescale=rescale))


EMBEDS = torch.randn(2, 77, 56, generator=generator())
VECTORS = torch.randn(2, POOLED, generator=generator())
OPTIONS: dict[str, dict[str, Any]] = {
    "a second prompt": {"prompt_2": OTHER},
    "an empty second prompt": {"prompt_2": ""},
    "a negative prompt": {"negative_prompt": "blurry bad smoke"},
    "an empty negative prompt": {"negative_prompt": ""},
    "both negative prompts": {"negative_prompt": "bad", "negative_prompt_2": "blurry"},
    "all four": {"prompt_2": OTHER, "negative_prompt": "bad", "negative_prompt_2": "blurry"},
    "two prompts": {"prompt": [PROMPT, OTHER], "negative_prompt": ["bad", "blurry"]},
    "two second prompts": {"prompt": [PROMPT, OTHER], "prompt_2": [OTHER, "a dog"]},
    "another size": {"height": 24, "width": 40},
    "latents": {"latents": torch.randn(1, 4, 12, 8, generator=generator()), "height": 24},
    "several images of a prompt": {"num_images_per_prompt": 2, "eta": 1.0},
    "several images of two prompts": {"prompt": [PROMPT, "a dog"], "num_images_per_prompt": 3, "eta": 0.5},
    "a clip skip": {"clip_skip": 1, "negative_prompt": "bad"},
    "no clip skip": {"clip_skip": 0},
    "a scale below one": {"guidance_scale": 0.0},
    "global randomness": {"generator": None, "eta": 1.0},
    "an original size": {"original_size": (512, 768)},
    "a crop": {"crops_coords_top_left": (0, 256)},
    "a target size": {"target_size": (1024, 333)},
    "negative sizes": {
        "negative_original_size": (256, 256),
        "negative_crops_coords_top_left": (3, 4),
        "negative_target_size": (1024, 1024),
    },
    "a crop and negative sizes": {
        "crops_coords_top_left": (8, 0),
        "negative_original_size": (256, 256),
        "negative_target_size": (1024, 1024),
    },
    "embeddings": {"prompt": None, "prompt_embeds": EMBEDS, "pooled_prompt_embeds": VECTORS},
    "fewer tokens": {
        "prompt": None,
        "prompt_embeds": EMBEDS[:, :50],
        "pooled_prompt_embeds": VECTORS,
        "negative_prompt": ["bad", "blurry"],
    },
    "all embeddings": {
        "prompt": None,
        "prompt_embeds": EMBEDS,
        "pooled_prompt_embeds": VECTORS,
        "negative_prompt_embeds": -EMBEDS,
        "negative_pooled_prompt_embeds": -VECTORS,
    },
    "a text with another's vector": {"pooled_prompt_embeds": VECTORS[:1]},
    "a stop on the way": {"denoising_end": 0.6, "num_inference_steps": 10, "output_type": "latent"},
    "timesteps": {"timesteps": None, "num_inference_steps": 1},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.thin(every=2)
def test_every_option_does_what_it_does_in_diffusers(name: str, base: Pair) -> None:
    agree(*base.images("text", **OPTIONS[name]))


def test_zeros_may_stand_for_no_negative_prompt(base: Pair) -> None:
    plain = pixels(base.ours["text"])
    try:
        for pipe in (base.theirs["text"], base.ours["text"]):
            pipe.force_zeros_for_empty_prompt = False
        base.theirs["text"].register_to_config(force_zeros_for_empty_prompt=False)
        agree(*base.images("text"))
        agree(*base.images("text", negative_prompt=""))
        assert (pixels(base.ours["text"]) - plain).abs().max() > 30 * CLOSE
        torch.testing.assert_close(pixels(base.ours["text"]), pixels(base.ours["text"], negative_prompt=""))
    finally:
        base.ours["text"].force_zeros_for_empty_prompt = True
        base.theirs["text"].register_to_config(force_zeros_for_empty_prompt=True)


def test_every_setting_matters(ours: StableDiffusionXLPipeline) -> None:
    """So that what is compared above could differ."""
    plain = pixels(ours)
    changes: list[dict[str, Any]] = [
        {"prompt": "a dog"},
        {"prompt_2": "a dog"},
        {"guidance_scale": 1.0},
        {"guidance_rescale": 0.7},
        {"negative_prompt": "bad"},
        {"negative_prompt_2": "bad"},
        {"eta": 1.0},
        {"clip_skip": 1},
        {"seed": 1},
        {"original_size": (512, 512)},
        {"crops_coords_top_left": (0, 99)},
        {"target_size": (99, 512)},
        {"negative_original_size": (512, 512)},
        {"negative_crops_coords_top_left": (0, 99)},
        {"negative_target_size": (512, 512)},
        {"denoising_end": 0.7},
        {"guidance_interval": (0, 400)},
    ]
    for change in changes:
        assert (pixels(ours, **change) - plain).abs().max() > 10 * CLOSE, change


def test_sizes_do_not_depend_on_the_batch(ours: StableDiffusionXLPipeline) -> None:
    """diffusers mixes up the negative sizes of a batch; here each picture is that of a call of its own."""
    told = {"negative_original_size": (256, 256), "negative_target_size": (99, 512), "crops_coords_top_left": (5, 0)}
    both = pixels(ours, prompt=[PROMPT, OTHER], seed=[1, 2], **told)
    for k, prompt in enumerate((PROMPT, OTHER)):
        torch.testing.assert_close(both[k : k + 1], pixels(ours, prompt=prompt, seed=[k + 1], **told))


def test_prompts_are_encoded_as_in_diffusers(base: Pair) -> None:
    for options in (
        {},
        {"negative_prompt": "bad", "prompt_2": OTHER, "negative_prompt_2": "blurry", "num_images_per_prompt": 2},
        {"clip_skip": 1, "do_classifier_free_guidance": False},
    ):
        theirs, mine = (pipe.encode_prompt(PROMPT, **options) for pipe in (base.theirs["text"], base.ours["text"]))
        assert len(theirs) == len(mine) == 4
        for a, b in zip(theirs, mine, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(b, a, rtol=0, atol=1e-5)


def test_every_output_type_is_that_of_diffusers(base: Pair) -> None:
    for kind in ("pt", "latent"):
        theirs, mine = base.images("text", output_type=kind)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=CLOSE)
    theirs, mine = base.images("text", output_type="pil")
    assert np.abs(np.asarray(theirs[0], dtype=int) - np.asarray(mine[0], dtype=int)).max() <= 1
    plain = base.ours["text"](PROMPT, num_inference_steps=1, return_dict=False)
    assert type(plain) is tuple
    assert len(plain) == 1


@pytest.mark.parametrize(
    ("mine", "reference"),
    [
        (StableDiffusionXLPipeline, diffusers.StableDiffusionXLPipeline),
        (StableDiffusionXLImg2ImgPipeline, diffusers.StableDiffusionXLImg2ImgPipeline),
        (StableDiffusionXLInpaintPipeline, diffusers.StableDiffusionXLInpaintPipeline),
    ],
)
def test_arguments_are_those_of_diffusers(mine: Any, reference: Any) -> None:
    theirs = dict(inspect.signature(reference.__call__).parameters)
    theirs.pop("kwargs")
    own = [p for p in inspect.signature(mine.__call__).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [parameter.name for parameter in own] == list(theirs)
    left_open = ("num_inference_steps", "guidance_scale", "guidance_rescale")  # for what the model recommends
    for parameter in own:
        if parameter.name in left_open:
            assert parameter.default is None
        elif parameter.name != "callback_on_step_end_tensor_inputs":
            assert parameter.default == theirs[parameter.name].default, parameter
    for method in ("__init__", "encode_prompt"):
        ours = [p for p in inspect.signature(getattr(mine, method)).parameters.values() if p.kind is not p.KEYWORD_ONLY]
        expected = inspect.signature(getattr(reference, method)).parameters.values()
        assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in expected]
    assert mine.usual_guidance == theirs["guidance_scale"].default
    assert mine._callback_tensor_inputs == reference._callback_tensor_inputs


# --- pictures, the refiner, masks ------------------------------------------------------------------------------------

OF_PICTURES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "weak": {"strength": 0.2},
    "eta": {"eta": 1.0, "negative_prompt": "bad"},
    "v": {"scheduler": {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}},
    "several": {"num_images_per_prompt": 2},
    "two": {"prompt": [PROMPT, OTHER], "image": [picture(), picture(seed=1)]},
    "scores": {"aesthetic_score": 3.0, "negative_aesthetic_score": 1.0},
    "sizes": {"original_size": (512, 768), "crops_coords_top_left": (3, 5), "target_size": (99, 77)},
    "negative sizes": {"negative_original_size": (256, 256), "negative_target_size": (1, 2)},
    "latents": {"latents": torch.randn(1, 4, 8, 12, generator=generator())},
    "a picture of latents": {"image": torch.randn(1, 4, 8, 12, generator=generator())},
    "an end": {"denoising_end": 0.5, "output_type": "latent"},
    "a start": {"denoising_start": 0.4, "image": torch.randn(1, 4, 8, 12, generator=generator())},
    "a start of a picture": {"denoising_start": 0.4},
    "a part": {"denoising_start": 0.4, "denoising_end": 0.8, "output_type": "latent"},
}


@pytest.mark.filterwarnings("ignore:You have passed .* text prompts:FutureWarning")
@pytest.mark.parametrize("name", OF_PICTURES)
@pytest.mark.parametrize("which", ["base", "refiner"])
@pytest.mark.thin(every=3)
def test_pictures_are_those_of_diffusers(which: str, name: str, base: Pair, refiner: Pair) -> None:
    pair = {"base": base, "refiner": refiner}[which]
    options = {"image": picture(), "strength": 0.8, "num_inference_steps": 5, **OF_PICTURES[name]}
    agree(*pair.images("picture", options.pop("scheduler", None), **options))


OF_MASKS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "weak": {"strength": 0.5},
    "from noise": {"strength": 1.0},
    "eta": {"eta": 1.0, "negative_prompt": "bad", "guidance_scale": 3.0},
    "another size": {"height": 24, "width": 32},
    "sizes": {"original_size": (512, 768), "crops_coords_top_left": (3, 5)},
    "latents": {"latents": torch.randn(1, 4, 8, 8, generator=generator())},
    "a start": {"denoising_start": 0.4},
    "an end": {"denoising_end": 0.6, "output_type": "latent"},
}


@pytest.mark.parametrize("name", OF_MASKS)
@pytest.mark.parametrize("which", ["base", "nine", "refiner"])
@pytest.mark.thin(every=3)
def test_masked_pictures_are_those_of_diffusers(which: str, name: str, base: Pair, nine: Pair, refiner: Pair) -> None:
    if which == "refiner" and name not in ("as it is", "a start"):
        pytest.skip("as with the base model")
    pair = {"base": base, "nine": nine, "refiner": refiner}[which]
    options = {"image": picture(16), "mask_image": mask(), "num_inference_steps": 5, **OF_MASKS[name]}
    agree(*pair.images("inpaint", **options))


def test_a_crop_around_the_mask_is_painted_as_in_diffusers(nine: Pair) -> None:
    large, hole = picture(64, 48), Image.new("L", (64, 48))
    ImageDraw.Draw(hole).rectangle((30, 20, 39, 27), fill=255)
    options = {"image": large, "mask_image": hole, "padding_mask_crop": 4, "output_type": "pil", "strength": 1.0}
    theirs, mine = nine.images("inpaint", **options)
    assert mine[0].size == (64, 48)
    assert np.abs(np.asarray(theirs[0], dtype=int) - np.asarray(mine[0], dtype=int)).max() <= 1


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.thin(together=1)
def test_the_refiner_goes_on_where_the_base_model_stops(spacing: str, kind: str, base: Pair, refiner: Pair) -> None:
    scheduler = {"timestep_spacing": spacing, "prediction_type": kind, "legacy_previous_timestep": True}
    for share, steps in ((0.8, 10), (0.5, 7), (0.35, 13)):
        how = {"num_inference_steps": steps, "negative_prompt": "bad"}
        left = base.images("text", scheduler, denoising_end=share, output_type="latent", **how)
        agree(*left)
        made = base.ours["text"].num_timesteps
        agree(*refiner.images("picture", scheduler, denoising_start=share, image=left[0], **how))
        assert made + refiner.ours["picture"].num_timesteps == steps
        assert (base.ours["text"].denoising_end, refiner.ours["picture"].denoising_start) == (share, share)


def test_two_parts_of_the_way_are_the_whole(ours: StableDiffusionXLPipeline) -> None:
    """Also where the number of steps does not divide the timesteps, as the next one in the list is stepped to."""
    for steps, spacing in ((7, "leading"), (13, "trailing")):
        ours.scheduler = DDIMScheduler(**BASE, timestep_spacing=spacing)
        whole = pixels(ours, num_inference_steps=steps)
        half = pixels(ours, num_inference_steps=steps, denoising_end=0.6, output_type="latent")
        for given in ({"latents": half}, {"image": half}):
            rest = pixels(ours, num_inference_steps=steps, denoising_start=0.6, **given)
            torch.testing.assert_close(rest, whole, rtol=0, atol=1e-5)
        finer = pixels(
            ours, num_inference_steps=steps, denoising_start=0.6, denoising_end=0.9, latents=half, output_type="latent"
        )
        torch.testing.assert_close(
            pixels(ours, num_inference_steps=steps, denoising_start=0.9, latents=finer), whole, rtol=0, atol=1e-5
        )


# --- loading and saving ----------------------------------------------------------------------------------------------


def test_folders_load_as_the_class_that_they_name(base: Pair, refiner: Pair, nine: Pair) -> None:
    for pair, kind in (
        (base, StableDiffusionXLPipeline),
        (refiner, StableDiffusionXLImg2ImgPipeline),
        (nine, StableDiffusionXLInpaintPipeline),
    ):
        pipe = ddim.DiffusionPipeline.from_pretrained(pair.folder)
        assert type(pipe) is kind
    assert refiner.ours["picture"].text_encoder is refiner.ours["picture"].tokenizer is None
    assert refiner.ours["picture"].requires_aesthetics_score
    assert refiner.ours["picture"].config.requires_aesthetics_score is True
    with pytest.raises(CheckpointError, match="is a StableDiffusionXLPipeline, not a StableDiffusionPipeline"):
        StableDiffusionPipeline.from_pretrained(base.folder)
    back = StableDiffusionXLPipeline.from_pipe(refiner.ours["picture"])
    assert back.unet is refiner.ours["picture"].unet
    assert back.requires_aesthetics_score
    with pytest.raises(TypeError, match="make no StableDiffusionPipeline"):
        StableDiffusionPipeline.from_pipe(base.ours["text"])


@pytest.mark.parametrize("which", ["base", "refiner", "inpaint"])
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.thin(every=3)
def test_weights_go_both_ways_unchanged(
    which: str, variant: str | None, base: Pair, refiner: Pair, nine: Pair, tmp_path: Path
) -> None:
    pair = {"base": base, "refiner": refiner, "inpaint": nine}[which]
    ours = ddim.DiffusionPipeline.from_pretrained(pair.folder)
    if variant:
        ours.to(torch.float16)
    ours.save_pretrained(tmp_path, variant=variant)
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path, variant=variant, add_watermarker=False)
    written, original = (json.loads((folder / "model_index.json").read_text()) for folder in (tmp_path, pair.folder))
    known = {name: value for name, value in original.items() if not name.startswith("_diff")}
    assert {name: written.get(name) for name in known} == known
    assert theirs.config["force_zeros_for_empty_prompt"] is True
    again = ddim.DiffusionPipeline.from_pretrained(tmp_path, variant=variant)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        own = getattr(ours, name)
        if own is None:
            assert getattr(theirs, name) is getattr(again, name) is None
            continue
        state = {key.removeprefix("text_model."): value.float() for key, value in own.state_dict().items()}
        for other in (theirs, again):
            loaded = {k.removeprefix("text_model."): v for k, v in getattr(other, name).state_dict().items()}
            assert loaded.keys() == state.keys()
            assert all(torch.equal(loaded[key].float(), state[key]) for key in state), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"force_zeros_for_empty_prompt": "yes"}, "force_zeros_for_empty_prompt must be true or false, not 'yes'"),
        (
            {"text_encoder_2": ["transformers", "CLIPTextModel"]},
            "names the text_encoder_2 'CLIPTextModel'; known are CLIP",
        ),
        ({"text_encoder_2": ["mine", "Encoder"]}, "takes its text_encoder_2 from 'mine': code of other places"),
        ({"text_encoder_2": 5}, "does not say what its text_encoder_2 is, but 5"),
        (
            {"unet": ["diffusers", "UNet3DConditionModel"]},
            "names the unet 'UNet3DConditionModel'; known are UNet2DCond",
        ),
        ({"transformer": ["diffusers", "Transformer2DModel"]}, "also 'transformer'"),
    ],
)
def test_an_index_that_cannot_be_followed(change: dict[str, Any], message: str, base: Pair, tmp_path: Path) -> None:
    index = json.loads((base.folder / "model_index.json").read_text())
    shutil.copytree(base.folder, tmp_path, dirs_exist_ok=True)
    name = "StableDiffusionXLPipelineOfMine" if "transformer" in change else index["_class_name"]
    (tmp_path / "model_index.json").write_text(json.dumps({**index, **change, "_class_name": name}))
    with pytest.raises(CheckpointError, match=message):
        StableDiffusionXLPipeline.from_pretrained(tmp_path)


def test_arguments_of_the_constructor_are_passed_on(base: Pair) -> None:
    without = dict.fromkeys(("vae", "unet", "text_encoder", "text_encoder_2"))
    assert ddim.DiffusionPipeline.from_pretrained(base.folder, add_watermarker=False, **without).vae is None
    with pytest.warns(UserWarning, match="pictures are not watermarked"):
        ddim.StableDiffusionXLInpaintPipeline.from_pretrained(base.folder, add_watermarker=True, **without)
    with pytest.raises(TypeError, match="has no argument watermark;"):
        ddim.DiffusionPipeline.from_pretrained(base.folder, watermark=False, **without)


def test_an_index_may_be_silent_and_have_null(base: Pair, tmp_path: Path) -> None:
    index = json.loads((base.folder / "model_index.json").read_text())
    shutil.copytree(base.folder, tmp_path, dirs_exist_ok=True)
    for name in ("force_zeros_for_empty_prompt", "image_encoder", "feature_extractor"):
        index.pop(name, None)
    (tmp_path / "model_index.json").write_text(
        json.dumps({**index, "add_watermarker": None, "text_encoder": None, "tokenizer": [None, None]})
    )
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    assert pipe.force_zeros_for_empty_prompt
    assert pipe.text_encoder is pipe.tokenizer is None


def test_a_unet_of_another_family_is_refused(base: Pair, tmp_path: Path) -> None:
    plain = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=56,
    )
    pipe = silent(StableDiffusionXLPipeline(**{**base.ours["text"].components, "unet": plain}))
    with pytest.raises(ConfigError, match="none of Stable Diffusion XL"):
        pipe(PROMPT, num_inference_steps=1)
    other = CLIPTextModelWithProjection.from_config(base.ours["text"].text_encoder_2.config, projection_dim=12)
    pipe = silent(StableDiffusionXLPipeline(**{**base.ours["text"].components, "text_encoder_2": other}))
    with pytest.raises(ConfigError, match="no text's vector of 12 channels and 5 or 6 numbers of 8 features"):
        pipe(PROMPT, num_inference_steps=1)


def test_the_scheduler_is_taken_as_it_is(base: Pair) -> None:
    given = DDIMScheduler(**SCHEDULE)
    pipe = StableDiffusionXLPipeline(**{**base.ours["text"].components, "scheduler": given})
    assert pipe.scheduler is given
    euler = diffusers.EulerDiscreteScheduler(**SCHEDULE, prediction_type="v_prediction", timestep_spacing="trailing")
    made = StableDiffusionXLPipeline(**{**base.ours["text"].components, "scheduler": euler}).scheduler
    assert (made.config.prediction_type, made.config.timestep_spacing) == ("v_prediction", "trailing")


def test_there_is_no_watermark(base: Pair) -> None:
    with pytest.warns(UserWarning, match="pictures are not watermarked"):
        pipe = StableDiffusionXLPipeline(**base.ours["text"].components, add_watermarker=True)
    assert pipe.watermark is None
    pipe.watermark = None


# --- half precision, memory, threads ---------------------------------------------------------------------------------


def test_an_autoencoder_that_overflows_in_half_precision_works_in_float32(base: Pair, refiner: Pair) -> None:
    pipe = silent(StableDiffusionXLPipeline.from_pretrained(base.folder, dtype=torch.float16))
    latents = pixels(pipe, output_type="latent")
    wide = silent(StableDiffusionXLPipeline.from_pretrained(base.folder, dtype=torch.float16))
    wide.vae.to(torch.float32)
    image = pipe.decode(latents, "pt")
    assert image.dtype == torch.float32
    assert torch.equal(image, wide.decode(latents, "pt"))
    assert pipe.vae.dtype == torch.float16  # as it was
    with torch.no_grad():
        pipe.vae.decoder.conv_in.weight.mul_(3000)
        assert torch.isfinite(pipe.decode(latents, "pt")).all()
    pipe.vae = silent(StableDiffusionXLPipeline.from_pretrained(base.folder, dtype=torch.float16)).vae
    pipe.vae.register_to_config(force_upcast=False)
    assert pipe.decode(latents, "pt").dtype == torch.float16
    with torch.no_grad():
        pipe.vae.decoder.conv_in.weight.mul_(30000).mul_(30000)
    with pytest.raises(NonFiniteError, match="half precision"):
        pipe.decode(latents, "pt")
    for kind in (torch.float16, torch.bfloat16):
        narrow = silent(StableDiffusionXLImg2ImgPipeline.from_pretrained(base.folder, dtype=kind))
        expected = narrow.vae
        narrow_latents = narrow.encode([picture(16)])
        assert narrow_latents.dtype == kind
        expected = silent(StableDiffusionXLImg2ImgPipeline.from_pretrained(base.folder, dtype=kind))
        expected.vae.to(torch.float32)
        assert torch.equal(narrow_latents, expected.encode([picture(16)]))


def test_numbers_are_told_exactly_in_half_precision(base: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = silent(StableDiffusionXLPipeline.from_pretrained(base.folder, dtype=torch.bfloat16))
    seen = []
    own = pipe.unet.embed
    monkeypatch.setattr(pipe.unet, "embed", lambda *args, **more: seen.append(more) or own(*args, **more))
    pixels(pipe, original_size=(1023, 515), output_type="latent")
    assert {tuple(row) for row in seen[0]["added_cond_kwargs"]["time_ids"].tolist()} == {(1023, 515, 0, 0, 16, 16)}


def test_means_and_deviations_of_latents_are_undone(base: Pair) -> None:
    config = {
        **base.theirs["text"].vae.config,
        "latents_mean": [0.1, -0.2, 0.3, 0.4],
        "latents_std": [2.0, 3.0, 4.0, 5.0],
    }
    own = base.theirs["text"].vae, base.ours["text"].vae
    try:
        base.theirs["text"].vae.register_to_config(
            latents_mean=config["latents_mean"], latents_std=config["latents_std"]
        )
        base.ours["text"].vae.register_to_config(latents_mean=config["latents_mean"], latents_std=config["latents_std"])
        agree(*base.images("text"))
        agree(*base.images("picture", image=picture(), strength=0.7))
    finally:
        for vae in own:
            vae.register_to_config(latents_mean=None, latents_std=None)


def test_an_image_of_a_seed_does_not_depend_on_the_batch(ours: StableDiffusionXLPipeline) -> None:
    both = pixels(ours, num_images_per_prompt=2, seed=3, eta=0.5)
    torch.testing.assert_close(both[:1], pixels(ours, seed=3, eta=0.5))
    torch.testing.assert_close(pixels(ours, prompt=[PROMPT, PROMPT], seed=3, eta=0.5), both)


def test_each_result_begins_with_the_picture_of_its_prompt(ours: StableDiffusionXLPipeline) -> None:
    starts = [picture(seed=1), picture(seed=2)]
    how: dict[str, Any] = {"strength": 0.5, "num_images_per_prompt": 2}
    both = pixels(ours, prompt=[PROMPT, OTHER], image=starts, seed=[5, 6, 7, 8], **how)
    for number, prompt in enumerate((PROMPT, OTHER)):
        alone = pixels(ours, prompt=prompt, image=starts[number], seed=[5 + 2 * number, 6 + 2 * number], **how)
        torch.testing.assert_close(both[2 * number : 2 * number + 2], alone)


def test_threads_share_one_pipeline(ours: StableDiffusionXLPipeline) -> None:
    asked = [
        {"prompt": prompt, "seed": k, "original_size": (100 + 50 * k, 200), "guidance_scale": 1.0 + k}
        for k, prompt in enumerate((PROMPT, OTHER, "a dog", "a castle"))
    ]
    alone = [pixels(ours, **options) for options in asked]
    with ThreadPoolExecutor(4) as pool:
        for image, expected in zip(pool.map(lambda options: pixels(ours, **options), asked), alone, strict=True):
            assert torch.equal(image, expected)


def test_offloaded_networks_are_brought_where_they_run_and_back(base: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = silent(StableDiffusionXLPipeline.from_pretrained(base.folder))
    expected = pixels(pipe)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    for enable in (pipe.enable_model_cpu_offload, pipe.enable_sequential_cpu_offload):
        enable()
        assert pipe.device == torch.device("cuda")
        pipe._offload = torch.device("cpu")
        moves: list[str] = []
        with monkeypatch.context() as patch:
            names = ("text_encoder", "text_encoder_2", "unet", "vae")
            for name in names:
                patch.setattr(
                    getattr(pipe, name), "to", lambda target, name=name, moves=moves: moves.append(f"{name} {target!s}")
                )
            assert torch.equal(pixels(pipe), expected)
        assert moves[:4] in (
            ["text_encoder cpu", "text_encoder_2 cpu", "text_encoder_2 cpu", "text_encoder cpu"],
            ["text_encoder cpu", "text_encoder cpu", "text_encoder_2 cpu", "text_encoder_2 cpu"],
        )
        assert moves[4:] == [f"{name} cpu" for name in ("unet", "vae") for _ in range(2)]
        pipe.remove_all_hooks()


def test_text_sizes_and_time_are_projected_once(
    ours: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, list[Any]] = {"project_text": [], "project_time": [], "embed": []}
    for name, seen in calls.items():
        own = getattr(ours.unet, name)
        monkeypatch.setattr(ours.unet, name, lambda *a, own=own, seen=seen, **k: seen.append((a, k)) or own(*a, **k))
    pixels(ours, num_inference_steps=6, num_images_per_prompt=3)
    assert {name: len(seen) for name, seen in calls.items()} == {"project_text": 1, "project_time": 1, "embed": 1}
    (_, given) = calls["project_time"][0]
    assert len(given["added_cond_kwargs"]["time_ids"]) == 2  # one for three pictures, one for the negative ones


def test_too_much_to_keep_is_made_at_each_step(
    ours: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = pixels(ours, num_images_per_prompt=2)
    monkeypatch.setattr("ddim.pipelines.told.LARGEST_CACHE", 10)
    torch.testing.assert_close(pixels(ours, num_images_per_prompt=2), expected, rtol=0, atol=1e-5)


def test_their_networks_run_in_our_pipeline(base: Pair) -> None:
    base.ours["text"].scheduler = DDIMScheduler(**BASE)
    for names in (["unet"], ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"], ["vae"]):
        theirs = {name: getattr(base.theirs["text"], name) for name in names}
        pipe = silent(StableDiffusionXLPipeline(**{**base.ours["text"].components, **theirs}))
        for options in ({}, {"guidance_interval": (0, 500), "num_images_per_prompt": 2}):
            torch.testing.assert_close(
                pixels(pipe, **options), pixels(base.ours["text"], **options), rtol=0, atol=CLOSE
            )


# --- callbacks -------------------------------------------------------------------------------------------------------


def test_a_callback_sees_what_it_asks_for(base: Pair) -> None:
    wanted = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]
    seen: dict[str, list[Any]] = {"theirs": [], "ours": []}

    def watch(name: str) -> Callable[..., Any]:
        def callback(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            seen[name].append((index, int(timestep), {key: value.clone() for key, value in values.items()}))
            return values

        return callback

    for name, pipe in (("theirs", base.theirs["text"]), ("ours", base.ours["text"])):
        pipe.scheduler = (diffusers.DDIMScheduler if name == "theirs" else DDIMScheduler)(**BASE)
        pipe(
            PROMPT,
            num_inference_steps=3,
            generator=generator(),
            original_size=(99, 77),
            callback_on_step_end=watch(name),
            callback_on_step_end_tensor_inputs=wanted,
        )
    for theirs, mine in zip(seen["theirs"], seen["ours"], strict=True):
        assert theirs[:2] == mine[:2]
        assert list(theirs[2]) == list(mine[2]) == wanted
        for key in wanted:
            torch.testing.assert_close(mine[2][key], theirs[2][key], rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="are not all of"):
        base.ours["text"](PROMPT, callback_on_step_end_tensor_inputs=["mask"])


def test_a_callback_may_change_things(base: Pair) -> None:
    """diffusers' own callbacks: guidance is given up after some steps; and other sizes on the way."""
    cutoff = diffusers.callbacks.SDXLCFGCutoffCallback(cutoff_step_ratio=0.4)
    agree(*base.images("text", num_inference_steps=5, callback_on_step_end=cutoff))

    def change(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 0:
            values["add_time_ids"] = values["add_time_ids"] + 100
        if index == 1:
            values["add_text_embeds"] = -values["add_text_embeds"]
            values["prompt_embeds"] = values["prompt_embeds"] * 0.5
        return values

    names = ["prompt_embeds", "add_text_embeds", "add_time_ids"]
    how = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": names}
    agree(*base.images("text", num_inference_steps=4, **how))

    def write(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 0:
            values["add_time_ids"].add_(100)
        return {}

    inside = pixels(base.ours["text"], callback_on_step_end=write, callback_on_step_end_tensor_inputs=names)
    anew = pixels(
        base.ours["text"],
        callback_on_step_end=lambda _, i, __, v: {"add_time_ids": v["add_time_ids"] + 100 * (i == 0)},
        callback_on_step_end_tensor_inputs=names,
    )
    assert torch.equal(inside, anew)
    with pytest.raises(ValueError, match="the callback's add_time_ids must be a tensor"):
        pixels(
            base.ours["text"],
            callback_on_step_end=lambda *_: {"add_time_ids": torch.zeros(2, 5)},
            callback_on_step_end_tensor_inputs=names,
        )


def test_a_callback_may_change_the_mask(base: Pair, nine: Pair) -> None:
    def change(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            values["mask"] = torch.ones_like(values["mask"])
            if "masked_image_latents" in values:
                values["masked_image_latents"] = values["masked_image_latents"] * 0.5
        return values

    for pair, names in ((base, ["mask", "latents"]), (nine, ["mask", "masked_image_latents"])):
        for scale in (1.0, 5.0):
            how = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": names}
            options = {"image": picture(16), "mask_image": mask(), "num_inference_steps": 5, "guidance_scale": scale}
            plain = pair.images("inpaint", **options)[1]
            theirs, mine = pair.images("inpaint", **options, **how)
            agree(theirs, mine)
            assert np.abs(mine - plain).max() > 30 * CLOSE
    with pytest.raises(ValueError, match="the callback's mask must be a tensor of shape"):
        pixels(
            base.ours["inpaint"],
            image=picture(16),
            mask_image=mask(),
            callback_on_step_end=lambda *_: {"mask": 3},
            callback_on_step_end_tensor_inputs=["mask"],
        )
    with pytest.raises(ValueError, match="there is no masked_image_latents in this run"):
        pixels(
            base.ours["inpaint"],
            image=picture(16),
            mask_image=mask(),
            callback_on_step_end=lambda *_: None,
            callback_on_step_end_tensor_inputs=["masked_image_latents"],
        )


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": None}, "give either prompt or prompt_embeds"),
        ({"prompt_2": ["a", "b"]}, "2 texts in prompt_2 do not fit 1 prompts"),
        ({"prompt_2": 5}, "prompt_2 must be a str or a list of them"),
        ({"prompt": None, "prompt_embeds": EMBEDS}, "prompt_embeds need pooled_prompt_embeds"),
        ({"negative_prompt_embeds": EMBEDS[:1]}, "negative_prompt_embeds need negative_pooled_prompt_embeds"),
        (
            {"prompt": None, "prompt_2": "a", "prompt_embeds": EMBEDS, "pooled_prompt_embeds": VECTORS},
            "give either prompt_2 or prompt_embeds",
        ),
        ({"pooled_prompt_embeds": VECTORS}, r"pooled_prompt_embeds must be a tensor of shape \(1, channels\)"),
        ({"original_size": 1024}, r"original_size must be two numbers, \(height, width\), not 1024"),
        ({"original_size": (1, 2, 3)}, "original_size must be two numbers"),
        ({"target_size": ("a", 2)}, "target_size must be two numbers"),
        ({"crops_coords_top_left": None}, r"crops_coords_top_left must be two numbers, \(top, left\)"),
        ({"crops_coords_top_left": (0, float("nan"))}, "crops_coords_top_left must be two numbers"),
        ({"aesthetic_score": "high"}, "aesthetic_score must be a number"),
        ({"clip_skip": 3}, r"clip_skip must be an int in 0…2, as one of the text encoder's 3 layers is left out"),
        ({"clip_skip": True}, "clip_skip must be an int"),
        ({"clip_skip": -2}, "clip_skip must be an int"),
        ({"denoising_end": 1.5}, r"denoising_end must be a number in \(0, 1\], a share of the way, not 1.5"),
        ({"denoising_end": 0.0}, r"denoising_end must be a number in \(0, 1\]"),
        ({"denoising_end": "half"}, "denoising_end must be a number"),
        ({"denoising_end": 0.001}, "no step of 3 is between denoising_start=0 and denoising_end=0.001"),
        ({"denoising_start": 0.5}, "denoising_start needs the image, or its latents"),
        ({"denoising_start": 1.0, "image": picture()}, r"denoising_start must be a number in \[0, 1\)"),
        ({"denoising_start": 0.6, "denoising_end": 0.6, "image": picture()}, "must be below denoising_end=0.6"),
        ({"sigmas": [1.0]}, "sigmas is not implemented"),
        ({"ip_adapter_image": picture()}, "ip_adapter_image is not implemented"),
        ({"height": 17}, "height must be a multiple of 2"),
        ({"mask_image": mask()}, "mask_image needs the image"),
        ({"output_type": "jpg"}, "output_type='jpg' is none of"),
    ],
)
def test_what_cannot_work_is_refused(
    options: dict[str, Any], message: str, ours: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours.unet, "forward", lambda *_, **__: pytest.fail("it was run"))
    with pytest.raises((ValueError, TypeError), match=message):
        ours(**{"prompt": PROMPT, "num_inference_steps": 3, **options})


def test_a_pipeline_without_its_text_encoders(base: Pair) -> None:
    pipe = silent(
        StableDiffusionXLPipeline(**{**base.ours["text"].components, "text_encoder_2": None, "tokenizer_2": None})
    )
    with pytest.raises(ConfigError, match="has no tokenizer_2 or no text_encoder_2"):
        pipe(PROMPT)
    embeds, _, pooled, _ = base.ours["text"].encode_prompt(PROMPT)
    given = {"prompt": None, "prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    assert torch.equal(pixels(pipe, **given), pixels(base.ours["text"], **given))
    half = silent(StableDiffusionXLPipeline(**{**base.ours["text"].components, "tokenizer": None}))
    with pytest.raises(ConfigError, match="has one of text_encoder and tokenizer, and not the other"):
        half(PROMPT)


def test_a_file_of_another_encoder_names_what_is_missing(base: Pair, tmp_path: Path) -> None:
    shutil.copytree(base.folder, tmp_path, dirs_exist_ok=True)
    shutil.copytree(base.folder / "text_encoder", tmp_path / "text_encoder_2", dirs_exist_ok=True)
    with pytest.raises(WeightsError, match=r"missing: text_projection\.weight"):
        StableDiffusionXLPipeline.from_pretrained(tmp_path)


def test_the_denoiser_is_told_what_a_call_tells(ours: StableDiffusionXLPipeline) -> None:
    plan = ours.scheduler.plan(3)
    noise = torch.randn(1, 4, 8, 8, generator=generator())
    told = {"prompt": PROMPT, "prompt_2": OTHER, "negative_prompt": "bad", "guidance_scale": 4.0}
    expected = pixels(ours, latents=noise, **told, original_size=(99, 77), output_type="latent")
    denoiser = ours.denoiser(plan, 1, **told, sizes=Sizes(original_size=(99, 77)))
    with torch.no_grad():
        *_, last = ddim.sample(denoiser, noise, plan)
    torch.testing.assert_close(last.sample, expected)


def test_weights_in_prompts_are_read_for_both_encoders(ours: StableDiffusionXLPipeline) -> None:
    plain = pixels(ours)
    assert torch.equal(pixels(ours, weights="a1111"), plain)
    heavy = pixels(ours, prompt="a photo of a (red:1.5) cat on stars", weights="a1111")
    assert (heavy - plain).abs().max() > 10 * CLOSE
    second = pixels(ours, prompt_2="a photo of a (red:1.5) cat on stars", weights="a1111")
    assert (second - plain).abs().max() > 10 * CLOSE
    assert not torch.equal(second, heavy)
    long = "red cat, " * 60
    assert ours.encode_prompt(long, negative_prompt="bad", weights="a1111")[1].shape[1] == 231
    assert pixels(ours, prompt=long, prompt_2="a dog", weights="a1111", clip_skip=1).shape == plain.shape
    with pytest.raises(ConfigError, match="not done"):
        pixels(ours, prompt_2="(cat).swap(dog)", weights="compel")
