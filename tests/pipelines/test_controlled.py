"""Pipelines with ControlNets: diffusers' pictures on the same latents, whatever is asked for, and clear errors."""

from __future__ import annotations

import inspect
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_control import both
from tiny_sd import tiny_reference

from ddim import DDIMScheduler
from ddim.errors import CheckpointError, ConfigError
from ddim.models import ControlNetModel, MultiControlNetModel
from ddim.pipelines import (
    DiffusionPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)

TASKS: dict[str, tuple[Any, Any]] = {
    "text": (StableDiffusionControlNetPipeline, diffusers.StableDiffusionControlNetPipeline),
    "picture": (StableDiffusionControlNetImg2ImgPipeline, diffusers.StableDiffusionControlNetImg2ImgPipeline),
    "mask": (StableDiffusionControlNetInpaintPipeline, diffusers.StableDiffusionControlNetInpaintPipeline),
}
STEPS = 4


@dataclass
class Pair:
    """Ours and theirs of one model, with two ControlNets each."""

    folder: Path
    theirs: Any  # StableDiffusionPipeline
    ours: StableDiffusionPipeline
    networks: list[tuple[Any, ControlNetModel]]

    def pipes(self, task: str, count: int = 1, which: int = 0) -> tuple[Any, Any]:
        chosen = self.networks[which : which + count]
        own, other = TASKS[task]
        kinds = ([mine for _, mine in chosen], [reference for reference, _ in chosen])
        mine, reference = (networks if count > 1 else networks[0] for networks in kinds)
        pipe = own.from_pipe(self.ours, controlnet=mine)
        parts = {k: v for k, v in self.theirs.components.items() if k != "image_encoder"}
        base = other(**parts, controlnet=reference, requires_safety_checker=False)
        for each in (pipe, base):
            each.set_progress_bar_config(disable=True)
        return pipe, base


def make(folder: Path, version: int, **scheduler: Any) -> Pair:
    theirs = tiny_reference(folder / "model", version, **scheduler)
    networks = [both(folder / f"control-{seed}", theirs.unet, seed) for seed in (1, 2)]
    networks.append(both(folder / "pooled", theirs.unet, 3, global_pool_conditions=True))
    ours = StableDiffusionPipeline.from_pretrained(folder / "model")
    ours.set_progress_bar_config(disable=True)
    return Pair(folder, theirs, ours, networks)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory.mktemp("first"), 1)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return make(tmp_path_factory.mktemp("second"), 2, **zero)


def picture(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


def latents(count: int = 1, rows: int = 8, columns: int = 8) -> torch.Tensor:
    return torch.randn(count, 4, rows, columns, generator=torch.Generator().manual_seed(5))


def asked(task: str, count: int = 1, **changes: Any) -> dict[str, Any]:
    """Arguments of a call, with a picture for each ControlNet."""
    shown = [picture(20 + k) for k in range(count)] if count > 1 else picture(20)
    given: dict[str, Any] = {"prompt": "a photo of a red cat", "num_inference_steps": STEPS, "output_type": "np"}
    given |= {"guidance_scale": 5.0, "negative_prompt": "blue"}
    if task == "text":
        given |= {"image": shown, "latents": latents()}
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
    "plain": {},
    "scale": {"controlnet_conditioning_scale": 0.4},
    "guess": {"guess_mode": True, "prompt": ""},
    "unguided": {"guidance_scale": 1.0},
    "unguided guess": {"guidance_scale": 1.0, "guess_mode": True},
    "begins late": {"control_guidance_start": 0.3},
    "ends early": {"control_guidance_start": 0.1, "control_guidance_end": 0.6},
    "batch": {"prompt": ["a photo", "a red cat"], "negative_prompt": ["blue", ""], "num_images_per_prompt": 2},
    "eta": {"eta": 1.0},
    "clip skip": {"clip_skip": 1},
}


