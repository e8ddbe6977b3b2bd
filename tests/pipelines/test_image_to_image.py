"""Image to image and inpainting against diffusers on the same weights, pictures and noise; pictures of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageDraw
from tiny_sd import SCHEDULE, tiny_reference
from torch import Tensor

import ddim
from ddim.errors import ConfigError
from ddim.pipelines import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from ddim.pipelines.crops import Crop
from ddim.pipelines.inputs import to_mask, to_tensor
from ddim.scheduler import DDIMScheduler

PROMPT = "a photo of a red cat on stars"
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


class Trio:
    """One checkpoint in diffusers' two pipelines, and in ours."""

    def __init__(self, folder: Path, version: int, in_channels: int) -> None:
        reference = tiny_reference(folder, version, in_channels)
        parts = {**reference.components, "safety_checker": None, "feature_extractor": None}
        self.from_picture: Any = None
        if in_channels == 4:
            self.from_picture = silent(diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False))
        self.inpaint = silent(diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False))
        self.ours: StableDiffusionPipeline = silent(StableDiffusionPipeline.from_pretrained(folder))

    def images(self, theirs: Any, scheduler: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any]:
        settings = {**BASE, **(scheduler or {})}
        legacy = settings.pop("legacy_previous_timestep", False)
        theirs.scheduler = diffusers.DDIMScheduler(**settings)
        self.ours.scheduler = DDIMScheduler(**settings, legacy_previous_timestep=legacy)
        results = []
        for pipe in (theirs, self.ours):
            given = {"prompt": PROMPT, "num_inference_steps": 5, "strength": 0.8, "output_type": "np", **options}
            count = given.pop("generators", None)
            given["generator"] = generator() if count is None else [generator(k) for k in range(count)]
            if options.get("no_generator"):
                given.pop("generator")
            given.pop("no_generator", None)
            torch.manual_seed(11)
            results.append(pipe(**given).images)
        return results[0], results[1]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Trio:
    """Stable Diffusion 1's layout."""
    return Trio(tmp_path_factory.mktemp("four"), 1, 4)


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Trio:
    """Stable Diffusion 2's layout, with a U-Net that was trained to inpaint."""
    return Trio(tmp_path_factory.mktemp("nine"), 2, 9)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Trio:
    """Stable Diffusion 2's layout."""
    return Trio(tmp_path_factory.mktemp("second"), 2, 4)


def agree(theirs: Any, ours: Any) -> None:
    assert theirs.shape == ours.shape
    assert np.isfinite(theirs).all()
    assert theirs.std() > 0.02
    assert np.abs(theirs - ours).max() < CLOSE


def pixels(pipe: Any, **options: Any) -> Tensor:
    given = {"prompt": PROMPT, "num_inference_steps": 5, "output_type": "pt", "seed": 0, **options}
    images = pipe(**given).images
    assert isinstance(images, Tensor)
    return images


