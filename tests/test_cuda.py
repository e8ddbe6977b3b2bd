"""What must hold on a CUDA device, where most people draw and train: the CPU's results, and no needless waiting.

Without such a device the module is skipped. `DDIM_TEST_DEVICE=cpu` runs it on the CPU, without what is about waiting,
so that somebody without the device can still change it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny_lora import EVERY, known, named, present
from tiny_training import (
    COMMON,
    Place,
    assert_same,
    assert_same_runs,
    interrupt,
    lora_settings,
    losses_of,
    place,
    text_settings,
    vae_settings,
)
from torch import Tensor

from ddim import DDIMPipeline, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from ddim.checkpoint import read_tensors
from ddim.cli import main
from ddim.cli.opening import open_pipeline
from ddim.cli.sample import SampleSettings
from ddim.evaluation import FeatureStatistics, frechet_distance, load_features
from ddim.interpolation import slerp
from ddim.inversion import invert, invert_bidirectional, sample_bidirectional
from ddim.noise import gaussian_noise, seeded_generators
from ddim.sampling import sample
from ddim.serving import Engine, Request
from ddim.serving.batches import Batch
from ddim.training import distill, train
from ddim.training.checkpoints import checkpoints
from ddim.training.run import make_trainer
from ddim.training.settings import DistillSettings, LoraSettings, PixelSettings, TrainSettings, VAESettings
from ddim.training.trainer import Trainer

__all__ = ["place"]

DEVICE = os.environ.get("DDIM_TEST_DEVICE", "cuda")
IS_CUDA = DEVICE.startswith("cuda")
CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.skipif(IS_CUDA and not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"),
    pytest.mark.filterwarnings("ignore"),  # what CUDA's libraries warn of is not for us to mend
]
only_cuda = pytest.mark.skipif(not IS_CUDA, reason="on a CPU nothing can be waited for")

# Two devices add the same numbers in another order, and the steps of a run carry that on.
NEAR, ON_AVERAGE = 0.02, 1e-3  # of pictures in [0, 1]: the largest difference, and the mean one

# What half precision may change beside float32, from the same latents. On a CPU float16, with 11 bits, changes the
# pictures of the bundled models by .0046 at most and .00018 on average, bfloat16, with 8, by .052 and .0018.
HALF = {torch.float16: (0.1, 1e-3), torch.bfloat16: (0.3, 0.01)}


# --- what the tests share --------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _whole_float32() -> Iterator[None]:
    """Without TF32, whose products have ten bits: the device is compared with the CPU."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def _reproducible() -> Iterator[None]:
    """With those of CUDA's algorithms that always give the same bits, where there are such."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = before


def loaded(model: str, device: str = DEVICE, dtype: torch.dtype | None = None) -> Any:
    pipe: Any = DiffusionPipeline.from_pretrained(model, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def emoji() -> tuple[Any, Any]:
    """The bundled text-to-image model on the CPU, and on the device."""
    return loaded("emoji", "cpu"), loaded("emoji")


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any]:
    """The bundled class-conditional model on the CPU, and on the device."""
    return loaded("digits", "cpu"), loaded("digits")


def pixels(pipe: Any, *args: Any, **options: Any) -> np.ndarray[Any, Any]:
    return np.asarray(pipe(*args, output_type="np", **options).images, dtype=np.float64)


def assert_near(found: Any, expected: Any, most: float = NEAR, mean: float = ON_AVERAGE) -> None:
    difference = np.abs(np.asarray(found, dtype=np.float64) - np.asarray(expected, dtype=np.float64))
    assert np.isfinite(difference).all()
    assert difference.max() < most, f"at most {difference.max():.2g}, on average {difference.mean():.2g}"
    assert difference.mean() < mean, f"at most {difference.max():.2g}, on average {difference.mean():.2g}"


def latents_for(pipe: Any, dtype: torch.dtype, count: int = 2) -> Tensor:
    """Noises to begin from that are numbers of this type, in float32: those of a seed differ from type to type."""
    drawn = gaussian_noise(pipe.sample_shape(count), seeded_generators(0, count), CPU, torch.float32)
    return drawn.to(dtype).float()


def numbers(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().cpu().double().numpy()


def drawing(size: int = 64) -> Image.Image:
    image = Image.new("RGB", (size, size), (255, 255, 255))
    ImageDraw.Draw(image).ellipse((size // 4, size // 8, size * 3 // 4, size * 7 // 8), fill=(220, 40, 30))
    return image


def mask(size: int = 64) -> Image.Image:
    image = Image.new("L", (size, size))
    ImageDraw.Draw(image).rectangle((size // 2, 0, size, size), fill=255)
    return image


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the device within raises a RuntimeError."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- pictures --------------------------------------------------------------------------------------------------------

PROMPTS = ["a red heart, noto style", "a grinning face on a black background"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="as recommended, of second order at searched timesteps"),
        pytest.param({"num_inference_steps": 6, "order": 1, "guidance_scale": 3.0}, id="first order"),
        pytest.param({"num_inference_steps": 6, "order": 2, "guidance_scale": 1.0}, id="without guidance"),
        pytest.param({"num_inference_steps": 6, "eta": 1.0}, id="with noise at each step"),
        pytest.param({"num_inference_steps": 6, "guidance_interval": (100, 800)}, id="guided for a while"),
    ],
)
def test_texts_give_the_pictures_of_the_cpu(options: dict[str, Any], emoji: tuple[Any, Any]) -> None:
    expected, found = (pixels(pipe, PROMPTS, seed=[0, 1], **options) for pipe in emoji)
    assert expected.std() > 0.1
    assert_near(found, expected)


def test_the_usual_precision_of_convolutions_gives_nearly_the_same_pictures(emoji: tuple[Any, Any]) -> None:
    """PyTorch's convolutions use TF32 unless told: that is what people get who say nothing."""
    torch.backends.cudnn.allow_tf32 = True
    expected, found = (pixels(pipe, PROMPTS, seed=[0, 1]) for pipe in emoji)
    assert_near(found, expected, most=0.3, mean=0.01)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="as recommended"),
        pytest.param({"guidance_scale": 2.0, "num_inference_steps": 8}, id="guided"),
        pytest.param({"eta": 1.0, "num_inference_steps": 8}, id="with noise at each step"),
    ],
)
def test_classes_give_the_pictures_of_the_cpu(options: dict[str, Any], digits: tuple[Any, Any]) -> None:
    expected, found = (pixels(pipe, class_labels=[3, 7, 3, 0], seed=0, **options) for pipe in digits)
    assert expected.std() > 0.1
    assert_near(found, expected)