def test_the_tiny_networks_have_an_effect_that_the_other_tests_would_notice(first: Pair) -> None:
    given = asked("text")
    shown = drawn(first.pipes("text")[0], given)
    assert np.abs(shown - drawn(first.pipes("text")[0], {**given, "image": picture(21)})).max() > 0.02
    assert np.abs(shown - drawn(first.ours, {k: v for k, v in given.items() if k != "image"})).max() > 0.02


# What only the steps' arithmetic sees, which is the same for all tasks, is tried with one of them; slow tests try all.
EVERYWHERE = ("plain", "guess", "ends early", "batch")
CASES = [
    pytest.param(task, setting, marks=() if task == "text" or setting in EVERYWHERE else pytest.mark.slow)
    for task in TASKS
    for setting in GRID
]


@pytest.mark.parametrize(("task", "setting"), CASES)
@pytest.mark.thin(every=2)
def test_pictures_are_those_of_diffusers(task: str, setting: str, first: Pair) -> None:
    given = asked(task, **GRID[setting])
    if setting == "batch":
        given |= {"latents": latents(4)} if task == "text" else {}
        given |= {"image": [picture(30), picture(31)], "num_images_per_prompt": 1} if task == "picture" else {}
    assert_same(first.pipes(task), given)


SEVERAL: dict[str, dict[str, Any]] = {
    "plain": {},
    "scales": {"controlnet_conditioning_scale": [0.5, 1.3]},
    "guess": {"guess_mode": True, "controlnet_conditioning_scale": 0.7},
    "in turn": {"control_guidance_start": [0.0, 0.5], "control_guidance_end": [0.5, 1.0]},
    "one end": {"control_guidance_end": [0.3, 0.9]},
}


@pytest.mark.parametrize(
    ("task", "setting"),
    [
        pytest.param(task, setting, marks=() if task == "text" or setting == "plain" else pytest.mark.slow)
        for task in TASKS
        for setting in SEVERAL
    ],
)
@pytest.mark.thin(every=2)
def test_several_are_summed_as_in_diffusers(task: str, setting: str, first: Pair) -> None:
    assert_same(first.pipes(task, count=2), asked(task, 2, **SEVERAL[setting]))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.thin(every=3)
def test_v_prediction_and_zero_snr(task: str, count: int, second: Pair) -> None:
    pipes = second.pipes(task, count)
    for pipe in pipes:
        assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert_same(pipes, asked(task, count, controlnet_conditioning_scale=0.8))


def test_what_is_pooled_guesses_of_itself(first: Pair) -> None:
    assert_same(first.pipes("text", which=2), asked("text"))
    assert_same(first.pipes("text", which=2), asked("text", guidance_scale=1.0))


