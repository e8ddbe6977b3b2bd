"""A recorded run is the pipeline's own, bit for bit, and what it shows of each step is what went in and came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sd import tiny_reference

from ddim import DDIMScheduler, DiffusionPipeline, StableDiffusionInpaintPipeline
from ddim.images import to_images
from ddim.pipelines import StableDiffusionPipeline
from ddim.serving.limits import Limits
from ddim.serving.parameters import Edit, Generation
from ddim.serving.wishes import wish
from ddim.studio.recording import MOST, SIDE, Moment, Recording, planes, record

PIPES: dict[str, DiffusionPipeline] = {}


def pipe_of(name: str) -> DiffusionPipeline:
    if name not in PIPES:
        PIPES[name] = DiffusionPipeline.from_pretrained(name)
        PIPES[name].set_progress_bar_config(disable=True)
    return PIPES[name]


def recorded(name: str, **asked: Any) -> Recording:
    pipe = pipe_of(name)
    return record(pipe, wish(name, pipe, Generation(**asked), Limits()))


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and np.array_equal(np.asarray(one), np.asarray(other))


HEART = {"prompt": "a red heart"}
CLASS = {"class_label": 3}


@pytest.mark.parametrize(
    ("name", "asked", "call"),
    [
        ("emoji-fast", HEART, HEART),
        (
            "emoji",
            {**HEART, "negative_prompt": "blue", "steps": 4, "guidance_scale": 4.0,
             "guidance_rescale": 0.5, "eta": 0.7},
            {**HEART, "negative_prompt": "blue", "num_inference_steps": 4, "guidance_scale": 4.0,
             "guidance_rescale": 0.5, "eta": 0.7},
        ),
        (
            "emoji",
            {**HEART, "steps": 4, "guidance_interval": [200, 900], "order": 2, "size": "64x96"},
            {**HEART, "num_inference_steps": 4, "guidance_interval": (200, 900), "order": 2, "width": 64, "height": 96},
        ),
        ("emoji", {**HEART, "steps": 3, "eta": "sigma_hat", "guidance_scale": 1.0},
         {**HEART, "num_inference_steps": 3, "eta": "sigma_hat", "guidance_scale": 1.0}),
        ("digits", {**CLASS, "guidance_scale": 2.0, "guidance_rescale": 0.3},
         {"class_labels": 3, "guidance_scale": 2.0, "guidance_rescale": 0.3}),
        ("digits", {**CLASS, "steps": 5, "eta": 1.0}, {"class_labels": 3, "num_inference_steps": 5, "eta": 1.0}),
    ],
)  # fmt: skip
@pytest.mark.thin(every=2)
def test_the_picture_is_that_of_the_pipelines_call(name: str, asked: dict[str, Any], call: dict[str, Any]) -> None:
    recording = recorded(name, seed=5, **asked)
    assert same(recording.image, pipe_of(name)(seed=5, **call).images[0])
    assert len(recording.moments) == len(recording.plan)
    assert [moment.row for moment in recording.moments] == list(recording.plan)


def test_another_spacing_is_that_of_the_scheduler() -> None:
    pipe = pipe_of("digits")
    recording = recorded("digits", seed=2, steps=4, spacing="quadratic", class_label=1)
    other = DiffusionPipeline.from_pretrained("digits")
    other.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="quadratic")
    other.set_progress_bar_config(disable=True)
    assert same(recording.image, other(seed=2, num_inference_steps=4, order=1, class_labels=1).images[0])


def test_what_is_shown_of_a_step_is_what_went_in_and_came_out() -> None:
    """The network is asked once more, by hand, at what the recording says that it was asked."""
    pipe: Any = pipe_of("digits")
    plan = pipe.scheduler.plan(4)
    seen: list[torch.Tensor] = []
    recording = recorded("digits", seed=2, steps=4, class_label=1, guidance_scale=3.0)
    pipe(
        seed=2, num_inference_steps=4, class_labels=1, guidance_scale=3.0, order=1,
        callback_on_step_end=lambda _, index, t, state: seen.append(state["latents"]),
    )  # fmt: skip
    assert recording.plan.timesteps == plan.timesteps
    x, moment = seen[1], recording.moments[2]
    assert same(moment.x_t, to_images(x)[0])
    assert same(moment.given, planes(x))
    row = plan[2]
    answers = [pipe.unet(x, row.timestep, torch.tensor([label])).sample for label in (10, 1)]
    x0 = [(row.p * x + row.q * answer).clamp(-1, 1) for answer in answers]
    guided = answers[0] + 3.0 * (answers[1] - answers[0])
    wanted = [*x0, (row.p * x + row.q * guided).clamp(-1, 1), guided / 3]
    found = [moment.without, moment.within, moment.x0, moment.output]
    for picture, tensor in zip(found, wanted, strict=True):
        assert isinstance(picture, Image.Image)
        difference = np.asarray(picture, int) - np.asarray(to_images(tensor.detach())[0], int)
        assert abs(difference).max() <= 1


def test_the_two_answers_are_there_only_where_there_is_guidance() -> None:
    recording = recorded("emoji", seed=1, **HEART, steps=5, guidance_interval=[300, 700], order=1, spacing="trailing")
    guided = [moment.row.timestep for moment in recording.moments if moment.within is not None]
    assert guided == [t for t in recording.plan.timesteps if 300 <= t <= 700] != []
    assert all((moment.within is None) == (moment.without is None) for moment in recording.moments)


def test_of_many_steps_some_are_kept() -> None:
    told: list[tuple[int, int, Moment | None]] = []
    pipe = pipe_of("digits")
    steps = MOST + 50
    recording = record(pipe, wish("digits", pipe, Generation(seed=0, steps=steps), Limits()), told.append)
    assert len(recording.moments) == MOST
    assert (recording.moments[0].index, recording.moments[-1].index) == (0, steps - 1)
    assert [number for number, *_ in told] == list(range(1, steps + 1))
    assert [moment for *_, moment in told if moment is not None] == list(recording.moments)


def test_what_is_told_may_end_the_run() -> None:
    class EndError(Exception):
        pass

    def end(told: tuple[int, int, Moment | None]) -> None:
        if told[0] == 2:
            raise EndError

    pipe = pipe_of("digits")
    with pytest.raises(EndError):
        record(pipe, wish("digits", pipe, Generation(seed=0, steps=500), Limits()), end)


@pytest.fixture(scope="module", params=[4, 9])
def painter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPipeline:
    """A pipeline whose network knows nothing of masks, and one whose network was trained to paint under them."""
    folder: Path = tmp_path_factory.mktemp(f"painter-{request.param}")
    tiny_reference(folder, 1, in_channels=request.param).save_pretrained(folder / "pipe")
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folder / "pipe")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_picture_under_a_mask(painter: StableDiffusionPipeline) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    asked = Edit(prompt="a b", steps=5, strength=0.8, seed=3, guidance_scale=2.0)
    recording = record(painter, wish("painter", painter, asked, Limits(), image, mask))
    reference = painter(
        "a b", image=image, mask_image=mask, num_inference_steps=5, strength=0.8, seed=3, guidance_scale=2.0
    )
    assert same(recording.image, reference.images[0])
    assert len(recording.moments) == 4
    if painter.unet.config.in_channels == 4:
        assert recording.mask is None
        assert any("what the mask leaves is put back" in note for note in recording.notes)
        return
    assert recording.mask is not None
    assert np.asarray(recording.mask).tolist() == [[255] * 4 + [0] * 4] * 8
    assert recording.masked is not None
    assert recording.masked.size == (16, 16)


def test_a_picture_to_start_from() -> None:
    pipe: Any = pipe_of("emoji-fast")
    image = pipe("a red heart", seed=1).images[0]
    asked = Edit(prompt="a red heart", strength=0.5, seed=3)
    recording = record(pipe, wish("emoji-fast", pipe, asked, Limits(), image))
    assert same(recording.image, pipe("a red heart", image=image, strength=0.5, seed=3).images[0])
    assert recording.mask is None


def test_planes() -> None:
    """0 is grey, what is beyond 3 is black or white, and channels that are no colours lie beside each other."""
    x = torch.tensor([-9.0, -3, 0, 3, 9]).view(1, 1, 1, 5)
    assert np.asarray(planes(x)).tolist() == [[0, 0, 128, 255, 255]]
    assert planes(x.expand(1, 3, 2, 5)).mode == "RGB"
    four = planes(torch.stack([torch.full((2, 3), value) for value in (-3.0, 0, 3, -3)])[None])
    array = np.asarray(four)
    assert array.shape == (5, 7)
    assert [array[0, 0], array[0, 4], array[3, 0], array[3, 4]] == [0, 128, 255, 0]
    assert planes(torch.zeros(1, 5, 2, 2)).size == (8, 5)


def test_large_pictures_are_kept_small() -> None:
    from ddim.studio.recording import _small

    assert _small(Image.new("RGB", (1024, 512))).size == (SIDE, SIDE // 2)
    assert _small(Image.new("RGB", (64, 64))).size == (64, 64)
