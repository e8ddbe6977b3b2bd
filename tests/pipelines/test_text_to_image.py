"""StableDiffusionPipeline against diffusers' on the same weights and noise, and what only ours has."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sd import SCHEDULE, tiny_reference
from torch import Tensor, nn

import ddim
from ddim.errors import CheckpointError, ConfigError, NonFiniteError
from ddim.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from ddim.models.tokenizer import CLIPTokenizer
from ddim.pipelines import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from ddim.scheduler import DDIMScheduler

PROMPT = "a photo of a red cat on stars"
BASE: dict[str, Any] = {**SCHEDULE, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
CLOSE = 1e-4


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def silent(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Pair:
    """diffusers' pipeline and ours, loaded from the folder that it was saved in."""

    def __init__(self, folder: Path, version: int) -> None:
        self.folder = folder
        self.theirs = tiny_reference(folder, version)
        self.ours: StableDiffusionPipeline = silent(ddim.DiffusionPipeline.from_pretrained(folder))

    def images(self, scheduler: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any]:
        """What both make of the same arguments and noise, (b h w c) in [0, 1]: theirs, ours."""
        settings = {**BASE, **(scheduler or {})}
        legacy = settings.pop("legacy_previous_timestep", False)
        self.theirs.scheduler = diffusers.DDIMScheduler(**settings)
        self.ours.scheduler = DDIMScheduler(**settings, legacy_previous_timestep=legacy)
        results = []
        for pipe in (self.theirs, self.ours):
            noise = [generator(3), generator(4)] if options.get("num_images_per_prompt") == 2 else generator()
            given = {"prompt": PROMPT, "num_inference_steps": 3, "output_type": "np", "generator": noise, **options}
            torch.manual_seed(5)
            results.append(pipe(**given).images)
        return results[0], results[1]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Pair]:
    return {version: Pair(tmp_path_factory.mktemp(f"sd{version}"), version) for version in (1, 2)}


@pytest.fixture(params=[1, 2], ids=["SD 1", "SD 2"])
def pair(request: pytest.FixtureRequest, pairs: dict[int, Pair]) -> Pair:
    return pairs[request.param]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("first"), 1)


@pytest.fixture
def ours(first: Pair) -> Iterator[StableDiffusionPipeline]:
    first.ours.scheduler = DDIMScheduler(**BASE)
    yield first.ours
    first.ours.scheduler = DDIMScheduler(**BASE)


def agree(theirs: Any, ours: Any, tolerance: float = CLOSE) -> None:
    assert theirs.shape == ours.shape
    assert theirs.dtype == ours.dtype == np.float32
    assert np.isfinite(theirs).all()
    assert theirs.std() > 0.05  # a picture, not a plane
    assert np.abs(theirs - ours).max() < tolerance


def pixels(pipe: StableDiffusionPipeline, **options: Any) -> Tensor:
    given = {"prompt": PROMPT, "num_inference_steps": 3, "output_type": "pt", "seed": 0, **options}
    images = pipe(**given).images
    assert isinstance(images, Tensor)
    return images


# --- against diffusers -----------------------------------------------------------------------------------------------

SPACINGS = {
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("scale", "rescale"), [(1.0, 0.0), (7.5, 0.0), (7.5, 0.7)])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    ("pair", "spacing"),
    [  # what the scheduler does depends on no network: on SD 2 one spacing, and the others among the slow tests
        pytest.param(version, spacing, id=f"SD {version}-{spacing}", marks=[pytest.mark.slow] if again else [])
        for version in (1, 2)
        for spacing in SPACINGS
        for again in [version == 2 and spacing != "trailing"]
    ],
    indirect=["pair"],
)
@pytest.mark.thin(together=2)
def test_images_are_those_of_diffusers(
    spacing: str, kind: str, scale: float, rescale: float, eta: float, pair: Pair
) -> None:
    # Three steps do not divide 1000: there diffusers steps to t - 333, which is not the next timestep.
    scheduler = {**SPACINGS[spacing], "prediction_type": kind, "legacy_previous_timestep": True}
    options = {"guidance_scale": scale, "guidance_rescale": rescale, "eta": eta}
    agree(*pair.images(scheduler, **options))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(("scale", "rescale"), [(1.0, 0.0), (7.5, 0.0), (7.5, 0.7)])