# --- image to image, against diffusers -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:You have passed .* text prompts:FutureWarning")
class TestImageToImage:
    @pytest.mark.parametrize("strength", [0.2, 0.5, 0.8, 1.0])
    @pytest.mark.parametrize("eta", [0.0, 1.0])
    @pytest.mark.thin(together=1)
    def test_images_are_those_of_diffusers(self, strength: float, eta: float, four: Trio, second: Trio) -> None:
        for trio in (four, second):
            agree(*trio.images(trio.from_picture, image=picture(), strength=strength, eta=eta))

    @pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
    @pytest.mark.parametrize("scale", [1.0, 7.5])
    @pytest.mark.thin(together=2)
    def test_every_schedule(self, spacing: str, kind: str, scale: float, four: Trio) -> None:
        scheduler = {"timestep_spacing": spacing, "prediction_type": kind, "legacy_previous_timestep": True}
        options = {"num_inference_steps": 6, "guidance_scale": scale, "eta": 0.5}
        agree(*four.images(four.from_picture, scheduler, image=picture(), **options))

    def test_zero_terminal_snr_from_noise_alone(self, four: Trio) -> None:
        scheduler = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        agree(*four.images(four.from_picture, scheduler, image=picture(), strength=1.0))

    @pytest.mark.parametrize(
        "options",
        [
            {"negative_prompt": "bad"},
            {"clip_skip": 1},
            {"num_images_per_prompt": 3, "eta": 1.0},
            {"num_images_per_prompt": 3, "generators": 3, "eta": 1.0},
            {"prompt": [PROMPT, "a dog"], "image": [picture(), picture(seed=1)]},
            {"prompt": [PROMPT, "a dog"], "image": [picture(), picture(seed=1)], "generators": 2},
            {"prompt": [PROMPT, "a dog"], "num_images_per_prompt": 2, "eta": 0.5},
            {"no_generator": True, "eta": 1.0},
            {"image": torch.randn(1, 4, 8, 12, generator=generator())},
            {"image": torch.rand(1, 3, 16, 24, generator=generator())},
            {"image": torch.rand(3, 16, 24, generator=generator())},
            {"image": np.random.default_rng(0).random((2, 16, 24, 3), np.float32), "prompt": ["a", "b"]},
            {"image": [np.random.default_rng(k).random((17, 25, 3), np.float32) for k in (0, 1)], "prompt": ["a", "b"]},
            {"image": picture(27, 19)},
            {"timesteps": None, "num_inference_steps": 50, "strength": 0.06},
        ],
    )
    @pytest.mark.thin(every=2)
    def test_every_option(self, options: dict[str, Any], four: Trio) -> None:
        agree(*four.images(four.from_picture, **{"image": picture(), **options}))


def test_what_is_named_after_diffusers_class_takes_its_arguments_in_its_order(four: Trio) -> None:
    mine = silent(StableDiffusionImg2ImgPipeline.from_pipe(four.ours))
    assert mine.unet is four.ours.unet
    with pytest.raises(TypeError, match="make no DDIMPipeline"):
        ddim.DDIMPipeline.from_pipe(four.ours)
    mine.scheduler = DDIMScheduler(**BASE)
    four.from_picture.scheduler = diffusers.DDIMScheduler(**BASE)
    given = (PROMPT, picture(), 0.6, 5, None, None, 3.0, "bad", 1, 0.5)
    results = [pipe(*given, generator=generator(), output_type="np").images for pipe in (four.from_picture, mine)]
    agree(*results)
    with pytest.raises(ValueError, match="image is missing"):
        mine(PROMPT)
    with pytest.raises(TypeError, match="multiple values"):
        mine(PROMPT, picture(), prompt="a")
    with pytest.raises(TypeError, match="unexpected"):
        mine(PROMPT, picture(), sharpness=2)
    same = pixels(mine, image=picture(), guidance_rescale=0.5)  # ours alone
    assert torch.equal(same, pixels(mine, image=picture(), guidance_rescale=0.5, strength=0.8))


