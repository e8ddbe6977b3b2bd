"""Stable Diffusion XL's pipelines with ControlNets: diffusers' pictures on the same noise."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_control import both
from tiny_xl import tiny_xl

from ddim.errors import ConfigError
from ddim.pipelines import (
    DiffusionPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)

TASKS: dict[str, tuple[Any, Any]] = {
    "text": (StableDiffusionXLControlNetPipeline, diffusers.StableDiffusionXLControlNetPipeline),
    "picture": (StableDiffusionXLControlNetImg2ImgPipeline, diffusers.StableDiffusionXLControlNetImg2ImgPipeline),
    "mask": (StableDiffusionXLControlNetInpaintPipeline, diffusers.StableDiffusionXLControlNetInpaintPipeline),
}


class Pair:
    """Ours and theirs of one model, with two ControlNets each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.theirs = tiny_xl(folder / "model")
        self.ours = StableDiffusionXLPipeline.from_pretrained(folder / "model")
        self.networks = [both(folder / f"control-{seed}", self.theirs.unet, seed) for seed in (1, 2)]

    def pipes(self, task: str, count: int = 1) -> tuple[Any, Any]:
        own, other = TASKS[task]
        references, mine = (list(each) for each in zip(*self.networks[:count], strict=True))
        pipe = own.from_pipe(self.ours, controlnet=mine if count > 1 else mine[0])
        parts = {k: v for k, v in self.theirs.components.items() if k not in ("image_encoder", "feature_extractor")}
        network = references if count > 1 else references[0]
        base = other(**parts, controlnet=network, add_watermarker=False)
        for each in (pipe, base):
            each.set_progress_bar_config(disable=True)
        return pipe, base


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("xl"))


def picture(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


def asked(task: str, count: int = 1, **changes: Any) -> dict[str, Any]:
    shown = [picture(20 + k) for k in range(count)] if count > 1 else picture(20)
    given: dict[str, Any] = {
        "prompt": "a red cat",
        "num_inference_steps": 4,
        "output_type": "np",
        "guidance_scale": 5.0,
    }
    if task == "text":
        given |= {"image": shown}
    else:
        given |= {"image": picture(30), "control_image": shown, "strength": 0.8}
    if task == "mask":
        mask = Image.new("L", (16, 16))
        mask.paste(255, (4, 4, 12, 16))
        given |= {"mask_image": mask}
    return {**given, **changes}


def drawn(pipe: Any, given: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(pipe(**given, generator=torch.Generator().manual_seed(0))[0])


def assert_same(pipes: tuple[Any, Any], given: dict[str, Any]) -> np.ndarray[Any, Any]:
    mine, theirs = (drawn(pipe, given) for pipe in pipes)
    assert mine.shape == theirs.shape
    assert np.abs(mine - theirs).max() < 1e-3
    return mine


GRID: dict[str, dict[str, Any]] = {
    "plain": {"negative_prompt": "blue", "prompt_2": "stars"},
    "guess": {"guess_mode": True, "prompt": "", "controlnet_conditioning_scale": 0.7},
    "unguided": {"guidance_scale": 1.0},
    "in the middle": {"control_guidance_start": 0.2, "control_guidance_end": 0.8},
    "sizes": {"original_size": (32, 32), "crops_coords_top_left": (4, 8), "target_size": (16, 16)},
}


@pytest.mark.parametrize(
    ("task", "setting"),
    [
        pytest.param(task, setting, marks=() if task == "text" or setting == "plain" else pytest.mark.slow)
        for task in TASKS
        for setting in GRID
    ],
)
@pytest.mark.thin(every=2)
def test_pictures_are_those_of_diffusers(task: str, setting: str, pair: Pair) -> None:
    assert_same(pair.pipes(task), asked(task, **GRID[setting]))


@pytest.mark.parametrize("task", TASKS)
def test_several_are_summed_as_in_diffusers(task: str, pair: Pair) -> None:
    given = asked(task, 2, controlnet_conditioning_scale=[0.5, 1.2], control_guidance_end=[0.5, 1.0])
    assert_same(pair.pipes(task, 2), given)


def test_the_tiny_networks_have_an_effect_that_the_other_tests_would_notice(pair: Pair) -> None:
    given = asked("text")
    shown = drawn(pair.pipes("text")[0], given)
    assert np.abs(shown - drawn(pair.pipes("text")[0], {**given, "image": picture(21)})).max() > 0.02


def test_batches_and_sizes(pair: Pair) -> None:
    given = asked("text", image=[picture(1, (24, 16)), picture(2, (24, 16))], prompt=["a cat", "stars"])
    mine = assert_same(pair.pipes("text"), {**given, "num_images_per_prompt": 2})
    assert mine.shape == (4, 16, 24, 3)


def test_one_class_does_all_and_files_go_both_ways(pair: Pair, tmp_path: Path) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(pair.folder / "model", controlnet=pair.networks[0][1])
    pipe.set_progress_bar_config(disable=True)
    expected = drawn(pair.pipes("text")[0], asked("text"))
    given = asked("text")
    given["control_image"] = given.pop("image")
    assert np.array_equal(drawn(pipe, given), expected)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLControlNetPipeline"
    back = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(back) is StableDiffusionXLControlNetPipeline
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path, add_watermarker=False)
    for each in (back, theirs):
        each.set_progress_bar_config(disable=True)
    assert np.abs(drawn(back, asked("text")) - drawn(theirs, asked("text"))).max() < 1e-3
    with pytest.raises(ConfigError, match="this pipeline has a ControlNet, which needs a picture"):
        pipe("a cat")
    with pytest.raises(ConfigError, match="this pipeline has a ControlNet, which needs a picture"):
        pipe.denoiser(pipe.scheduler.plan(2), 1, prompt="a cat")


@pytest.mark.parametrize("task", TASKS)
def test_the_arguments_are_those_of_diffusers_in_their_order(task: str) -> None:
    own, other = (list(inspect.signature(kind.__call__).parameters) for kind in TASKS[task])
    wanted = [name for name in other if name != "kwargs"]
    assert own[: len(wanted)] == wanted
    made, theirs = (list(inspect.signature(kind.__init__).parameters) for kind in TASKS[task])
    assert made[: len(theirs)] == theirs