def test_every_kind_of_picture_gives_the_same(first: Pair) -> None:
    pipes = first.pipes("text")
    image = picture(20)
    array = np.asarray(image)
    expected = assert_same(pipes, asked("text"))
    tensor = torch.from_numpy(array.astype(np.float32) / 255).permute(2, 0, 1)
    for shown in (tensor, tensor[None], [tensor], array.astype(np.float32) / 255, [image], image.convert("RGBA")):
        assert np.abs(drawn(pipes[0], asked("text", image=shown)) - expected).max() < 1e-5
    assert np.abs(drawn(pipes[0], asked("text", image=array)) - expected).max() < 1e-5  # bytes
    grey = drawn(pipes[0], asked("text", image=image.convert("L")))
    weighed = (tensor * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    assert np.abs(drawn(pipes[0], asked("text", image=weighed)) - grey).max() < 1e-2
    assert_same(pipes, asked("text", image=2 * tensor[None] - 1))  # as some ControlNets want it


def test_a_picture_for_each_prompt(first: Pair) -> None:
    given = asked("text", prompt=["a photo", "a red cat"], negative_prompt=None, latents=latents(4))
    given |= {"num_images_per_prompt": 2}
    mine = assert_same(first.pipes("text"), {**given, "image": [picture(1), picture(2)]})
    one = assert_same(first.pipes("text"), {**given, "image": [picture(1)]})
    assert np.abs(mine[:2] - one[:2]).max() < 1e-5
    assert np.abs(mine[2:] - one[2:]).max() > 1e-2
    nested = [[picture(1), picture(2)], [picture(3), picture(4)]]  # for each prompt one for each ControlNet
    assert_same(first.pipes("text", 2), {**given, "image": nested})


@pytest.mark.parametrize("size", [(16, 16), (24, 16), (17, 33)])
@pytest.mark.thin(every=2)
def test_pictures_have_the_size_of_what_is_shown(size: tuple[int, int], first: Pair) -> None:
    given = asked("text", image=picture(1, size))
    given["latents"] = latents(1, size[1] // 2, size[0] // 2)
    mine = assert_same(first.pipes("text"), given)
    assert mine.shape[1:3] == (size[1] // 2 * 2, size[0] // 2 * 2)
    del given["latents"]
    assert drawn(first.pipes("text")[0], given).shape == mine.shape
    assert_same(first.pipes("text"), {**given, "height": 16, "width": 24, "latents": latents(1, 8, 12)})


def test_a_crop_around_the_mask_is_what_the_controlnet_is_shown(first: Pair) -> None:
    large = {"image": picture(30, (48, 40)), "control_image": picture(20, (48, 40)), "height": 16, "width": 16}
    mask = Image.new("L", (48, 40))
    mask.paste(255, (10, 8, 20, 18))
    given = asked("mask", **large, mask_image=mask, padding_mask_crop=3, output_type="pil")
    mine, theirs = (
        np.asarray(pipe(**given, generator=torch.Generator().manual_seed(0))[0][0], dtype=float)
        for pipe in first.pipes("mask")
    )
    assert mine.shape == theirs.shape == (40, 48, 3)
    assert np.abs(mine - theirs).max() <= 1


def test_an_inpainting_u_net(tmp_path: Path) -> None:
    theirs = tiny_reference(tmp_path / "nine", 1, in_channels=9)
    four = tiny_reference(tmp_path / "four", 1)  # a ControlNet sees the latents alone
    networks = [both(tmp_path / "control", four.unet)]
    pair = Pair(tmp_path, theirs, StableDiffusionPipeline.from_pretrained(tmp_path / "nine"), networks)
    assert_same(pair.pipes("mask"), asked("mask", strength=1.0))


def test_one_class_does_all(first: Pair) -> None:
    """`StableDiffusionPipeline` with a ControlNet draws what diffusers' three classes draw."""
    pipe = StableDiffusionPipeline.from_pretrained(first.folder / "model", controlnet=first.networks[0][1])
    pipe.set_progress_bar_config(disable=True)
    for task in TASKS:
        given = asked(task)
        expected = drawn(first.pipes(task)[0], given)
        if task == "text":
            given["control_image"] = given.pop("image")
        if task == "mask":
            given |= {"controlnet_conditioning_scale": 0.5, "height": 16, "width": 16}
        if task == "picture":
            given |= {"controlnet_conditioning_scale": 0.8}
        assert np.array_equal(drawn(pipe, given), expected)


def test_a_network_of_diffusers_may_be_the_part(first: Pair) -> None:
    reference, own = first.networks[0]
    pipes = [StableDiffusionControlNetPipeline.from_pipe(first.ours, controlnet=net) for net in (reference, own)]
    for setting in ("plain", "guess", "ends early"):
        mine, theirs = (drawn(pipe, asked("text", **GRID[setting])) for pipe in pipes)
        assert np.abs(mine - theirs).max() < 1e-4


def test_the_picture_is_read_once_and_the_network_runs_only_where_it_acts(first: Pair) -> None:
    pipe = first.pipes("text")[0]
    calls = {"read": 0, "run": 0}
    network = pipe.controlnet
    embedding, forward = network.read, network.forward
    try:
        network.read = lambda shown: calls.__setitem__("read", calls["read"] + 1) or embedding(shown)
        drawn(pipe, asked("text"))
        assert calls["read"] == 1
    finally:
        del network.read
    hook = network.controlnet_mid_block.register_forward_hook(lambda *_: calls.__setitem__("run", calls["run"] + 1))
    drawn(pipe, asked("text", control_guidance_start=0.25, control_guidance_end=0.75))
    assert calls["run"] == 2
    calls["run"] = 0
    drawn(pipe, asked("text", controlnet_conditioning_scale=0.0))
    assert calls["run"] == 0
    hook.remove()
    assert network.forward == forward


def test_a_hook_in_the_network_changes_nothing_else(first: Pair) -> None:
    pipe = first.pipes("text")[0]
    expected = drawn(pipe, asked("text"))
    hook = pipe.controlnet.controlnet_cond_embedding.register_forward_hook(lambda *_: None)
    assert np.abs(drawn(pipe, asked("text")) - expected).max() < 1e-4
    hook.remove()


def test_weights_that_change_on_the_way_count_from_then_on(first: Pair) -> None:
    network = ControlNetModel.from_pretrained(first.folder / "control-1")
    pipe = StableDiffusionControlNetPipeline.from_pipe(first.ours, controlnet=network)
    weight = network.controlnet_cond_embedding.conv_out.weight

    def callback(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            with torch.no_grad():
                weight.mul_(3.0)
        return values

    changed = drawn(pipe, asked("text", callback_on_step_end=callback))
    assert np.abs(changed - drawn(first.pipes("text")[0], asked("text"))).max() > 1e-2
    reference = diffusers.ControlNetModel.from_pretrained(first.folder / "control-1")
    theirs = first.pipes("text")[1]
    theirs.register_modules(controlnet=reference)
    theirs.controlnet, weight = reference, reference.controlnet_cond_embedding.conv_out.weight
    assert np.abs(drawn(theirs, asked("text", callback_on_step_end=callback)) - changed).max() < 1e-3


def test_an_image_of_a_seed_is_the_same_in_every_batch_and_thread(first: Pair) -> None:
    pipe = first.pipes("text")[0]
    given = {"prompt": "a cat", "image": picture(1), "num_inference_steps": STEPS, "output_type": "np"}
    many = pipe(**given, seed=[3, 4], num_images_per_prompt=2).images
    assert np.abs(many[1] - pipe(**given, seed=4).images[0]).max() < 1e-5
    results: dict[int, Any] = {}

    def draw(seed: int) -> None:
        results[seed] = pipe(**given, seed=seed).images[0]

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.abs(results[3] - many[0]).max() < 1e-5
    assert np.abs(results[4] - many[1]).max() < 1e-5


def test_half_precision_and_to(first: Pair) -> None:
    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        first.folder / "model", controlnet=ControlNetModel.from_pretrained(first.folder / "control-1")
    ).to(torch.bfloat16)
    assert pipe.controlnet.dtype == torch.bfloat16
    pipe.set_progress_bar_config(disable=True)
    rough = drawn(pipe, asked("text"))
    assert np.abs(rough - drawn(first.pipes("text")[0], asked("text"))).mean() < 0.05
    assert "controlnet" in repr(pipe)


def test_a_backend_runs_the_rest_and_pytorch_what_is_steered(first: Pair) -> None:
    pytest.importorskip("openvino")
    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        first.folder / "model", controlnet=ControlNetModel.from_pretrained(first.folder / "control-1")
    )
    pipe.set_progress_bar_config(disable=True)
    expected = drawn(pipe, asked("text"))
    pipe.accelerate("openvino", dtype=torch.float32)
    assert np.abs(drawn(pipe, asked("text")) - expected).max() < 1e-3


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_saved_loads_here_and_in_diffusers(count: int, first: Pair, tmp_path: Path) -> None:
    pipe = first.pipes("text", count)[0]
    expected = drawn(pipe, asked("text", count))
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionControlNetPipeline"
    assert index["controlnet"] == ["diffusers", "MultiControlNetModel" if count > 1 else "ControlNetModel"]
    back = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(back) is StableDiffusionControlNetPipeline
    assert isinstance(back.controlnet, MultiControlNetModel if count > 1 else ControlNetModel)
    back.set_progress_bar_config(disable=True)
    assert np.array_equal(drawn(back, asked("text", count)), expected)
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(theirs) is diffusers.StableDiffusionControlNetPipeline
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = first.theirs.scheduler
    assert np.abs(drawn(theirs, asked("text", count)) - expected).max() < 1e-3


@pytest.mark.parametrize("count", [1, 2])
def test_what_diffusers_saved_loads(count: int, first: Pair, tmp_path: Path) -> None:
    pipe, theirs = first.pipes("text", count)
    theirs.save_pretrained(tmp_path)
    back = DiffusionPipeline.from_pretrained(tmp_path)
    back.set_progress_bar_config(disable=True)
    assert np.array_equal(drawn(back, asked("text", count)), drawn(pipe, asked("text", count)))


def test_a_plain_pipeline_takes_one_and_lets_it_go(first: Pair, tmp_path: Path) -> None:
    network = first.networks[0][1]
    pipe = StableDiffusionPipeline.from_pretrained(first.folder / "model")
    assert pipe.controlnet is None
    assert "controlnet" not in pipe.components
    pipe.controlnet = network
    assert pipe.components["controlnet"] is network
    assert pipe.config["_class_name"] == "StableDiffusionControlNetPipeline"
    pipe.save_pretrained(tmp_path)
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is StableDiffusionControlNetPipeline
    assert StableDiffusionImg2ImgPipeline.from_pipe(pipe).controlnet is None
    assert StableDiffusionControlNetImg2ImgPipeline.from_pipe(pipe).controlnet is network
    pipe.controlnet = None
    assert "controlnet" not in pipe.config
    pipe.set_progress_bar_config(disable=True)
    assert np.array_equal(
        drawn(pipe, {"prompt": "a", "latents": latents(), "num_inference_steps": 2, "output_type": "np"}),
        drawn(first.ours, {"prompt": "a", "latents": latents(), "num_inference_steps": 2, "output_type": "np"}),
    )
    pipe.controlnet = [network, first.networks[1][1]]
    assert isinstance(pipe.controlnet, MultiControlNetModel)
    for wrong in ("canny", 3, [], [1]):
        with pytest.raises(TypeError, match=r"ControlNet"):
            pipe.controlnet = wrong


def test_an_index_may_name_what_is_missing(first: Pair, tmp_path: Path) -> None:
    first.pipes("text", 2)[0].save_pretrained(tmp_path)
    (tmp_path / "controlnet_1" / "config.json").unlink()
    assert len(DiffusionPipeline.from_pretrained(tmp_path).controlnet.nets) == 1  # as in diffusers
    (tmp_path / "controlnet" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        DiffusionPipeline.from_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["controlnet"] = ["os", "system"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="code of other places"):
        DiffusionPipeline.from_pretrained(tmp_path)
    given = StableDiffusionControlNetPipeline.from_pretrained(tmp_path, controlnet=first.networks[0][1])
    assert given.controlnet is first.networks[0][1]


@pytest.mark.parametrize("task", TASKS)
def test_the_arguments_are_those_of_diffusers_in_their_order(task: str) -> None:
    own, other = (list(inspect.signature(kind.__call__).parameters) for kind in TASKS[task])
    wanted = [name for name in other if name != "kwargs"]
    assert own[: len(wanted)] == wanted
    made, theirs = (list(inspect.signature(kind.__init__).parameters) for kind in TASKS[task])
    assert made == theirs


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "error"),
    [
        ({"image": None}, ValueError, "image is missing"),
        ({"image": "canny.png"}, TypeError, "control_image must be a PIL image, an array, a tensor"),
        ({"image": []}, ValueError, "control_image is an empty list"),
        ({"image": [picture(1), picture(2)]}, ValueError, "2 control images do not fit 1 prompts"),
        ({"image": torch.zeros(1, 4, 16, 16)}, ValueError, "control_image has 4 channels; needed are 3"),
        ({"image": torch.full((1, 3, 16, 16), torch.nan)}, ValueError, "control_image has NaN"),
        ({"image": torch.zeros(3, 3, 3, 16, 16)}, ValueError, "control_image has shape"),
        ({"image": Image.new("RGB", (1, 1)), "latents": None}, ValueError, "smaller than 2x2"),
        ({"controlnet_conditioning_scale": [1.0, 1.0]}, ValueError, "scale has 2 numbers for 1 ControlNets"),
        ({"controlnet_conditioning_scale": "1"}, TypeError, "controlnet_conditioning_scale must be a finite number"),
        ({"controlnet_conditioning_scale": float("nan")}, TypeError, "must be a finite number"),
        ({"control_guidance_start": 0.6, "control_guidance_end": 0.5}, ValueError, "the first below the second"),
        ({"control_guidance_start": -0.1}, ValueError, "shares of the run"),
        ({"control_guidance_end": 1.5}, ValueError, "shares of the run"),
        ({"control_guidance_end": [1.0, 0.5]}, ValueError, "control_guidance_end has 2 numbers for 1 ControlNets"),
    ],
)
def test_wrong_arguments_are_errors_that_name_them(
    change: dict[str, Any], kind: type[Exception], error: str, first: Pair
) -> None:
    with pytest.raises(kind, match=error):
        first.pipes("text")[0](**asked("text", **change))


def test_several_need_a_picture_each(first: Pair) -> None:
    pipe = first.pipes("text", 2)[0]
    with pytest.raises(TypeError, match="there are 2 ControlNets: give a list"):
        pipe(**asked("text"))
    with pytest.raises(ValueError, match="2 ControlNets and 3 pictures"):
        pipe(**asked("text", image=[picture(1)] * 3))
    with pytest.raises(ValueError, match="as many pictures for each prompt"):
        pipe(**asked("text", image=[[picture(1)], [picture(1), picture(2)]]))


def test_a_controlnet_without_a_picture_and_a_picture_without_one(first: Pair) -> None:
    pipe = StableDiffusionPipeline.from_pipe(first.ours, controlnet=first.networks[0][1])
    with pytest.raises(ConfigError, match="this pipeline has a ControlNet, which needs a picture"):
        pipe("a cat")
    with pytest.raises(ConfigError, match="this pipeline has a ControlNet, which needs a picture"):
        pipe.denoiser(pipe.scheduler.plan(2), 1, prompt="a cat")
    with pytest.raises(ConfigError, match="this pipeline has none"):
        first.ours("a cat", control_image=picture(1))
    pipe = StableDiffusionControlNetPipeline.from_pretrained(first.folder / "model")
    with pytest.raises(ConfigError, match="this pipeline has none: assign"):
        pipe("a cat", picture(1))


def test_a_controlnet_of_another_model_is_an_error(first: Pair) -> None:
    other = ControlNetModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=24,
        conditioning_embedding_out_channels=(4, 8),
    ).eval()
    pipe = StableDiffusionControlNetPipeline.from_pipe(first.ours, controlnet=other)
    with pytest.raises(ConfigError, match=r"ControlNet is for another model: .*cross_attention_dim=24, .* 32"):
        pipe(**asked("text"))


def test_the_scheduler_stays_as_it_is(first: Pair) -> None:
    pipe = first.pipes("text")[0]
    before = dict(pipe.scheduler.config)
    drawn(pipe, asked("text"))
    assert dict(pipe.scheduler.config) == before
    assert isinstance(pipe.scheduler, DDIMScheduler)