def test_a_picture_for_each_prompt_stays_with_it(four: Trio) -> None:
    """With several images of a prompt too, where diffusers repeats the pictures in another order than the prompts."""
    both = [picture(), picture(seed=1)]
    prompts = ["a cat", "a dog"]
    seeds = [0, 1, 2, 3]
    images = pixels(four.ours, prompt=prompts, image=both, num_images_per_prompt=2, seed=seeds, strength=0.4)
    for k in range(4):
        alone = pixels(four.ours, prompt=prompts[k // 2], image=both[k // 2], seed=[k], strength=0.4)
        torch.testing.assert_close(images[k : k + 1], alone, rtol=0, atol=1e-5)


def test_strength_says_how_much_is_lost(four: Trio) -> None:
    four.ours.scheduler = DDIMScheduler(**BASE)
    start = pixels(four.ours, image=picture(), strength=0.02, num_inference_steps=50, guidance_scale=1.0)
    far = pixels(four.ours, image=picture(), strength=1.0, num_inference_steps=50, guidance_scale=1.0)
    latents = four.ours.vae.encode(to_tensor(picture(), (None, None), 2, 3, 4)).latent_dist.mode()
    decoded = four.ours.vae.decode(latents).sample / 2 + 0.5
    assert (start - decoded.clamp(0, 1)).abs().mean() < (far - decoded.clamp(0, 1)).abs().mean()


def test_a_picture_may_be_resized(four: Trio) -> None:
    four.ours.scheduler = DDIMScheduler(**BASE)
    assert pixels(four.ours, image=picture(), height=20).shape == (1, 3, 20, 24)
    assert pixels(four.ours, image=picture(), height=12, width=16).shape == (1, 3, 12, 16)
    assert pixels(four.ours, image=picture(25, 17)).shape == (1, 3, 16, 24)


@pytest.mark.parametrize("masked", [False, True])
def test_an_image_of_a_seed_does_not_depend_on_the_batch(masked: bool, four: Trio, nine: Trio) -> None:
    extra = {"mask_image": mask()} if masked else {}
    for trio in (four, nine) if masked else (four,):
        trio.ours.scheduler = DDIMScheduler(**BASE)
        given = {"image": picture(16, 16), "seed": 5, "eta": 1.0, **extra}
        images = pixels(trio.ours, num_images_per_prompt=4, **given)
        for count in (1, 2):
            fewer = pixels(trio.ours, num_images_per_prompt=count, **given)
            torch.testing.assert_close(fewer, images[:count], rtol=0, atol=1e-5)
        assert (images[0] - images[1]).abs().max() > 1e-3
        listed = pixels(trio.ours, num_images_per_prompt=2, **{**given, "seed": [8, 5]})
        torch.testing.assert_close(listed[1:], images[:1], rtol=0, atol=1e-5)


# --- inpainting, against diffusers -----------------------------------------------------------------------------------

INPAINTING: list[dict[str, Any]] = [
    {},
    {"strength": 1.0},
    {"strength": 1.0, "eta": 1.0},
    {"strength": 0.4, "eta": 1.0},
    {"guidance_scale": 1.0},
    {"negative_prompt": "bad", "clip_skip": 1},
    {"num_images_per_prompt": 3, "eta": 1.0},
    {"num_images_per_prompt": 3, "generators": 3, "eta": 1.0},
    {"num_images_per_prompt": 3, "generators": 3, "strength": 1.0, "eta": 1.0},
    {"prompt": [PROMPT, "a dog"], "image": [picture(), picture(seed=1)], "mask_image": [mask(), mask()]},
    {"prompt": [PROMPT, "a dog"], "image": [picture(), picture(seed=1)], "generators": 2, "eta": 0.5},
    {"image": picture(30, 22), "mask_image": mask(19, 31)},
    {"height": 24, "width": 32},
    {"no_generator": True, "eta": 1.0},
    {"latents": torch.randn(1, 4, 8, 8, generator=generator())},
    {"latents": torch.randn(1, 4, 8, 8, generator=generator()), "strength": 1.0, "eta": 1.0},
    {"image": torch.rand(1, 3, 16, 16, generator=generator()), "mask_image": torch.rand(1, 1, 16, 16)},
    {"image": torch.rand(1, 3, 20, 16, generator=generator()), "mask_image": torch.rand(16, 20)},
    {"mask_image": np.random.default_rng(0).random((16, 16), np.float32)},
    {"mask_image": np.random.default_rng(0).random((1, 16, 16, 1), np.float32)},
    {"mask_image": mask().convert("RGB")},
    {"mask_image": mask().convert("1")},
    {"masked_image_latents": torch.randn(1, 4, 8, 8, generator=generator()), "eta": 1.0},
]


@pytest.mark.parametrize("options", INPAINTING)
@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.thin(every=3)
def test_inpainting_is_that_of_diffusers(channels: int, options: dict[str, Any], four: Trio, nine: Trio) -> None:
    trio = four if channels == 4 else nine
    given = {"image": picture(16, 16), "mask_image": mask(), **options}
    agree(*trio.images(trio.inpaint, **given))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.thin(together=2)
def test_inpainting_with_every_schedule(spacing: str, kind: str, channels: int, four: Trio, nine: Trio) -> None:
    trio = four if channels == 4 else nine
    scheduler = {"timestep_spacing": spacing, "prediction_type": kind, "legacy_previous_timestep": True}
    agree(*trio.images(trio.inpaint, scheduler, image=picture(16, 16), mask_image=mask(), num_inference_steps=6))


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (33, 65)])
@pytest.mark.parametrize("shape", [(16, 16), (16, 32)])
@pytest.mark.parametrize("padding", [0, 3, 100])
@pytest.mark.thin(together=2)
def test_painting_around_the_mask_is_that_of_diffusers(
    size: tuple[int, int], shape: tuple[int, int], padding: int, four: Trio
) -> None:
    given = {"image": picture(*size), "mask_image": mask(*size), "padding_mask_crop": padding, "output_type": "pil"}
    theirs, mine = four.images(four.inpaint, height=shape[0], width=shape[1], **given)
    assert mine[0].size == theirs[0].size == size
    difference = np.abs(np.asarray(theirs[0], dtype=int) - np.asarray(mine[0], dtype=int))

    assert difference.max() <= 1
    untouched = np.asarray(mask(*size)) == 0
    assert np.array_equal(np.asarray(mine[0])[untouched], np.asarray(given["image"])[untouched])