@pytest.mark.thin(together=2)
def test_zero_terminal_snr_is_that_of_diffusers(spacing: str, scale: float, rescale: float, pair: Pair) -> None:
    scheduler = {**SPACINGS[spacing], "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    agree(*pair.images(scheduler, num_inference_steps=4, guidance_scale=scale, guidance_rescale=rescale))


def test_where_steps_divide_the_timesteps_nothing_need_be_told(pair: Pair) -> None:
    for spacing in ("leading", "trailing"):
        agree(*pair.images(SPACINGS[spacing], num_inference_steps=5, eta=1.0))


OPTIONS: dict[str, dict[str, Any]] = {
    "a negative prompt": {"negative_prompt": "blurry bad smoke"},
    "two prompts": {"prompt": [PROMPT, "a blue castle"], "negative_prompt": ["bad", "blurry"]},
    "another size": {"height": 24, "width": 40},
    "odd latents": {"latents": torch.randn(1, 4, 9, 7, generator=torch.Generator().manual_seed(0))},
    "several images of a prompt": {"num_images_per_prompt": 2, "eta": 1.0},
    "several images of two prompts": {"prompt": [PROMPT, "a dog"], "num_images_per_prompt": 3, "eta": 0.5},
    "a clip skip": {"clip_skip": 1, "negative_prompt": "bad"},
    "a clip skip of all": {"clip_skip": 3},
    "no clip skip": {"clip_skip": 0},
    "a scale below one": {"guidance_scale": 0.0},
    "global randomness": {"generator": None, "eta": 1.0},
    "an empty prompt": {"prompt": ""},
    "an odd prompt": {"prompt": "naïve 🙂 <|endoftext|> red!"},
    "one step": {"num_inference_steps": 1},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.thin(every=2)
def test_every_option_does_what_it_does_in_diffusers(name: str, pair: Pair) -> None:
    agree(*pair.images(**OPTIONS[name]))


@pytest.mark.filterwarnings("ignore:the text encoder reads")
def test_a_long_prompt_is_cut_where_diffusers_cuts_it(pair: Pair) -> None:
    agree(*pair.images(prompt="a lion in galaxies, " * 20))


def test_latents_and_embeddings_may_be_given(pair: Pair) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=generator())
    embeds = torch.randn(2, 77, 32, generator=generator())
    negative = torch.randn(2, 77, 32, generator=generator(1))
    agree(*pair.images(prompt=None, prompt_embeds=embeds, negative_prompt_embeds=negative, latents=latents))
    agree(*pair.images(prompt=None, prompt_embeds=embeds[:, :50], latents=latents))  # the negative one as long
    agree(*pair.images(prompt=["a", "b"], negative_prompt_embeds=negative))
    agree(*pair.images(prompt=None, prompt_embeds=embeds, negative_prompt=["bad", "blurry"]))


def test_every_setting_matters(ours: StableDiffusionPipeline) -> None:
    """So that what is compared above could differ."""
    plain = pixels(ours)
    changes: list[dict[str, Any]] = [
        {"prompt": "a dog"},
        {"guidance_scale": 1.0},
        {"guidance_rescale": 0.7},
        {"negative_prompt": "bad"},
        {"eta": 1.0},
        {"clip_skip": 1},
        {"seed": 1},
        {"num_inference_steps": 4},
        {"guidance_interval": (0, 400)},
    ]
    for change in changes:
        assert (pixels(ours, **change) - plain).abs().max() > 30 * CLOSE, change


def test_every_output_type_is_that_of_diffusers(pair: Pair) -> None:
    theirs, ours = pair.images(output_type="pt")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=CLOSE)
    theirs, ours = pair.images(output_type="latent")
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    theirs, ours = pair.images(output_type="pil")
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in ours)
    assert np.abs(np.asarray(theirs[0], dtype=int) - np.asarray(ours[0], dtype=int)).max() <= 1
    plain = pair.ours(PROMPT, num_inference_steps=1, return_dict=False)
    assert type(plain) is tuple
    assert plain[1] is None
    assert pair.ours(PROMPT, num_inference_steps=1).nsfw_content_detected is None


@pytest.mark.parametrize(
    ("mine", "reference"),
    [
        (StableDiffusionPipeline, diffusers.StableDiffusionPipeline),
        (StableDiffusionImg2ImgPipeline, diffusers.StableDiffusionImg2ImgPipeline),
        (StableDiffusionInpaintPipeline, diffusers.StableDiffusionInpaintPipeline),
    ],
)
def test_positional_arguments_are_those_of_diffusers(mine: Any, reference: Any) -> None:
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
    constructor = [name for name in inspect.signature(reference.__init__).parameters if name != "args"]
    assert list(inspect.signature(mine.__init__).parameters) == constructor


def test_their_pipeline_runs_with_our_scheduler(pair: Pair) -> None:
    theirs = pair.theirs
    for settings in (BASE, {**BASE, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}):
        for eta, steps in ((0.0, 5), (1.0, 4)):
            images = []
            for kind in (diffusers.DDIMScheduler, DDIMScheduler):
                theirs.scheduler = kind(**settings)
                options = {"num_inference_steps": steps, "eta": eta, "guidance_rescale": 0.7, "output_type": "np"}
                images.append(theirs(PROMPT, generator=generator(), **options).images)
            agree(images[0], images[1])


def test_their_networks_run_in_our_pipeline(first: Pair) -> None:
    """A U-Net that cannot project text and time beforehand is given them at each step."""
    pipe = silent(StableDiffusionPipeline(**{**first.ours.components, "unet": first.theirs.unet}))
    expected = pixels(first.ours, guidance_interval=(0, 500))
    torch.testing.assert_close(pixels(pipe, guidance_interval=(0, 500)), expected, rtol=0, atol=CLOSE)


# --- loading and saving ----------------------------------------------------------------------------------------------