def test_labels_may_be_on_the_device(digits: tuple[Any, Any]) -> None:
    labels = torch.tensor([3, 7], device=DEVICE)
    assert_near(pixels(digits[1], class_labels=labels, seed=0), pixels(digits[0], class_labels=[3, 7], seed=0))


@pytest.mark.parametrize("is_masked", [False, True], ids=["image to image", "inpainting"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_pictures_give_the_pictures_of_the_cpu(strength: float, is_masked: bool, emoji: tuple[Any, Any]) -> None:
    given: dict[str, Any] = {"image": drawing(), "strength": strength, "num_inference_steps": 6, "seed": 0}
    if is_masked:
        given["mask_image"] = mask()
    expected, found = (pixels(pipe, "a blue heart", **given) for pipe in emoji)
    assert_near(found, expected)


def test_what_is_encoded_is_decoded_as_on_the_cpu(emoji: tuple[Any, Any], digits: tuple[Any, Any]) -> None:
    encoded = [pipe.encode(drawing()) for pipe in emoji]
    assert encoded[1].device.type == torch.device(DEVICE).type
    np.testing.assert_allclose(numbers(encoded[1]), numbers(encoded[0]), rtol=0, atol=5e-3)
    assert_near(emoji[1].decode(encoded[1], "np"), emoji[0].decode(encoded[0], "np"))
    small = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    assert_near(digits[1].decode(digits[1].encode(small), "np"), digits[0].decode(digits[0].encode(small), "np"))


def test_an_inversion_goes_there_and_back(digits: tuple[Any, Any], emoji: tuple[Any, Any]) -> None:
    """The sampler that can be reversed comes back to the picture; and the noise is the CPU's."""
    found = []
    for pipe in digits:
        scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
        plan = scheduler.plan(10, spacing="trailing")
        x0 = pipe(class_labels=[3, 7], seed=0, num_inference_steps=10, output_type="pt").images.to(pipe.device) * 2 - 1
        denoiser = pipe.denoiser(plan, 2, class_labels=[3, 7])
        with torch.no_grad():
            up = list(invert_bidirectional(denoiser, x0, plan))
            *_, back = sample_bidirectional(denoiser, up[-1].sample, plan, up[-2].sample)
        np.testing.assert_allclose(numbers(back.sample), numbers(x0), rtol=0, atol=0.01)
        found.append(numbers(up[0].sample))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=0.05)
    pipe, plan = emoji[1], emoji[1].scheduler.plan(20)
    denoiser, x0 = pipe.denoiser(plan, 1, prompt="a red heart"), pipe.encode(drawing())
    with torch.no_grad():
        *_, up_there = invert(denoiser, x0, plan)
        *_, down_here = sample(denoiser, up_there.sample, plan)
    assert float((down_here.sample - x0).square().mean().sqrt()) < 0.5 * float(x0.std())


def test_noise_of_a_seed_is_that_of_the_cpu() -> None:
    shape = (3, 4, 16, 16)
    drawn = gaussian_noise(shape, seeded_generators(5, 3), torch.device(DEVICE), torch.float32)
    assert drawn.device.type == torch.device(DEVICE).type
    assert torch.equal(drawn.cpu(), gaussian_noise(shape, seeded_generators(5, 3), CPU, torch.float32))
    mixed = [torch.Generator().manual_seed(0), torch.Generator(DEVICE).manual_seed(0)]
    both = gaussian_noise((2, 4, 16, 16), mixed, torch.device(DEVICE), torch.float32)
    alone = gaussian_noise((1, 4, 16, 16), torch.Generator().manual_seed(0), torch.device(DEVICE), torch.float32)
    assert torch.equal(both[:1], alone)


def test_noise_is_not_overwritten_before_the_device_has_read_it() -> None:
    """It is copied without waiting: the host's memory is used again at once, while the device is busy."""
    busy = torch.randn(2048, 2048, device=DEVICE) if IS_CUDA else torch.randn(8, 8)
    shape, found = (64, 4, 32, 32), []
    for seed in range(20):
        for _ in range(10):
            busy = (busy @ busy).clamp(-1, 1)
        found.append(gaussian_noise(shape, torch.Generator().manual_seed(seed), torch.device(DEVICE), torch.float32))
    for seed, drawn in enumerate(found):
        assert torch.equal(drawn.cpu(), torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def test_samples_are_interpolated_on_the_device() -> None:
    a, b = torch.randn(2, 1, 4, 8, 8)
    found = slerp(a.to(DEVICE), b.to(DEVICE), 0.3)
    assert found.device.type == torch.device(DEVICE).type
    torch.testing.assert_close(found.cpu(), slerp(a, b, 0.3), rtol=1e-5, atol=1e-6)


def test_a_model_may_be_loaded_onto_the_device(emoji: tuple[Any, Any]) -> None:
    pipe: Any = DiffusionPipeline.from_pretrained("emoji", device_map=DEVICE)
    pipe.set_progress_bar_config(disable=True)
    assert {p.device.type for part in ("unet", "vae", "text_encoder") for p in getattr(pipe, part).parameters()} == {
        torch.device(DEVICE).type
    }
    again = pixels(pipe, PROMPTS[:1], seed=[0], num_inference_steps=2)
    assert_near(again, pixels(emoji[1], PROMPTS[:1], seed=[0], num_inference_steps=2))


def test_an_engine_gives_the_pictures_of_the_cpu(emoji: tuple[Any, Any], digits: tuple[Any, Any]) -> None:
    """Requests that differ in all that may differ, drawn together."""
    texts = [
        Request(prompt=PROMPTS[0], seed=0),
        Request(prompt=PROMPTS[1], seed=1, steps=6, eta=1.0, guidance_interval=(100, 800)),
        Request(prompt=PROMPTS[1], seed=2, steps=5, guidance_scale=1.0, previews=2),
        Request(prompt="a blue heart", seed=3, steps=6, image=drawing(), strength=0.5),
        Request(prompt="a blue heart", seed=4, steps=8, image=drawing(), mask=mask(), eta=0.5),
    ]
    classes = [Request(class_label=3, seed=0), Request(class_label=7, seed=1, steps=8, eta=1.0, guidance_scale=2.0)]
    for (host, device), requests in ((emoji, texts), (digits, classes)):
        pictures = []
        for pipe in (host, device):
            with Engine(pipe) as engine:
                pictures.append([np.asarray(f.result(100).image) / 255 for f in engine.submit_all(requests)])
        assert_near(pictures[1], pictures[0], most=2 * NEAR)  # bytes


# --- half precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("model", ["emoji", "digits"])
def test_half_precision_draws_nearly_the_same(model: str, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    asked: dict[str, Any] = {"prompt": PROMPTS} if model == "emoji" else {"class_labels": [3, 7]}
    pipe, (exact, _) = loaded(model, dtype=dtype), request.getfixturevalue(model)
    assert pipe.dtype == dtype
    asked["latents"] = latents_for(exact, dtype)
    expected, found = pixels(exact, **asked), pixels(pipe, **asked)
    assert_near(found, expected, *HALF[dtype])
    assert np.abs(found - expected).max() > 1e-5  # it is another precision


def test_noise_of_a_seed_in_half_precision_is_that_of_the_cpu() -> None:
    shape = (2, 4, 16, 16)
    for dtype in HALF:
        drawn = gaussian_noise(shape, seeded_generators(5, 2), torch.device(DEVICE), dtype)
        assert drawn.dtype == dtype
        assert torch.equal(drawn.cpu(), gaussian_noise(shape, seeded_generators(5, 2), CPU, dtype))


def test_half_precision_in_channels_last_draws_nearly_the_same(emoji: tuple[Any, Any]) -> None:
    pipe = loaded("emoji", dtype=torch.float16)
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    latents = latents_for(emoji[0], torch.float16)
    found, expected = (pixels(each, PROMPTS, latents=latents) for each in (pipe, emoji[0]))
    assert_near(found, expected, *HALF[torch.float16])


# --- the host does not wait ------------------------------------------------------------------------------------------


@only_cuda
def test_no_tick_of_an_engine_waits(emoji: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    own, ticks = Batch.advance, []

    def advance(self: Batch, samples: Any) -> Any:
        if not ticks:
            torch.cuda.synchronize()
            ticks.append(own(self, samples))  # the first one makes ready what is kept
            return ticks[0]
        torch.cuda.set_sync_debug_mode("error")
        try:
            ticks.append(own(self, samples))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return ticks[-1]

    monkeypatch.setattr(Batch, "advance", advance)
    requests = [
        Request(prompt=PROMPTS[0], seed=0, steps=12, guidance_interval=(100, 700)),
        Request(prompt=PROMPTS[1], seed=1, steps=8, eta=1.0),
        Request(prompt=PROMPTS[1], seed=2, steps=9, order=2, guidance_scale=2.0, image=drawing(), mask=mask()),
    ]
    with Engine(emoji[1]) as engine:
        for future in engine.submit_all(requests):
            future.result(100)
    assert len(ticks) >= 12


@only_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param("emoji", {"guidance_scale": 3.0, "guidance_rescale": 0.7}, id="texts"),
        pytest.param("emoji", {"guidance_scale": 3.0, "guidance_interval": (100, 800)}, id="guided for a while"),
        pytest.param("digits", {"class_labels": [3, 7], "guidance_scale": 2.0}, id="classes"),
        pytest.param("digits", {"class_labels": [3, 7]}, id="classes without guidance"),
    ],
)
@pytest.mark.parametrize(
    "plan_options",
    [
        pytest.param({"eta": 0.0}, id="DDIM"),
        pytest.param({"eta": 0.0, "order": 2}, id="second order"),
        pytest.param({"eta": 1.0}, id="DDPM"),
    ],
)
def test_no_step_of_the_loop_waits(
    model: str, options: dict[str, Any], plan_options: dict[str, Any], dtype: torch.dtype
) -> None:
    pipe = loaded(model, dtype=dtype)
    plan = pipe.scheduler.plan(4, spacing="trailing", **plan_options)
    x = torch.randn(pipe.sample_shape(2), device=DEVICE, dtype=dtype)
    with torch.no_grad():
        for generator in (None, torch.Generator(DEVICE).manual_seed(0), torch.Generator(), seeded_generators(0, 2)):
            denoiser = pipe.denoiser(plan, 2, **options)
            list(sample(denoiser, x, plan, generator=generator))  # what is made at the first use
            run = sample(denoiser, x, plan, generator=generator)
            with no_waiting():
                steps = [next(run) for _ in range(len(plan))]
            run.close()
            assert torch.isfinite(steps[-1].sample).all()


@only_cuda
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="texts"),
        pytest.param({"image": drawing()}, id="image to image"),
        pytest.param({"image": drawing(), "mask_image": mask()}, id="inpainting"),
        pytest.param({"image": drawing(), "eta": 1.0}, id="with noise at each step"),
    ],
)
def test_no_step_of_a_pipeline_waits(options: dict[str, Any], emoji: tuple[Any, Any]) -> None:
    """From the end of the first step to that of the last."""
    seen: list[int] = []

    def watch(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        torch.cuda.set_sync_debug_mode("error" if index + 1 < pipe.num_timesteps else "default")
        seen.append(index)
        return {}

    given: dict[str, Any] = {"num_inference_steps": 6, "seed": 0, "output_type": "latent", **options}
    emoji[1]("a red heart", **given)
    try:
        emoji[1]("a red heart", callback_on_step_end=watch, **given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(seen) > 2


@only_cuda
@pytest.mark.parametrize("place_of_timesteps", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "config",
    [{"clip_sample": False}, {}, {"thresholding": True, "sample_max_value": 1.5}],
    ids=["plain", "clip", "dynamic"],
)
def test_no_step_of_the_scheduler_waits(config: dict[str, Any], place_of_timesteps: str) -> None:
    scheduler = DDIMScheduler(**config)
    scheduler.set_timesteps(10, device=place_of_timesteps)
    x, out = torch.randn(2, 2, 4, 16, 16, device=DEVICE)
    options: list[dict[str, Any]] = [
        {},
        {"eta": 0.5},
        {"eta": 0.5, "generator": torch.Generator(DEVICE)},
        {"eta": 0.5, "generator": torch.Generator()},
        {"eta": 0.5, "variance_noise": torch.randn_like(x)},
        {"use_clipped_model_output": True},
    ]
    for given in options:
        scheduler.step(out, scheduler.timesteps[0], x, **given)
        with no_waiting():
            for timestep in scheduler.timesteps:
                scheduler.step(out, timestep, x, **given)


@only_cuda
def test_the_forward_process_does_not_wait() -> None:
    scheduler = DDIMScheduler()
    x, noise = torch.randn(2, 3, 4, 8, 8, device=DEVICE)
    timesteps = torch.tensor([0, 500, 999], device=DEVICE)
    scheduler.add_noise(x, noise, timesteps)
    with no_waiting():
        for each in (timesteps, 500, torch.tensor(500), torch.tensor([500])):
            scheduler.add_noise(x, noise, each)
            scheduler.get_velocity(x, noise, each)


# --- the scheduler ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (3, 4, 256, 128)], ids=["small", "large"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_step_gives_the_numbers_of_the_cpu(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, out, noise = torch.randn(3, *shape).to(dtype)
    close = 1e-4 if dtype == torch.float32 else 0.02
    for config in ({"clip_sample": False}, {"clip_sample": True}, {"thresholding": True, "sample_max_value": 1.5}):
        scheduler = DDIMScheduler(prediction_type=kind, **config)
        scheduler.set_timesteps(10)
        for given in ({}, {"eta": 1.0, "variance_noise": noise}, {"use_clipped_model_output": True}):
            timestep = scheduler.timesteps[4]
            expected = scheduler.step(out, timestep, x, **given)
            moved = {name: v.to(DEVICE) if isinstance(v, Tensor) else v for name, v in given.items()}
            for each in (
                timestep,
                int(timestep),
                timestep.to(DEVICE),
                timestep.repeat(3).to(DEVICE),
                timestep.repeat(3),
            ):
                found = scheduler.step(out.to(DEVICE), each, x.to(DEVICE), **moved)
                for mine, theirs in zip(found, expected, strict=True):
                    assert mine.dtype == dtype
                    assert mine.device.type == torch.device(DEVICE).type
                    np.testing.assert_allclose(numbers(mine), numbers(theirs), rtol=close, atol=close)


def test_a_step_draws_its_noise_where_the_generator_is() -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    x, out = torch.randn(2, 2, 4, 8, 8)

    def step(where: str, generator: Any) -> Tensor:
        prev: Tensor = scheduler.step(
            out.to(where), scheduler.timesteps[0], x.to(where), eta=1.0, generator=generator
        ).prev_sample
        return prev.cpu()

    expected = step("cpu", torch.Generator().manual_seed(1))
    torch.testing.assert_close(step(DEVICE, torch.Generator().manual_seed(1)), expected, rtol=1e-4, atol=1e-5)
    pair = [step(where, seeded_generators(1, 2)) for where in ("cpu", DEVICE)]
    torch.testing.assert_close(pair[1], pair[0], rtol=1e-4, atol=1e-5)
    first, second = (step(DEVICE, torch.Generator(DEVICE).manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_noising_gives_the_numbers_of_the_cpu(dtype: torch.dtype) -> None:
    scheduler = DDIMScheduler()
    x, noise = torch.randn(2, 3, 4, 8, 8).to(dtype)
    close = 1e-5 if dtype == torch.float32 else 5e-3
    for timesteps in (torch.tensor([0, 500, 999]), torch.tensor(0), torch.tensor([999])):
        for method in (scheduler.add_noise, scheduler.get_velocity):
            expected = method(x, noise, timesteps)
            for each in (timesteps, timesteps.to(DEVICE)):
                found = method(x.to(DEVICE), noise.to(DEVICE), each)
                assert found.dtype == dtype
                np.testing.assert_allclose(numbers(found), numbers(expected), rtol=close, atol=close)
    assert torch.equal(
        scheduler.add_noise(x.to(DEVICE), noise.to(DEVICE), 7),
        scheduler.add_noise(x.to(DEVICE), noise.to(DEVICE), torch.tensor([7], device=DEVICE)),
    )


def test_a_schedule_may_be_moved_to_the_device() -> None:
    """As training scripts do it; the plan stays what it was."""
    scheduler = DDIMScheduler()
    expected = scheduler.plan(10).alphas_cumprod
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(DEVICE)
    assert scheduler.plan(10).alphas_cumprod == expected
    scheduler.set_timesteps(10, device=DEVICE)
    assert scheduler.timesteps.device.type == torch.device(DEVICE).type
    assert scheduler.previous_timestep(scheduler.timesteps).tolist() == [*scheduler.timesteps.tolist()[1:], -1]


# --- memory and adapters ---------------------------------------------------------------------------------------------


@only_cuda
def test_offloaded_networks_come_and_go(emoji: tuple[Any, Any]) -> None:
    pipe = loaded("emoji", "cpu")
    given: dict[str, Any] = {"seed": [0], "num_inference_steps": 3}
    expected = pixels(emoji[1], "a red heart", **given)
    for enable in (pipe.enable_model_cpu_offload, pipe.enable_sequential_cpu_offload):
        enable()
        assert pipe.device.type == "cuda"
        assert_near(pixels(pipe, "a red heart", **given), expected)
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            assert {p.device.type for p in part.parameters()} == {"cpu"}
        found = pixels(pipe, "a red heart", image=drawing(), mask_image=mask(), **given)
        assert_near(found, pixels(emoji[1], "a red heart", image=drawing(), mask_image=mask(), **given))
    pipe.remove_all_hooks()
    assert pipe.device.type == "cpu"
    pipe.enable_model_cpu_offload()
    pipe.to("cuda")
    assert {p.device.type for p in pipe.unet.parameters()} == {"cuda"}
    assert_near(pixels(pipe, "a red heart", **given), expected)


def test_slices_and_tiles_of_the_autoencoder_work_on_the_device(emoji: tuple[Any, Any]) -> None:
    pipe = loaded("emoji")
    pipe.enable_vae_slicing()
    given: dict[str, Any] = {"seed": [0, 1], "num_inference_steps": 3}
    assert_near(pixels(pipe, PROMPTS, **given), pixels(emoji[1], PROMPTS, **given))
    pipe.enable_vae_tiling()
    assert np.isfinite(pixels(pipe, PROMPTS[:1], height=128, width=128, seed=0, num_inference_steps=1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_adapters_are_loaded_into_networks_on_the_device(texts: str, dtype: torch.dtype) -> None:
    pipes = loaded(texts, "cpu"), loaded(texts, dtype=dtype)
    adapter = named(known(pipes[0], unet=EVERY), present)
    given: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 2.0}
    given["latents"] = latents_for(pipes[0], dtype, 1)
    before = [pixels(pipe, "a photo of a red cat", **given) for pipe in pipes]
    kept = {name: value.clone() for name, value in pipes[1].unet.state_dict().items()}
    for pipe in pipes:
        pipe.load_lora_weights(adapter, "one")
        pipe.set_adapters("one", 0.5)
        assert {value.device.type for value in pipe.unet.state_dict().values()} == {pipe.device.type}
    after = [pixels(pipe, "a photo of a red cat", **given) for pipe in pipes]
    assert_near(after[1], after[0], *HALF.get(dtype, (NEAR, ON_AVERAGE)))
    assert np.abs(after[1] - before[1]).max() > 0.01
    pipes[1].fuse_lora()
    pipes[1].unfuse_lora()
    pipes[1].unload_lora_weights()
    assert_same(dict(pipes[1].unet.state_dict()), kept)


def test_adapters_follow_a_pipeline_to_the_device(texts: str) -> None:
    """Loaded on the CPU, moved afterwards, and then weakened and taken out."""
    pipe = loaded(texts, "cpu")
    given: dict[str, Any] = {"seed": 0, "num_inference_steps": 3}
    before = pixels(pipe, "a photo of a red cat", **given)
    pipe.load_lora_weights(named(known(pipe), present))
    expected = pixels(pipe, "a photo of a red cat", **given)
    pipe.to(DEVICE)
    assert_near(pixels(pipe, "a photo of a red cat", **given), expected)
    pipe.set_adapters("default_0", 0.0)
    assert_near(pixels(pipe, "a photo of a red cat", **given), before)
    pipe.unload_lora_weights()
    assert_near(pixels(pipe, "a photo of a red cat", **given), before)


# --- training --------------------------------------------------------------------------------------------------------


def pixel_settings(folder: Path, **changes: Any) -> PixelSettings:
    pytest.importorskip("sklearn")  # which has the digits
    given: dict[str, Any] = {
        **COMMON,
        "class_conditional": True,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "dropout": 0.1,
        "ema_decay": 0.9,
    }
    return PixelSettings(output_dir=str(folder), **{**given, **changes})


Make = Callable[[Path, Any], TrainSettings]


@pytest.fixture(params=["texts", "pixels", "lora", "vae"])
def make(request: pytest.FixtureRequest, place: Place) -> Make:
    """The settings of a run of each kind: what is called with its folder and with changes of settings."""
    pytest.importorskip("accelerate")
    pytest.importorskip("datasets")
    kind = request.param
    model = Path(request.getfixturevalue("texts")) if kind == "lora" else Path()

    def settings(folder: Path, changes: Any) -> TrainSettings:
        if kind == "pixels":
            return pixel_settings(folder, **changes)
        if kind == "lora":
            return lora_settings(folder, place, model, **{"use_ema": True, "ema_decay": 0.9, **changes})
        if kind == "vae":
            return vae_settings(folder, place, **changes)
        return text_settings(folder, place, **{"random_background": True, "random_flip": True, **changes})

    return settings


def trained_tensors(folder: Path) -> dict[str, Tensor]:
    last = checkpoints(folder)[-1]
    names = sorted(path.name for path in last.glob("*.safetensors"))
    return {f"{name}:{key}": value for name in names for key, value in read_tensors(last / name).items()}


def assert_near_runs(first: Path, second: Path) -> None:
    """What the last checkpoints have differs by less than a step of the optimizer, on average: its rate is 1e-3."""
    one, two = trained_tensors(first), trained_tensors(second)
    assert one.keys() == two.keys()
    for name in one:
        assert float((one[name].double() - two[name].double()).abs().mean()) < 1e-3, name


def test_networks_are_trained_on_the_device(make: Make, tmp_path: Path) -> None:
    trainer = make_trainer(make(tmp_path, {"max_train_steps": 8, "validation_steps": 8}))
    assert trainer.accelerator.device.type == torch.device(DEVICE).type
    before = {name: value.detach().clone() for name, value in trainer.objective.networks.named_parameters()}
    losses = losses_of(trainer)
    assert len(losses) == 8
    assert np.isfinite(losses).all()
    after = dict(trainer.objective.networks.named_parameters())
    assert {value.device.type for value in after.values()} == {torch.device(DEVICE).type}
    assert any(not torch.equal(after[name].cpu(), before[name].cpu()) for name in before)
    assert all(torch.isfinite(value).all() for value in trained_tensors(tmp_path).values())
    assert isinstance(trainer.settings, VAESettings) or list((tmp_path / "samples").iterdir())


@pytest.mark.usefixtures("_reproducible")
def test_a_run_in_two_parts_ends_with_the_same_weights(make: Make, tmp_path: Path) -> None:
    """Bit for bit, as on the CPU, with those of CUDA's algorithms that give the same bits twice.

    Adapters are not: on an H200 the two runs of theirs added in another order, and were near by.
    """
    settings = make(tmp_path / "whole", {})
    train(settings)
    interrupt(make(tmp_path / "parts", {}))
    train(make(tmp_path / "parts", {}))
    if IS_CUDA and isinstance(settings, LoraSettings):
        assert_near_runs(tmp_path / "whole", tmp_path / "parts")
    else:
        assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_run_in_two_parts_ends_near_by_with_the_usual_algorithms(make: Make, tmp_path: Path) -> None:
    """Some of CUDA's add in an order that changes from run to run; AdamW makes of a tiny gradient a whole step."""
    train(make(tmp_path / "whole", {}))
    interrupt(make(tmp_path / "parts", {}))
    train(make(tmp_path / "parts", {}))
    assert_near_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(precision: str, make: Make, tmp_path: Path) -> None:
    if precision == "fp16" and not IS_CUDA:
        pytest.skip("accelerate has float16 on accelerators alone")
    folder = train(make(tmp_path, {"mixed_precision": precision}))
    assert folder.is_dir()
    tensors = trained_tensors(tmp_path)
    assert all(torch.isfinite(value).all() for value in tensors.values())
    assert {value.dtype for name, value in tensors.items() if name.startswith("model")} == {torch.float32}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"offload_ema": True}, id="the average in the host's memory"),
        pytest.param({"gradient_checkpointing": True}, id="activations computed again"),
        pytest.param({"ema_power": 0.75}, id="an average that rises"),
        pytest.param({"snr_gamma": 5.0, "noise_offset": 0.1, "input_perturbation": 0.1}, id="weights and noise"),
        pytest.param({"train_text_encoder": True, "gradient_accumulation_steps": 2}, id="the text encoder too"),
    ],
)
def test_settings_of_a_run_work_on_the_device(changes: dict[str, Any], tmp_path: Path, place: Place) -> None:
    train(text_settings(tmp_path, place, **changes))
    assert all(torch.isfinite(value).all() for value in trained_tensors(tmp_path).values())


@only_cuda
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_no_step_of_training_waits(precision: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what is reported, saved and drawn now and then, and for the first steps, whose time is measured."""

    def pause(name: str) -> None:
        method = getattr(Trainer, name)

        def paused(self: Trainer, *args: Any, **options: Any) -> Any:
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("default")
            try:
                return method(self, *args, **options)
            finally:
                torch.cuda.set_sync_debug_mode(before)

        monkeypatch.setattr(Trainer, name, paused)

    for name in ("_timed", "_report", "_checkpoint", "_finish"):
        pause(name)
    agree, watched = Trainer._agree, []

    def watch(self: Trainer, began: float) -> None:
        agree(self, began)
        if self.step >= 3:
            torch.cuda.set_sync_debug_mode("error")
            watched.append(self.step)

    monkeypatch.setattr(Trainer, "_agree", watch)
    try:
        train(make(tmp_path, {"max_train_steps": 8, "checkpointing_steps": 8, "mixed_precision": precision}))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watched == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("kind", ["texts", "classes"])
@pytest.mark.parametrize("is_adapter", [False, True], ids=["whole", "adapters"])
def test_students_are_trained_on_the_device(
    is_adapter: bool, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if is_adapter and kind == "classes":
        pytest.skip("adapters are of text-to-image models")
    pytest.importorskip("accelerate")
    model = request.getfixturevalue(kind)
    given: dict[str, Any] = {
        **COMMON,
        "trajectories": 8,
        "steps": 2,
        "teacher_steps": 4,
        "backend": "eager",
        "ema_decay": 0.5,
        "validation_steps": 6,
    }
    if kind == "texts":
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("a red heart\na blue house\na cat\n", encoding="utf-8")
        given["prompts_file"] = str(prompts)
    if kind == "texts" and not is_adapter:
        given["guidance_range"] = (1.0, 3.0)
    else:
        given["guidance_scale"] = 2.0
    if is_adapter:
        given["rank"] = 2
    folder = distill(DistillSettings(output_dir=str(tmp_path / "fast"), model=model, **given))
    assert all(torch.isfinite(value).all() for value in trained_tensors(folder).values())
    if not is_adapter:
        pipe = loaded(str(folder))
        asked: dict[str, Any] = {"prompt": "a cat"} if kind == "texts" else {"class_labels": [1]}
        assert np.isfinite(pixels(pipe, seed=[0], **asked)).all()


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shape"), [("digits", (1, 8, 8)), ("emoji", (3, 64, 64))])
def test_features_are_those_of_the_cpu(name: str, shape: tuple[int, ...]) -> None:
    pictures = torch.rand(64, *shape) * 2 - 1
    expected = load_features(name, CPU, None)(pictures)
    found = load_features(name, torch.device(DEVICE), None)(pictures.to(DEVICE))
    assert found.device.type == torch.device(DEVICE).type
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    one, two = FeatureStatistics.of(found), FeatureStatistics.of(expected)
    assert frechet_distance(one, two) < 1e-3 * float(np.trace(two.covariance))


# --- the command line ------------------------------------------------------------------------------------------------


def test_the_command_runs_on_the_device_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, Any] = {"prompt": "a red heart", "steps": 3, "seed": 0}
    assert open_pipeline(SampleSettings(model="emoji", **asked)).device.type == torch.device(DEVICE).type
    made = []
    for name, place_ in (("by-itself", []), ("cpu", ["--device", "cpu"])):
        out = tmp_path / f"{name}.png"
        options = ["--steps", "3", "--seed", "0", "--scale", "1", "--out", str(out), *place_]
        assert main(["sample", "a red heart", *options]) == 0
        assert "1 image of 'a red heart' by emoji" in capsys.readouterr().err
        with Image.open(out) as image:
            made.append(np.array(image, dtype=np.float64) / 255)
    assert_near(made[0], made[1], most=NEAR + 1 / 255, mean=ON_AVERAGE + 1 / 255)


def test_commands_that_invert_and_interpolate_run_on_the_device(tmp_path: Path) -> None:
    picture, noise, again = (str(tmp_path / name) for name in ("x.png", "noise.safetensors", "again.png"))
    drawing().save(picture)
    assert main(["invert", picture, "--prompt", "a red heart", "--steps", "5", "--device", DEVICE, "--out", noise]) == 0
    assert main(["sample", "--trust", "--from", noise, "--device", DEVICE, "--out", again]) == 0
    out = str(tmp_path / "between.png")
    assert main(["interpolate", "--model", "digits", "--steps", "2", "--device", DEVICE, "--out", out]) == 0
    assert Path(out).is_file()


# --- everything else -------------------------------------------------------------------------------------------------


def test_a_network_may_be_copied_moved_back_and_drawn_with(digits: tuple[Any, Any]) -> None:
    unet = copy.deepcopy(digits[1].unet).to("cpu")
    pipe = DDIMPipeline(unet, digits[0].scheduler)
    pipe.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"class_labels": [3], "seed": 0, "num_inference_steps": 3}
    assert np.array_equal(pixels(pipe, **given), pixels(digits[0], **given))
    pipe.to(DEVICE)
    assert_near(pixels(pipe, **given), pixels(digits[0], **given))


@pytest.mark.slow  # the compiler takes up to a minute
@only_cuda
def test_the_compiled_network_draws_the_same(digits: tuple[Any, Any]) -> None:
    pipe = loaded("digits").accelerate("compile")
    given: dict[str, Any] = {"class_labels": [3, 7], "seed": 0, "num_inference_steps": 4}
    assert_near(pixels(pipe, **given), pixels(digits[1], **given))


def test_diffusers_pipeline_takes_our_scheduler_on_the_device(texts: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(texts, safety_checker=None).to(DEVICE)
    theirs.set_progress_bar_config(disable=True)
    ours = loaded(texts)
    assert isinstance(ours, StableDiffusionPipeline)
    latents = torch.randn(1, 4, 8, 8, device=DEVICE)
    given: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 2.0, "latents": latents}
    expected = pixels(theirs, "a photo of a red cat", **given)
    assert_near(pixels(ours, "a photo of a red cat", **given), expected)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    assert_near(pixels(theirs, "a photo of a red cat", **given), expected)