def test_a_checkpoint_for_inpainting_loads_as_such(nine: Trio, tmp_path: Path) -> None:
    nine.inpaint.scheduler = diffusers.DDIMScheduler(**BASE)
    nine.inpaint.save_pretrained(tmp_path)
    pipe = silent(ddim.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(pipe) is StableDiffusionInpaintPipeline
    assert pipe.unet.config.in_channels == 9
    given = (PROMPT, picture(16, 16), mask(), None, 16, 16, None, 0.9, 5)
    agree(by_position(nine.inpaint, given), by_position(pipe, given))
    agree(by_position(nine.inpaint, given[:3]), by_position(pipe, given[:3]))  # strength is 1 there, unless told
    with pytest.raises(ValueError, match="mask_image is missing"):
        pipe(PROMPT, picture())
    pipe.save_pretrained(tmp_path / "ours")
    again = silent(diffusers.StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "ours"))
    agree(by_position(again, given), by_position(pipe, given))


def by_position(pipe: Any, given: tuple[Any, ...]) -> Any:
    steps = {} if len(given) > 8 else {"num_inference_steps": 5}
    return pipe(*given, **steps, generator=generator(), output_type="np").images


def test_what_the_mask_leaves_is_left(four: Trio) -> None:
    four.ours.scheduler = DDIMScheduler(**BASE)
    given = {"image": picture(16, 16), "mask_image": mask(), "strength": 1.0, "output_type": "latent"}
    latents = pixels(four.ours, **given)
    other = pixels(four.ours, **{**given, "prompt": "a blue castle", "guidance_scale": 15.0})
    painted = to_mask(mask(), (16, 16))
    assert painted is not None
    kept = painted[:, :, ::2, ::2].expand(1, 4, 8, 8) == 0
    assert torch.equal(latents[kept], other[kept])
    assert (latents[~kept] - other[~kept]).abs().max() > 0.01


def test_latents_as_a_picture_are_inpainted(four: Trio, nine: Trio) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=generator())
    four.ours.scheduler = DDIMScheduler(**BASE)
    assert pixels(four.ours, image=latents, mask_image=mask()).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="give masked_image_latents"):
        pixels(nine.ours, image=latents, mask_image=mask())
    nine.ours.scheduler = DDIMScheduler(**BASE)
    given = {"image": latents, "mask_image": mask(), "masked_image_latents": latents}
    assert pixels(nine.ours, **given).shape == (1, 3, 16, 16)