def test_weights_go_both_ways_unchanged(pair: Pair, tmp_path: Path) -> None:
    assert type(pair.ours) is StableDiffusionPipeline
    pair.ours.save_pretrained(tmp_path)
    again = silent(diffusers.StableDiffusionPipeline.from_pretrained(tmp_path))
    for name in ("vae", "unet", "text_encoder"):
        before, after = getattr(pair.theirs, name).state_dict(), getattr(again, name).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert type(again.tokenizer).__name__ == "CLIPTokenizer"
    settings = {"num_inference_steps": 5, "output_type": "np"}
    theirs = again(PROMPT, generator=generator(), **settings).images
    pair.ours.scheduler = DDIMScheduler.from_config(again.scheduler.config)
    agree(theirs, pair.ours(PROMPT, generator=generator(), **settings).images)
    mine = silent(ddim.DiffusionPipeline.from_pretrained(tmp_path))
    agree(theirs, mine(PROMPT, generator=generator(), **settings).images)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["safety_checker"] == index["feature_extractor"] == index["image_encoder"] == [None, None]
    assert index["requires_safety_checker"] is False


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_type_is_for_all_networks(dtype: torch.dtype, first: Pair, tmp_path: Path) -> None:
    pipe = ddim.DiffusionPipeline.from_pretrained(first.folder, torch_dtype=dtype)
    assert {p.dtype for net in (pipe.vae, pipe.unet, pipe.text_encoder) for p in net.parameters()} == {dtype}
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "text_encoder" / "model.fp16.safetensors").exists()
    again = StableDiffusionPipeline.from_pretrained(tmp_path, variant="fp16", dtype=dtype, use_safetensors=True)
    assert torch.equal(again.unet.conv_in.weight, pipe.unet.conv_in.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.thin(every=2)
def test_the_example_of_diffusers_runs_with_only_the_import_changed(
    dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_reference(tmp_path, 2, prediction_type="v_prediction")
    folder_or_hub_id = tmp_path

    from ddim import DDIMScheduler, DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder_or_hub_id, torch_dtype=dtype)
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    pipe.to("cpu")
    image = pipe("A lion in galaxies, spirals, nebulae, stars, smoke", guidance_rescale=0.7).images[0]

    assert image.size == (16, 16)
    assert pipe.scheduler.config.rescale_betas_zero_snr
    assert np.asarray(image).std() > 5
    assert "50/50" in capsys.readouterr().err  # the progress


def test_a_half_precision_image_is_near_that_of_diffusers(first: Pair) -> None:
    options = {"dtype": torch.bfloat16}
    theirs = silent(diffusers.StableDiffusionPipeline.from_pretrained(first.folder, **options))
    mine = silent(StableDiffusionPipeline.from_pretrained(first.folder, **options))
    results = [pipe(PROMPT, 16, 16, 4, generator=generator(), output_type="np").images for pipe in (theirs, mine)]
    assert np.abs(results[0] - results[1]).mean() < 0.02


def edit_index(folder: Path, **entries: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def copy_of(folder: Path, to: Path) -> Path:
    silent(ddim.DiffusionPipeline.from_pretrained(folder)).save_pretrained(to)
    return to


def test_a_stored_safety_checker_is_left_where_it_is(first: Pair, tmp_path: Path) -> None:
    folder = copy_of(first.folder, tmp_path)
    edit_index(
        folder,
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
        requires_safety_checker=True,
    )
    pipe = ddim.DiffusionPipeline.from_pretrained(folder)
    assert pixels(silent(pipe)).shape == (1, 3, 16, 16)
    ddim.DiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    with pytest.raises(TypeError, match="must be None"):
        ddim.DiffusionPipeline.from_pretrained(folder, safety_checker=object())


def test_any_of_the_three_loads_the_checkpoint_of_another(first: Pair, tmp_path: Path) -> None:
    classes = (StableDiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline)
    for stored in classes:
        folder = tmp_path / stored.__name__
        stored(**first.ours.components).save_pretrained(folder)
        assert type(ddim.DiffusionPipeline.from_pretrained(folder)) is stored
        for wanted in classes:
            assert type(wanted.from_pretrained(folder)) is wanted
    with pytest.raises(CheckpointError, match="not a DDIMPipeline"):
        ddim.DDIMPipeline.from_pretrained(tmp_path / "StableDiffusionPipeline")


def test_a_part_of_another_kind_is_refused(first: Pair, tmp_path: Path) -> None:
    folder = copy_of(first.folder, tmp_path)
    for entry, says in (
        ({"unet": ["diffusers", "AutoencoderKL"]}, "names the unet 'AutoencoderKL'; known are UNet2DConditionModel"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel"),
        ({"tokenizer": ["transformers", "T5Tokenizer"]}, "T5Tokenizer"),
        ({"unet": [None, None]}, "does not say what its unet is"),
        ({"vae": ["my_code", "AutoencoderKL"]}, "never run"),
        ({"_class_name": "StableDiffusion3Pipeline"}, "StableDiffusion3Pipeline"),
        ({"_class_name": "StableDiffusionXLPipeline"}, "does not say what its text_encoder_2 is"),
    ):
        before = (folder / "model_index.json").read_text()
        edit_index(folder, **entry)
        with pytest.raises(CheckpointError, match=says) as caught:
            ddim.DiffusionPipeline.from_pretrained(folder)
        assert "model_index.json" in str(caught.value)
        (folder / "model_index.json").write_text(before)
    (folder / "tokenizer" / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match="has neither"):
        ddim.DiffusionPipeline.from_pretrained(folder)


def test_a_pipeline_may_be_without_its_text_encoder(first: Pair, tmp_path: Path) -> None:
    embeds, negative = first.ours.encode_prompt(PROMPT)
    expected = pixels(first.ours)
    pipe = silent(StableDiffusionPipeline.from_pretrained(first.folder, text_encoder=None, tokenizer=None))
    given = {"prompt": None, "prompt_embeds": embeds, "negative_prompt_embeds": negative}
    assert torch.equal(pixels(pipe, **given), expected)
    with pytest.raises(ConfigError, match="no tokenizer or no text encoder"):
        pipe(PROMPT)
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["tokenizer"] == [None, None]
    again = silent(ddim.DiffusionPipeline.from_pretrained(tmp_path))
    assert again.text_encoder is None
    assert torch.equal(pixels(again, **given), expected)


def test_only_what_is_needed_is_fetched_from_the_hub(first: Pair, tmp_path: Path, monkeypatch: Any) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    first.theirs.save_pretrained(tmp_path)
    for name in ("README.md", "unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "evil.py"):
        (tmp_path / name).write_text("not for us")
    fetched = []

    def download(repo_id: str, filename: str, **_: Any) -> str:
        if not (tmp_path / filename).is_file():
            raise EntryNotFoundError(filename)
        fetched.append(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    pipe = ddim.DiffusionPipeline.from_pretrained("owner/tiny-sd")
    assert isinstance(pipe, StableDiffusionPipeline)
    networks = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    assert set(fetched) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        *(f"{part}/{name}.safetensors" for part, name in networks.items()),
        *(f"{part}/config.json" for part in networks),
    }


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.PNDMScheduler(**SCHEDULE, skip_prk_steps=True, prediction_type="v_prediction"),
        diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing"),
        diffusers.DPMSolverMultistepScheduler(**SCHEDULE),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_any_scheduler_becomes_ddim(scheduler: Any, first: Pair, tmp_path: Path) -> None:
    folder = copy_of(first.folder, tmp_path)
    scheduler.save_pretrained(folder / "scheduler")
    edit_index(folder, scheduler=["diffusers", type(scheduler).__name__])
    pipe = ddim.DiffusionPipeline.from_pretrained(folder)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    for key in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "timestep_spacing"):
        assert pipe.scheduler.config[key] == scheduler.config[key]
    assert (pipe.scheduler.config.steps_offset, pipe.scheduler.config.clip_sample) == (1, False)


def test_the_constructor_sets_what_diffusers_sets_and_assigning_does_not(first: Pair) -> None:
    given = DDIMScheduler(**SCHEDULE)
    pipe = StableDiffusionPipeline(**{**first.ours.components, "scheduler": given})
    assert (pipe.scheduler.config.steps_offset, pipe.scheduler.config.clip_sample) == (1, False)
    assert (given.config.steps_offset, given.config.clip_sample) == (0, True)  # the caller's own is left alone
    pipe.scheduler = given
    assert pipe.scheduler is given
    right = DDIMScheduler(**BASE)
    assert StableDiffusionPipeline(**{**first.ours.components, "scheduler": right}).scheduler is right
    with pytest.raises(ConfigError, match=r"has no scheduler: assign pipe\.scheduler"):
        StableDiffusionPipeline(**{**first.ours.components, "scheduler": None})(PROMPT)
    with pytest.raises(TypeError, match="a scheduler is needed"):
        pipe.scheduler = None
    with pytest.raises(TypeError, match=r"ddim\.CLIPTokenizer"):
        StableDiffusionPipeline(**{**first.ours.components, "tokenizer": object()})


def test_public_names() -> None:
    assert ddim.StableDiffusionPipeline is StableDiffusionPipeline
    assert ddim.AutoencoderKL is AutoencoderKL
    assert ddim.CLIPTextModel is CLIPTextModel
    assert ddim.CLIPTokenizer is CLIPTokenizer
    assert ddim.UNet2DConditionModel is UNet2DConditionModel


# --- one seed, one image; threads ------------------------------------------------------------------------------------


def noise_of(pipe: StableDiffusionPipeline, **options: Any) -> Tensor:
    """What the U-Net is given first."""
    seen: list[Tensor] = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    try:
        pixels(pipe, guidance_scale=1.0, **options)
    finally:
        hook.remove()
    return seen[0]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_of_a_seed_does_not_depend_on_the_batch(eta: float, ours: StableDiffusionPipeline) -> None:
    four = pixels(ours, seed=3, num_images_per_prompt=4, eta=eta)
    noise = noise_of(ours, seed=3, num_images_per_prompt=4)
    for count in (1, 2):
        images = pixels(ours, seed=3, num_images_per_prompt=count, eta=eta)
        torch.testing.assert_close(images, four[:count], rtol=0, atol=1e-5)
        assert torch.equal(noise_of(ours, seed=3, num_images_per_prompt=count), noise[:count])
    assert (four[0] - four[1]).abs().max() > 0.01
    pair = pixels(ours, seed=3, prompt=[PROMPT, PROMPT], eta=eta)
    torch.testing.assert_close(pair, four[:2], rtol=0, atol=1e-5)
    listed = pixels(ours, seed=[9, 3], num_images_per_prompt=2, eta=eta)
    torch.testing.assert_close(listed[1:], four[:1], rtol=0, atol=1e-5)


def test_eight_threads_share_one_pipeline(ours: StableDiffusionPipeline) -> None:
    requests = [
        {
            "prompt": ["a cat", "a dog", "a red heart", PROMPT][i % 4],
            "seed": i,
            "num_inference_steps": 2 + i % 5,
            "guidance_scale": [1.0, 7.5, 3.0][i % 3],
            "guidance_rescale": [0.0, 0.7][i % 2],
            "eta": [0.0, 1.0][i % 2],
            "num_images_per_prompt": 1 + i % 2,
            "clip_skip": [None, 1][i % 2],
        }
        for i in range(24)
    ]
    config = ours.scheduler.config
    alone = [pixels(ours, **request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda request: pixels(ours, **request), requests))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert ours.scheduler.config is config
    assert ours.scheduler.num_inference_steps is None


# --- what is done once, and what is not done at all ------------------------------------------------------------------


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    original = getattr(owner, name)

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_text_and_time_are_projected_once(ours: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = count_calls(monkeypatch, ours.unet, "project_text")
    times = count_calls(monkeypatch, ours.unet, "project_time")
    encoded = count_calls(monkeypatch, ours.text_encoder, "forward")
    forwards = count_calls(monkeypatch, ours.unet, "body")  # a `forward` of ours would be given no projections
    pixels(ours, prompt=["a", "b", "c"], num_inference_steps=4)
    assert (len(texts), len(times), len(forwards)) == (1, 1, 4)
    assert [len(args[0]) for args in forwards] == [6] * 4  # one batch for both halves of guidance
    assert [len(args[0]) for args in encoded] == [3, 1]  # the same negative prompt for all


def test_guidance_is_only_run_in_its_interval(ours: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards = count_calls(monkeypatch, ours.unet, "body")  # a `forward` of ours would be given no projections
    pixels(ours, num_inference_steps=4, guidance_interval=(200, 600))  # of 751, 501, 251, 1
    assert [len(args[0]) for args in forwards] == [1, 2, 2, 1]
    whole = pixels(ours, num_inference_steps=4, guidance_interval=(0, 999))
    assert torch.equal(whole, pixels(ours, num_inference_steps=4))
    never = pixels(ours, num_inference_steps=4, guidance_interval=(2, 3))
    assert torch.equal(never, pixels(ours, num_inference_steps=4, guidance_scale=1.0))


def test_a_guidance_distilled_network_is_told_the_scale(first: Pair) -> None:
    config = {key: value for key, value in first.theirs.unet.config.items() if not key.startswith("_")}
    config["time_cond_proj_dim"] = 16
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel.from_config(config).eval()
    with torch.no_grad():
        unet.time_embedding.cond_proj.weight *= 30  # so that the scale shows
    mine = UNet2DConditionModel.from_config(config)
    mine.load_state_dict(unet.state_dict())
    own = (first.theirs.unet, first.ours.unet)
    try:
        first.theirs.unet, first.ours.unet = unet, mine.eval()
        for scale in (1.0, 8.5):
            agree(*first.images(guidance_scale=scale))
        calls = noise_of(first.ours, num_images_per_prompt=3)
        assert len(calls) == 3
    finally:
        first.theirs.unet, first.ours.unet = own


# --- callbacks and stopping ------------------------------------------------------------------------------------------


def test_a_callback_sees_what_it_asks_for(first: Pair) -> None:
    seen: dict[str, list[Any]] = {"theirs": [], "ours": []}

    def callback(name: str) -> Callable[..., dict[str, Any]]:
        def watch(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            seen[name].append((index, int(timestep), {key: value.clone() for key, value in values.items()}))
            assert pipe.num_timesteps == 3
            assert pipe.guidance_scale == 7.5
            assert pipe.do_classifier_free_guidance
            return values

        return watch

    wanted = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    for name, pipe in (("theirs", first.theirs), ("ours", first.ours)):
        pipe.scheduler = (diffusers.DDIMScheduler if name == "theirs" else DDIMScheduler)(**BASE)
        pipe(
            PROMPT,
            num_inference_steps=3,
            generator=generator(),
            callback_on_step_end=callback(name),
            callback_on_step_end_tensor_inputs=wanted,
        )
    for theirs, mine in zip(seen["theirs"], seen["ours"], strict=True):
        assert theirs[:2] == mine[:2]
        assert list(theirs[2]) == list(mine[2]) == wanted
        for key in wanted:
            torch.testing.assert_close(mine[2][key], theirs[2][key], rtol=1e-4, atol=1e-4)
    assert (first.ours.num_timesteps, first.ours.guidance_scale) == (3, 7.5)  # of the last call, as in diffusers
    assert (first.theirs.num_timesteps, first.theirs.guidance_scale) == (3, 7.5)
    fresh = StableDiffusionPipeline(**first.ours.components)
    assert fresh.num_timesteps is fresh.guidance_scale is None


def test_a_callback_may_change_things(first: Pair) -> None:
    """diffusers' own example: guidance is given up after the first step."""

    def give_up(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 0:
            pipe._guidance_scale = 0.0
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[-1]
        if index == 1:
            values["latents"] = values["latents"] * 0.9
        return values

    agree(
        *first.images(
            num_images_per_prompt=2,
            callback_on_step_end=give_up,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        )
    )


def test_other_texts_may_come_from_a_callback(ours: StableDiffusionPipeline) -> None:
    other, bad = ours.encode_prompt("a blue castle", negative_prompt="bad")
    assert bad is not None
    names = ["prompt_embeds", "negative_prompt_embeds"]

    def change(values: dict[str, Any]) -> Tensor:
        return pixels(
            ours,
            callback_on_step_end=lambda *_: values,
            callback_on_step_end_tensor_inputs=names,
        )

    plain = pixels(ours)
    assert torch.equal(change({}), plain)
    both = torch.cat([bad, other])
    for values in ({"prompt_embeds": both}, {"negative_prompt_embeds": bad}):
        assert (change(values) - plain).abs().max() > 1e-3
    with pytest.raises(ValueError, match="needed are 1 texts"):
        change({"prompt_embeds": torch.cat([both, both])})
    with pytest.raises(ValueError, match="the callback's latents"):
        change({"latents": torch.zeros(1)})


def test_a_preview_is_the_predicted_image(ours: StableDiffusionPipeline) -> None:
    previews = []
    result = pixels(
        ours,
        callback_on_step_end=lambda _, __, ___, values: previews.append(values["pred_original_sample"]),
        callback_on_step_end_tensor_inputs=["pred_original_sample"],
        output_type="latent",
    )
    assert [preview.shape for preview in previews] == [(1, 4, 8, 8)] * 3
    assert (previews[-1] - result).abs().max() < (previews[0] - result).abs().max()


def test_stopping_early(ours: StableDiffusionPipeline) -> None:
    steps: list[int] = []

    def stop(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> Any:
        steps.append(index)
        return False if index == 1 else None

    def interrupt(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> Any:
        steps.append(index)
        pipe._interrupt = index == 1
        assert pipe.interrupt is (index == 1)
        return values

    for callback in (stop, interrupt):
        steps.clear()
        image = pixels(ours, num_inference_steps=5, callback_on_step_end=callback)
        assert steps == [0, 1]
        assert image.shape == (1, 3, 16, 16)
    steps.clear()
    assert torch.equal(pixels(ours, num_inference_steps=5), pixels(ours, num_inference_steps=5))
    assert not ours.interrupt


def test_a_thread_interrupts_its_own_call_and_an_idle_one_all(ours: StableDiffusionPipeline) -> None:
    barrier = threading.Barrier(2)
    done: dict[int, int] = {}

    def call(number: int) -> None:
        def callback(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> None:
            done[number] = index + 1
            if index == 1:
                barrier.wait(30)
                if number == 0:
                    pipe._interrupt = True
                barrier.wait(30)

        pixels(ours, num_inference_steps=4, callback_on_step_end=callback)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(call, range(2)))
    assert done == {0: 2, 1: 4}

    reached, go_on = threading.Barrier(3), threading.Event()

    def wait(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> None:
        done[threading.get_ident()] = index + 1
        if index == 0:
            reached.wait(30)
            go_on.wait(30)

    done.clear()
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(pixels, ours, num_inference_steps=4, callback_on_step_end=wait) for _ in range(2)]
        reached.wait(30)
        ours._interrupt = True
        go_on.set()
        assert all(future.result().shape == (1, 3, 16, 16) for future in futures)
    assert list(done.values()) == [1, 1]


# --- memory, devices -------------------------------------------------------------------------------------------------


def test_memory_helpers(ours: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = pixels(ours, num_images_per_prompt=2)
    ours.enable_attention_slicing()
    ours.enable_xformers_memory_efficient_attention()
    ours.enable_vae_slicing()
    assert ours.vae.use_slicing
    decoded = count_calls(monkeypatch, ours.vae.decoder, "forward")
    torch.testing.assert_close(pixels(ours, num_images_per_prompt=2), plain, rtol=0, atol=1e-5)
    assert len(decoded) == 2
    ours.disable_vae_slicing()
    ours.enable_vae_tiling()
    assert ours.vae.use_tiling
    assert pixels(ours, height=40, width=24).shape == (1, 3, 40, 24)
    assert len(decoded) > 3
    ours.disable_vae_tiling()
    ours.disable_attention_slicing()
    ours.disable_xformers_memory_efficient_attention()
    assert (ours.vae.use_slicing, ours.vae.use_tiling) == (False, False)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_offloading_needs_somewhere_to_go(ours: StableDiffusionPipeline) -> None:
    for options in ({}, {"gpu_id": 0}, {"device": "cpu"}, {"device": "cuda"}):
        with pytest.raises(RuntimeError, match="accelerator"):
            ours.enable_model_cpu_offload(**options)
    assert pixels(ours).shape == (1, 3, 16, 16)


def test_offloaded_networks_are_brought_where_they_run_and_back(first: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = silent(StableDiffusionPipeline.from_pretrained(first.folder))
    expected = pixels(pipe)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    pipe.enable_model_cpu_offload(1)
    assert pipe.device == torch.device("cuda", 1)
    pipe._offload = torch.device("cpu")
    moves: list[str] = []

    def watch(name: str) -> Callable[..., Any]:
        def to(target: Any) -> None:
            moves.append(f"{name} {target!s}")

        return to

    for name in ("text_encoder", "unet", "vae"):
        monkeypatch.setattr(getattr(pipe, name), "to", watch(name))
    assert torch.equal(pixels(pipe), expected)
    assert moves == [f"{name} cpu" for name in ("text_encoder", "unet", "vae") for _ in range(2)]


def test_to_and_the_type_of_latents(first: Pair) -> None:
    pipe = silent(StableDiffusionPipeline.from_pretrained(first.folder))
    assert pipe.to(torch.bfloat16).dtype == torch.bfloat16
    assert pixels(pipe, output_type="latent").dtype == torch.bfloat16
    pipe.vae.to(torch.float32)  # as people do who see artefacts
    assert pixels(pipe).dtype == torch.float32
    assert pipe.device == torch.device("cpu")


def test_a_compiled_wrapper_is_seen_through(first: Pair) -> None:
    class Wrapped(nn.Module):  # as torch.compile's: passes on what it does not have
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self._orig_mod = inner

        def forward(self, *args: Any, **options: Any) -> Any:
            return self._orig_mod(*args, **options)

        def __getattr__(self, name: str) -> Any:
            return super().__getattr__(name) if name == "_orig_mod" else getattr(self._orig_mod, name)

    wrapped: Any = Wrapped(first.ours.unet)
    pipe = silent(StableDiffusionPipeline(**{**first.ours.components, "unet": wrapped}))
    assert torch.equal(pixels(pipe), pixels(first.ours))


def test_prompts_are_encoded_as_in_diffusers(pair: Pair) -> None:
    options: dict[str, Any] = {"num_images_per_prompt": 2, "negative_prompt": ["bad", "blurry"], "clip_skip": 1}
    theirs = pair.theirs.encode_prompt(["a cat", "a dog"], "cpu", do_classifier_free_guidance=True, **options)
    mine = pair.ours.encode_prompt(["a cat", "a dog"], "cpu", do_classifier_free_guidance=True, **options)
    for reference, own in zip(theirs, mine, strict=True):
        torch.testing.assert_close(own, reference, rtol=0, atol=1e-5)
    assert pair.ours.encode_prompt("a cat", do_classifier_free_guidance=False)[1] is None


# --- size ------------------------------------------------------------------------------------------------------------


def test_sizes(first: Pair, ours: StableDiffusionPipeline) -> None:
    assert pixels(ours).shape == (1, 3, 16, 16)
    assert pixels(ours, width=20).shape == (1, 3, 16, 20)
    assert pixels(ours, latents=torch.zeros(1, 4, 6, 10), seed=None).shape == (1, 3, 12, 20)
    unet = ours.unet
    config = unet.config
    try:
        unet.register_to_config(sample_size=(4, 6))
        assert pixels(ours).shape == (1, 3, 8, 12)
        unet.register_to_config(sample_size=32, _diffusers_version="0.6.0")
        assert pixels(ours, num_inference_steps=1).shape == (1, 3, 128, 128)
        for wrong in (None, "8", (1, 2, 3)):
            unet.register_to_config(sample_size=wrong)
            with pytest.raises(ConfigError, match="give height and width"):
                ours(PROMPT)
    finally:
        unet._internal_dict = config


# --- errors ----------------------------------------------------------------------------------------------------------

EMBEDS = torch.zeros(1, 77, 32)
ERRORS: list[tuple[dict[str, Any], Any, str]] = [
    ({"prompt": None}, ValueError, "give either prompt or prompt_embeds$"),
    ({"prompt_embeds": EMBEDS}, ValueError, "not both"),
    ({"prompt": 3}, TypeError, "prompt must be a str or a list"),
    ({"prompt": [3]}, TypeError, "prompt must be a str or a list"),
    ({"prompt": [["a"]]}, TypeError, "prompt must be a str or a list"),
    ({"prompt": []}, ValueError, "prompt is an empty list"),
    ({"prompt": {"a": 1}}, TypeError, "prompt must be a str or a list"),
    ({"prompt": "\ud800"}, ValueError, "no valid Unicode"),
    ({"negative_prompt": 3}, TypeError, "negative_prompt must be a str or a list"),
    ({"negative_prompt": ["a", "b"]}, ValueError, "2 negative prompts were given for 1 prompts"),
    ({"prompt": ["a", "b"], "negative_prompt": ["a"]}, ValueError, "1 negative prompts were given for 2 prompts"),
    ({"negative_prompt": "a", "negative_prompt_embeds": EMBEDS}, ValueError, "negative_prompt or negative_prompt_emb"),
    ({"negative_prompt_embeds": torch.zeros(2, 77, 32)}, ValueError, "do not fit 1 prompts"),
    ({"negative_prompt_embeds": torch.zeros(1, 70, 32)}, ValueError, "negative ones"),
    ({"prompt": None, "prompt_embeds": torch.zeros(77, 32)}, ValueError, "must have shape"),
    ({"prompt": None, "prompt_embeds": [[1]]}, TypeError, "prompt_embeds must be a tensor"),
    ({"prompt": None, "prompt_embeds": torch.zeros(1, 77, 31)}, ValueError, "31|32"),
    (
        {"prompt": None, "prompt_embeds": EMBEDS, "negative_prompt_embeds": torch.zeros(1, 70, 32)},
        ValueError,
        "do not fit prompt_embeds of shape",
    ),
    ({"prompt": None, "prompt_embeds": torch.zeros(1, 99, 32)}, ValueError, "99 tokens"),
    ({"height": 15}, ValueError, "height must be a multiple of 2"),
    ({"width": 0}, ValueError, "width must be a positive int"),
    ({"width": 16.0}, ValueError, "width must be a positive int"),
    ({"height": True}, ValueError, "height must be a positive int"),
    ({"num_images_per_prompt": 0}, ValueError, "num_images_per_prompt"),
    ({"num_images_per_prompt": "2"}, ValueError, "num_images_per_prompt"),
    ({"latents": torch.zeros(1, 4, 8, 9), "width": 16}, ValueError, "latents have shape"),
    ({"latents": torch.zeros(1, 4, 8, 9), "width": 16, "height": 16}, ValueError, "latents have shape"),
    ({"latents": torch.zeros(2, 4, 8, 8)}, ValueError, r"needed is \(1, 4, 8, 8\)"),
    ({"latents": [1]}, TypeError, "latents must be a tensor"),
    ({"output_type": "jpeg"}, ValueError, "output_type='jpeg' is none of pil, np, pt, latent"),
    ({"callback_on_step_end_tensor_inputs": ["noise"]}, ValueError, "callback_on_step_end_tensor_inputs"),
    ({"generator": 3}, TypeError, "generator must be a torch.Generator"),
    ({"generator": [generator()] * 3}, ValueError, "3 generators were given for a batch of 1"),
    ({"generator": generator(), "seed": 1}, ValueError, "a generator or a seed"),
    ({"seed": -1}, ValueError, "a seed must be an int of 0 or more"),
    ({"seed": [1, 2]}, ValueError, "2 seeds were given for 1 images"),
    ({"num_inference_steps": 0}, ConfigError, "num_inference_steps"),
    ({"num_inference_steps": 2000}, ConfigError, "num_inference_steps"),
    ({"timesteps": [1, 2]}, ConfigError, "fall strictly"),
    ({"eta": -1.0}, ConfigError, "eta"),
    ({"guidance_scale": float("nan")}, ConfigError, "guidance_scale must be finite"),
    ({"guidance_rescale": 2.0}, ConfigError, "guidance_rescale"),
    ({"guidance_interval": (5, 1)}, ConfigError, "guidance_interval"),
    ({"clip_skip": 4}, ConfigError, "clip_skip must be an int in 0…3"),
    ({"clip_skip": -1}, ConfigError, "clip_skip"),
    ({"sigmas": [1.0]}, ValueError, "sigmas is not implemented"),
    ({"ip_adapter_image": 1}, ValueError, "ip_adapter_image is not implemented"),
    ({"cross_attention_kwargs": []}, TypeError, "cross_attention_kwargs must be a dict"),
    ({"callback_steps": 0}, ValueError, "callback_steps must be a positive int"),
    ({"callback": print, "callback_on_step_end": print}, ValueError, "its older kind, not both"),
    ({"strength": 0.5, "mask_image": torch.zeros(16, 16)}, ValueError, "mask_image needs the image"),
]


@pytest.mark.parametrize(("options", "error", "says"), ERRORS)
def test_what_cannot_work_is_refused_before_anything_is_run(
    options: dict[str, Any], error: Any, says: str, ours: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours.unet, "forward", lambda *_, **__: pytest.fail("the network was run"))
    with pytest.raises(error, match=says):
        ours(**{"prompt": PROMPT, **options})


def test_zero_terminal_snr_needs_another_prediction(ours: StableDiffusionPipeline) -> None:
    ours.scheduler = DDIMScheduler.from_config(
        ours.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    with pytest.raises(ConfigError, match="v_prediction"):
        ours(PROMPT)


def test_nan_names_the_step(first: Pair) -> None:
    pipe = silent(StableDiffusionPipeline.from_pretrained(first.folder))
    with torch.no_grad():
        pipe.unet.conv_out.bias[0] = torch.nan
    with pytest.raises(NonFiniteError, match="step 1 of 3"):
        pixels(pipe)
