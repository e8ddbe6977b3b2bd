"""Every pipeline is what `sampling.Pipeline` says, and what it says of itself is true of what it draws."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from tiny import tiny_pipeline
from tiny_sd import tiny_reference
from tiny_xl import tiny_xl

from ddim.errors import ConfigError
from ddim.pipelines import (
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from ddim.pipelines.base import PIPELINES
from ddim.sampling import Pipeline, sample

MEMBERS = sorted(name for name in vars(Pipeline) if not name.startswith("_"))
METHODS = [name for name in MEMBERS if inspect.isfunction(vars(Pipeline)[name])]
KINDS = [
    "pixels", "classes", "texts", "texts from pictures", "texts under masks",
    "texts by XL", "texts by XL from pictures", "texts by XL under masks",
]  # fmt: skip
FROM_PICTURES = (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of every kind. What they draw is wider than high, so that a height in the place of a width would be seen."""
    folder = tmp_path_factory.mktemp("texts")
    tiny_reference(folder, 1)
    texts = StableDiffusionPipeline.from_pretrained(folder)
    texts.unet.register_to_config(sample_size=(4, 6))
    tiny_xl(folder / "xl")
    xl = StableDiffusionXLPipeline.from_pretrained(folder / "xl")
    xl.unet.register_to_config(sample_size=(4, 6))
    made = [
        tiny_pipeline(sample_size=(8, 12), in_channels=1, out_channels=1),
        tiny_pipeline(sample_size=(8, 12), num_class_embeds=4),
        texts,
        StableDiffusionImg2ImgPipeline.from_pipe(texts),
        StableDiffusionInpaintPipeline.from_pipe(texts),
        xl,
        StableDiffusionXLImg2ImgPipeline.from_pipe(xl),
        StableDiffusionXLInpaintPipeline.from_pipe(xl),
    ]
    for pipe in made:
        pipe.set_progress_bar_config(disable=True)
    return dict(zip(KINDS, made, strict=True))


@pytest.fixture
def pipe(kind: str, pipelines: dict[str, Any]) -> Any:
    return pipelines[kind]


def test_the_protocol_names_what_is_held_against_it_here() -> None:
    assert METHODS == ["decode", "denoiser", "encode", "picture_shape", "sample_shape"]
    assert {"class_count", "components", "device", "draws_texts", "dtype", "scheduler"} == set(MEMBERS) - set(METHODS)


def test_no_pipeline_is_left_out(pipelines: dict[str, Any]) -> None:
    known = {place.partition(":")[2] or name for name, place in PIPELINES.items() if "ControlNet" not in name}
    assert {type(pipe).__name__ for pipe in pipelines.values()} == known


@pytest.mark.parametrize("kind", KINDS)
def test_it_has_every_member(pipe: Any) -> None:
    for name in MEMBERS:
        getattr(pipe, name)
    for name in METHODS:
        own = getattr(type(pipe), name)
        assert own is not getattr(DiffusionPipeline, name), f"{name} is that of the base class, which does nothing"
        needed = inspect.signature(getattr(Pipeline, name)).parameters.values()
        named = [each for each in needed if each.kind is each.POSITIONAL_OR_KEYWORD]
        offered = list(inspect.signature(own).parameters.values())[: len(named)]
        assert [(each.name, each.default) for each in offered] == [(each.name, each.default) for each in named]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_between_encode_and_decode_has_the_shapes_that_it_says(pipe: Any) -> None:
    plan = pipe.scheduler.plan(2)
    shape = pipe.sample_shape(3)
    x = torch.randn(shape, device=pipe.device, dtype=pipe.dtype)
    with torch.no_grad():
        for step in sample(pipe.denoiser(plan, 3), x, plan):
            x = step.sample
        pictures = pipe.decode(x, "pt")
    assert x.shape == shape
    assert tuple(pictures.shape) == (3, *pipe.picture_shape())
    encoded = pipe.encode(pictures)
    assert encoded.shape == shape
    assert torch.equal(encoded, pipe.encode(pictures))
    (image,) = pipe.encode(pipe.decode(x)[:1])
    assert image.shape == shape[1:]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_call_draws_has_the_shape_that_it_says(pipe: Any) -> None:
    channels, height, width = pipe.picture_shape()
    given: dict[str, Any] = {"prompt": "a cat"} if pipe.draws_texts else {}
    if isinstance(pipe, FROM_PICTURES):
        given["image"] = torch.rand(1, channels, height, width)
    if isinstance(pipe, (StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline)):
        given["mask_image"] = torch.ones(height, width)
    (image,) = pipe(num_inference_steps=4, output_type="pt", **given).images
    assert tuple(image.shape) == (channels, height, width)
    (drawn,) = pipe(num_inference_steps=4, **given).images
    assert drawn.size == (width, height)


@pytest.mark.parametrize("kind", KINDS)
def test_it_draws_texts_exactly_where_it_says_so(kind: str, pipe: Any) -> None:
    assert pipe.draws_texts is kind.startswith("texts")
    plan = pipe.scheduler.plan(2)
    if pipe.draws_texts:
        pipe.denoiser(plan, 1, prompt="a cat")
    else:
        with pytest.raises(TypeError, match="prompt"):
            pipe.denoiser(plan, 1, prompt="a cat")


@pytest.mark.parametrize("kind", KINDS)
def test_it_draws_as_many_classes_as_it_says(kind: str, pipe: Any) -> None:
    assert pipe.class_count == (3 if kind == "classes" else None)  # of four embeddings the last one is no class
    plan = pipe.scheduler.plan(2)
    if pipe.class_count is None:
        with pytest.raises((ConfigError, TypeError), match="class_labels"):
            pipe.denoiser(plan, 1, class_labels=0)
    else:
        x, timestep = torch.randn(pipe.sample_shape(1)), torch.tensor(plan.timesteps[0])
        with torch.no_grad():
            drawn = [pipe.denoiser(plan, 1, class_labels=k)(x, timestep) for k in range(pipe.class_count + 1)]
            assert torch.equal(drawn.pop(), pipe.denoiser(plan, 1)(x, timestep))  # the embedding after them is none
        assert len({tuple(each.flatten().tolist()) for each in drawn}) == pipe.class_count
        with pytest.raises(ValueError, match="class_labels must be in"):
            pipe.denoiser(plan, 1, class_labels=pipe.class_count + 1)


def test_a_pipeline_of_no_kind_says_so() -> None:
    pipe = DiffusionPipeline()
    plan = tiny_pipeline().scheduler.plan(2)
    for ask in (
        lambda: pipe.draws_texts,
        pipe.picture_shape,
        lambda: pipe.sample_shape(1),
        lambda: pipe.denoiser(plan, 1),
        lambda: pipe.encode([]),
        lambda: pipe.decode(torch.zeros(1)),
        pipe,
    ):
        with pytest.raises(NotImplementedError):
            ask()  # type: ignore[operator]