# --- pictures of every kind ------------------------------------------------------------------------------------------


def test_pictures_are_prepared_as_in_diffusers() -> None:
    processor = VaeImageProcessor(vae_scale_factor=8)
    numbers = np.random.default_rng(0)
    kinds: list[Any] = [
        picture(37, 26),
        [picture(37, 26), picture(40, 30, seed=1)],
        numbers.random((26, 37, 3), np.float32),
        numbers.random((2, 26, 37, 3), np.float32),
        [numbers.random((26, 37, 3), np.float32)] * 2,
        torch.rand(3, 26, 37),
        torch.rand(2, 3, 26, 37),
        [torch.rand(3, 26, 37)] * 2,
    ]
    for given in kinds:
        for size in ((None, None), (32, 48), (8, None)):
            theirs = processor.preprocess(given, height=size[0], width=size[1])
            torch.testing.assert_close(to_tensor(given, size, 8, 3, 4), theirs, rtol=0, atol=1e-6)
    latents = torch.randn(2, 4, 5, 6)
    assert to_tensor(latents, (None, None), 8, 3, 4) is not None
    assert torch.equal(to_tensor(latents, (None, None), 8, 3, 4), latents)


def test_masks_are_prepared_as_in_diffusers() -> None:
    processor = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    numbers = np.random.default_rng(0)
    kinds: list[Any] = [
        mask(37, 26),
        mask(37, 26).convert("RGB"),
        [mask(37, 26), mask(20, 20)],
        numbers.random((26, 37), np.float32),
        numbers.random((26, 37, 1), np.float32),
        numbers.random((2, 26, 37), np.float32),
        numbers.random((2, 26, 37, 1), np.float32),
        torch.rand(26, 37),
        torch.rand(1, 26, 37),
        torch.rand(2, 26, 37),
        torch.rand(2, 1, 26, 37),
    ]
    for given in kinds:
        copied = given.clone() if isinstance(given, Tensor) else given.copy()  # theirs writes into it
        theirs = processor.preprocess(copied, height=16, width=24)
        torch.testing.assert_close(to_mask(given, (16, 24)), theirs, rtol=0, atol=0)


