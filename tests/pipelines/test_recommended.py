"""Pipelines follow what their folder recommends where a call says nothing, and are as before where it says nothing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny import tiny_pipeline
from tiny_sd import tiny_reference
from torch import Tensor

from ddim import DDIMScheduler, DiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from ddim.errors import ConfigError

LISTS = {"4": [980, 700, 400, 90]}
STEPS = {"recommended_steps": 4, "recommended_order": 2, "recommended_spacing": "optimized"}
GUIDANCE = {"recommended_guidance_scale": 3.0, "recommended_guidance_rescale": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A text-to-image pipeline of diffusers, which recommends nothing."""
    folder = tmp_path_factory.mktemp("sd")
    tiny_reference(folder, 1, prediction_type="v_prediction")
    return str(folder)


def texts(folder: str, **said: Any) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler.register_to_config(optimized_timesteps=LISTS, **said)
    return pipe


def pixels(**said: Any) -> Any:
    return tiny_pipeline(scheduler=DDIMScheduler(optimized_timesteps=LISTS, **said), num_class_embeds=4)


def drawn(pipe: Any, **options: Any) -> Tensor:
    given = {"seed": 3, "output_type": "pt", **options}
    given |= {"prompt": "a cat"} if pipe.draws_texts else {"class_labels": 1}
    images: Tensor = pipe(**given).images
    return images


def explicit(pipe: Any, **options: Any) -> Tensor:
    """What a call that says everything draws."""
    return drawn(pipe, timesteps=LISTS["4"], order=2, guidance_scale=3.0, guidance_rescale=0.5, **options)


def test_classes() -> None:
    plain, pipe = pixels(), pixels(**STEPS, **GUIDANCE)
    assert torch.equal(drawn(pipe), explicit(plain))
    assert torch.equal(drawn(pipe, num_inference_steps=4), explicit(plain))
    usual = drawn(plain, num_inference_steps=6, order=1, guidance_scale=1.0)
    assert torch.equal(drawn(pipe, num_inference_steps=6, guidance_scale=1), usual)
    first = drawn(plain, num_inference_steps=4, guidance_scale=1.0)
    assert torch.equal(drawn(pipe, num_inference_steps=4, order=1, guidance_scale=1.0), first)
    noisy = drawn(plain, timesteps=LISTS["4"], eta=1.0, guidance_scale=3.0, guidance_rescale=0.5)
    assert torch.equal(drawn(pipe, eta=1.0), noisy)


def test_texts(folder: str) -> None:
    plain, pipe = texts(folder), texts(folder, **STEPS, **GUIDANCE)
    assert torch.equal(drawn(pipe), explicit(plain))
    assert (pipe.num_timesteps, pipe.guidance_scale, pipe.guidance_rescale) == (4, 3.0, 0.5)
    assert not torch.equal(drawn(pipe, guidance_scale=4), explicit(plain))


def test_pictures_to_start_from(folder: str) -> None:
    plain, pipe = texts(folder), texts(folder, **STEPS, **GUIDANCE)
    start: dict[str, Any] = {"image": torch.zeros(1, 3, 16, 16), "strength": 0.5}
    listed = [499, 400, 90]  # half of the training timesteps, and not half of the list

    def from_half(**options: Any) -> Tensor:
        said = {"timesteps": listed, "order": 2, "guidance_scale": 3.0, "guidance_rescale": 0.5}
        return drawn(plain, **{**start, **said, "strength": 1.0, **options})

    expected = from_half()
    assert torch.equal(drawn(pipe, **start), expected)
    assert pipe.num_timesteps == 3
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert torch.equal(other("a cat", **start, seed=3, output_type="pt").images, expected)
    assert torch.equal(drawn(pipe, **{**start, "strength": 1.0}), explicit(plain, **{**start, "strength": 1.0}))
    drawn(pipe, **start, num_inference_steps=6)
    assert pipe.num_timesteps == 3  # a share of the steps, as in diffusers
    with pytest.raises(ConfigError, match="strength"):
        drawn(pipe, **{**start, "strength": 0.0001})
    masked = StableDiffusionInpaintPipeline.from_pipe(pipe)
    start["mask_image"] = torch.ones(1, 1, 16, 16)
    whole = masked("a cat", image=start["image"], mask_image=start["mask_image"], seed=3, output_type="pt").images
    assert torch.equal(whole, explicit(plain, **{**start, "strength": 1.0}))
    assert masked.num_timesteps == 4


def test_a_student_starts_from_a_picture_at_timesteps_that_it_knows(folder: str) -> None:
    said = {"recommended_steps": 4, "recommended_spacing": "optimized", "trained_timesteps": LISTS["4"]}
    pipe = texts(folder, **said, recommended_guidance_scale=1.0)
    assert warned(pipe, image=torch.zeros(1, 3, 16, 16), strength=0.6) == []
    assert pipe.num_timesteps == 2