def test_more_kinds_of_pictures_than_in_diffusers() -> None:
    plain = np.asarray(picture(16, 8))
    size = (None, None)
    expected = to_tensor(picture(16, 8), size, 8, 3, 4)
    for given in (plain, torch.from_numpy(plain.copy()).permute(2, 0, 1), expected, picture(16, 8).convert("RGBA")):
        torch.testing.assert_close(to_tensor(given, size, 8, 3, 4), expected, rtol=0, atol=1e-6)
    grey = picture(16, 8).convert("L")
    expected = to_tensor(grey, size, 8, 3, 4)
    assert torch.equal(expected[:, 0], expected[:, 2])
    for given in (np.asarray(grey)[..., None], grey.convert("RGB")):
        torch.testing.assert_close(to_tensor(given, size, 8, 3, 4), expected, rtol=0, atol=1e-6)
    for same in (np.asarray(mask()), np.asarray(mask()) > 127):
        torch.testing.assert_close(to_mask(same, (16, 16)), to_mask(mask(), (16, 16)), rtol=0, atol=0)
    assert to_mask(None, (16, 16)) is None


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ("picture.png", TypeError, "must be a PIL image, an array, a tensor"),
        ([], ValueError, "image is an empty list"),
        ([picture(), np.zeros((8, 8, 3))], TypeError, "a list of one kind"),
        (np.zeros((8, 8)), ValueError, "has shape"),
        (np.zeros((1, 1, 8, 8, 3)), ValueError, "has shape"),
        (np.zeros((8, 8, 2), np.float32), ValueError, "2 channels"),
        (np.zeros((8, 8, 3), np.int64), TypeError, "bytes or floating-point"),
        (np.full((8, 8, 3), 255.0), ValueError, "numbers from 255 to 255"),
        (np.full((8, 8, 3), np.nan), ValueError, "numbers from nan"),
        (torch.full((3, 8, 8), -2.0), ValueError, "numbers from -2"),
        (picture(4, 4), ValueError, "smaller than 8x8"),
        ([np.zeros((8, 8, 3)), np.zeros((16, 8, 3))], ValueError, "differ in shape"),
    ],
)
def test_what_is_no_picture(given: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        to_tensor(given, (None, None), 8, 3, 4)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), "3 channels"),
        (torch.zeros(1, 3, 8, 8), "3 channels"),
        (torch.full((8, 8), 2.0), "numbers from 2"),
        (torch.full((8, 8), -1.0), "numbers from -1"),
    ],
)
def test_what_is_no_mask(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        to_mask(given, (8, 8))


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"strength": 1.5}, ValueError, r"strength must be a number in \[0, 1\]"),
        ({"strength": -0.1}, ValueError, r"strength must be a number in \[0, 1\]"),
        ({"strength": "half"}, ValueError, r"strength must be a number in \[0, 1\]"),
        ({"strength": 0.1}, ValueError, "leaves none of 5 steps: give 0.2 or more"),
        ({"strength": 0}, ValueError, "leaves none of 5 steps"),
        ({"image": None, "mask_image": mask()}, ValueError, "mask_image needs the image"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, ValueError, "latents to start from, or an image"),
        ({"image": 3}, TypeError, "must be a PIL image"),
        ({"image": [picture()] * 3, "prompt": ["a", "b"]}, ValueError, "3 pictures do not fit 2 prompts"),
        ({"mask_image": [mask()] * 3, "prompt": ["a", "b"]}, ValueError, "3 masks do not fit 2 prompts"),
        ({"mask_image": mask(), "masked_image_latents": torch.zeros(1, 4, 3, 3), "nine": 1}, ValueError, "needed is"),
        ({"mask_image": "mask.png"}, TypeError, "mask_image must be a PIL image"),
        ({"padding_mask_crop": 4}, ValueError, "padding_mask_crop needs a mask_image"),
        ({"padding_mask_crop": 4, "mask_image": mask(), "output_type": "np"}, ValueError, "output_type='pil'"),
        ({"padding_mask_crop": 4, "mask_image": mask(), "output_type": "pil"}, ValueError, "as large as"),
        ({"padding_mask_crop": 4, "mask_image": np.zeros((4, 4)), "output_type": "pil"}, TypeError, "one PIL"),
        ({"height": 15}, ValueError, "height must be a multiple of 2"),
        ({"nine": 1}, ConfigError, "for inpainting: give image and mask_image"),
        ({"nine": 1, "image": None}, ConfigError, "for inpainting: give image and mask_image"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_run(
    options: dict[str, Any], error: Any, says: str, four: Trio, nine: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = nine.ours if options.get("nine") else four.ours
    given = {"image": picture(), "num_inference_steps": 5, **options}
    given.pop("nine", None)
    pipe.scheduler = DDIMScheduler(**BASE)
    monkeypatch.setattr(pipe.unet, "forward", lambda *_, **__: pytest.fail("the network was run"))
    with pytest.raises(error, match=says):
        pipe(**{"prompt": PROMPT, **given})


def test_a_network_of_other_channels_is_refused(four: Trio) -> None:
    unet = four.ours.unet
    config = unet.config
    try:
        unet.register_to_config(in_channels=7)
        with pytest.raises(ConfigError, match="takes 7 channels"):
            four.ours(PROMPT)
    finally:
        unet._internal_dict = config


def test_a_black_mask_has_no_surroundings() -> None:
    black = Image.new("L", (8, 8))
    with pytest.raises(ValueError, match="nothing to paint"):
        Crop(picture(8, 8), black, (8, 8), 2)
    with pytest.raises(TypeError, match="must be an int"):
        Crop(picture(8, 8), black, (8, 8), 2.5)  # type: ignore[arg-type]