# The fast test beside it is test_texts.
@pytest.mark.slow
def test_a_folder_that_says_nothing_is_sampled_as_before(folder: str) -> None:
    """50 steps of first order, and guidance of 7.5 for texts: as diffusers does it."""
    ours, theirs = texts(folder), diffusers.StableDiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    shape = (1, *ours.sample_shape(1)[1:])
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    told = {"prompt": "a cat", "latents": latents}
    mine = ours(**told, output_type="pt").images
    assert ours.num_timesteps == 50
    reference = torch.from_numpy(theirs(**told, output_type="np").images).permute(0, 3, 1, 2)
    torch.testing.assert_close(mine, reference, rtol=0, atol=2e-4)
    said = {"num_inference_steps": 50, "guidance_scale": 7.5, "guidance_rescale": 0.0, "order": 1}
    assert torch.equal(mine, ours(**told, **said, output_type="pt").images)
    plain = pixels()
    assert torch.equal(drawn(plain), drawn(plain, num_inference_steps=50, guidance_scale=1.0, order=1))


def test_a_folder_is_followed_when_it_was_saved_and_loaded(folder: str, tmp_path: Path) -> None:
    pipe = texts(folder, **STEPS, **GUIDANCE)
    pipe.save_pretrained(tmp_path)
    assert torch.equal(drawn(DiffusionPipeline.from_pretrained(tmp_path)), drawn(pipe))
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    assert len(theirs("a cat", num_inference_steps=2).images) == 1


def test_a_subclass_with_its_own_run_is_asked_for_the_spacing() -> None:
    class Own(DDIMScheduler):
        def set_timesteps(self, *args: Any, **options: Any) -> None:
            asked.append((args, self.config.timestep_spacing))
            super().set_timesteps(*args, **options)

    asked: list[Any] = []
    pipe = tiny_pipeline(scheduler=Own(optimized_timesteps=LISTS, recommended_steps=4, recommended_spacing="optimized"))
    drawn_here = pipe(seed=0, output_type="pt").images
    assert asked == [((4,), "optimized")]
    assert torch.equal(drawn_here, pixels_without_classes(timesteps=LISTS["4"]))
    assert pipe.scheduler.config.timestep_spacing == "leading"


def pixels_without_classes(**options: Any) -> Tensor:
    images: Tensor = tiny_pipeline()(seed=0, output_type="pt", **options).images
    return images


def test_what_cannot_be_followed_is_one_clear_error() -> None:
    pipe = pixels(recommended_steps=8, recommended_spacing="optimized")
    with pytest.raises(ConfigError, match="no timesteps for num_inference_steps=8: there are some for 4"):
        drawn(pipe)
    with pytest.raises(ConfigError, match="recommended_steps='many'"):
        drawn(pixels(recommended_steps="many"))
    with pytest.raises(ConfigError, match="from 1 to num_train_timesteps"):
        drawn(pixels(recommended_steps=2000))


# --- a student's steps and guidance ----------------------------------------------------------------------------------

STUDENT = {
    "timestep_spacing": "trailing",
    "recommended_steps": 4,
    "recommended_guidance_scale": 1.0,
    "trained_timesteps": [999, 749, 499, 249],
}


def warned(pipe: Any, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawn(pipe, **options)
    assert all(each.filename == __file__ for each in caught)  # they point at the call
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("kind", ["classes", "texts"])
def test_a_student_warns_of_what_it_was_not_trained_for(kind: str, folder: str) -> None:
    pipe = pixels(**STUDENT) if kind == "classes" else texts(folder, **STUDENT)
    assert warned(pipe) == warned(pipe, num_inference_steps=4) == warned(pipe, num_inference_steps=2) == []
    (steps,) = warned(pipe, num_inference_steps=8)
    assert "made for 4 steps of first order at trailing timesteps, guidance 1, and is asked for 8 steps" in steps
    (guidance,) = warned(pipe, guidance_scale=3.0)
    assert "guidance 3" in guidance
    (both,) = warned(pipe, num_inference_steps=8, guidance_scale=3.0)
    assert "8 steps" in both
    assert "guidance 3" in both


def test_a_student_of_guidance_as_an_input_takes_any_scale(folder: str) -> None:
    pipe = texts(folder, **STUDENT)
    pipe.unet.register_to_config(time_cond_proj_dim=8)
    pipe.unet.time_embedding.cond_proj = torch.nn.Linear(8, pipe.unet.time_embedding.linear_1.in_features, bias=False)
    assert warned(pipe, guidance_scale=3.0) == []
    assert not torch.equal(drawn(pipe, guidance_scale=3.0), drawn(pipe))
    assert len(warned(pipe, num_inference_steps=8, guidance_scale=3.0)) == 1
