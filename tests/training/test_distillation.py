"""Students: what they are saved as, and that they draw as their teachers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_sd import tiny_reference
from tiny_training import COMMON

from ddim.checkpoint import read_json, read_tensors
from ddim.errors import ConfigError, DataError
from ddim.pipelines import DDIMPipeline, DiffusionPipeline, StableDiffusionPipeline
from ddim.scheduler import DDIMScheduler
from ddim.training import distill, train
from ddim.training.diffusion import train_scheduler
from ddim.training.distillation import Distillation, Stage, divide, stages_of
from ddim.training.settings import DistillSettings, PixelSettings
from ddim.training.trainer import Trainer
from ddim.training.trajectories import Trajectories

SOME: dict[str, Any] = {
    **COMMON,
    "trajectories": 8,
    "steps": 2,
    "teacher_steps": 4,
    "backend": "eager",
    "ema_decay": 0.5,
}
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("texts")
    tiny_reference(folder, 1, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    return str(folder)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("a red heart\n\na blue house\na cat\n", encoding="utf-8")
    return str(path)


def settings(folder: Path, model: str, **changes: Any) -> DistillSettings:
    return DistillSettings(output_dir=str(folder), model=model, **{**SOME, **changes})


def test_a_student_of_classes(classes: str, tmp_path: Path) -> None:
    folder = distill(settings(tmp_path, classes, guidance_scale=2.0, validation_steps=6))
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert isinstance(pipe, DDIMPipeline)
    config = pipe.scheduler.config
    assert (config.recommended_steps, config.recommended_guidance_scale) == (2, 1.0)
    assert list(config.trained_timesteps) == [999, 499]
    assert (config.timestep_spacing, config.prediction_type, config.clip_sample) == ("trailing", "v_prediction", False)
    assert len(list((tmp_path / "samples").iterdir())) == 1
    assert read_json(folder / "training.json")["stage"] == [2, 4, 2, 2.0, 0.0, []]


def test_a_student_of_timesteps_of_its_own(classes: str, tmp_path: Path) -> None:
    chosen = settings(tmp_path, classes, steps=3, timesteps=(999, 399, 149), teacher_steps=6)
    folder = distill(chosen)
    assert read_json(folder / "training.json")["stage"][-1] == [999, 399, 149]
    pipe = DiffusionPipeline.from_pretrained(folder)
    # Its folder says where it is to be used, and a call that says nothing draws there, as does one with its steps.
    config = pipe.scheduler.config
    assert (config.recommended_steps, config.recommended_spacing) == (3, "optimized")
    assert list(config.trained_timesteps) == [999, 399, 149]
    pipe.set_progress_bar_config(disable=True)
    asked: dict[str, Any] = {"class_labels": [0, 1], "seed": 0, "output_type": "pt"}
    own, same = (pipe(**asked, **more).images for more in ({}, {"num_inference_steps": 3}))
    by_hand = pipe(**asked, timesteps=[999, 399, 149], order=1).images
    assert torch.equal(own, same)
    assert torch.equal(own, by_hand)


def test_a_teacher_divides_the_steps_of_its_student(classes: str, tmp_path: Path) -> None:
    teacher = DiffusionPipeline.from_pretrained(classes)
    chosen = settings(tmp_path, classes, steps=3, timesteps=(999, 399, 149), teacher_steps=15)
    (stage,) = stages_of(chosen, (1.0, 0.0))
    objective = Distillation(chosen, stage, teacher, ())
    assert objective.plan.timesteps == (999, 399, 149)
    assert objective.teacher_plan.timesteps == (*range(999, 399, -120), *range(399, 149, -50), *range(149, -1, -30))
    assert objective.teacher_plan.order == 2
    # Evenly spaced timesteps are divided as the trailing ones of so many steps are.
    assert divide((999, 749, 499, 249), 5) == teacher.scheduler.plan(20, spacing="trailing").timesteps


# The fast test beside it is test_a_student_of_texts_is_a_folder_that_diffusers_loads.
@pytest.mark.slow
def test_it_comes_near_its_teacher(classes: str, tmp_path: Path) -> None:
    """After some training its pictures of two steps are nearer to its teacher's of four than those were before."""
    teacher = DiffusionPipeline.from_pretrained(classes)
    scheduler = DDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )
    DDIMPipeline(teacher.unet, scheduler).save_pretrained(tmp_path / "teacher")
    teacher = DiffusionPipeline.from_pretrained(tmp_path / "teacher")
    chosen = settings(
        tmp_path / "student", str(tmp_path / "teacher"), trajectories=64, max_train_steps=150, train_batch_size=16,
        learning_rate=3e-3, checkpointing_steps=1000, caption_dropout=0.0, ema_decay=0.9,
    )  # fmt: skip
    student = DiffusionPipeline.from_pretrained(distill(chosen))

    def draw(pipe: Any, steps: int, **more: Any) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        labels = [number % 3 for number in range(12)]
        drawn: torch.Tensor = pipe(
            class_labels=labels, num_inference_steps=steps, seed=0, output_type="pt", **more
        ).images
        return drawn

    goal = draw(teacher, 4, order=2)
    before, after = (float((draw(pipe, 2) - goal).square().mean()) for pipe in (teacher, student))
    assert after < before / 2


def test_a_student_of_texts_is_a_folder_that_diffusers_loads(texts: str, prompts: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    folder = distill(settings(tmp_path / "fast", texts, prompts_file=prompts, guidance_scale=3.0, guidance_rescale=0.7))
    ours = DiffusionPipeline.from_pretrained(folder)
    assert isinstance(ours, StableDiffusionPipeline)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    drawn = []
    for pipe in (ours, theirs):
        pipe.set_progress_bar_config(disable=True)
        drawn.append(
            pipe(
                "a cat", num_inference_steps=2, guidance_scale=1.0, output_type="np",
                generator=torch.Generator().manual_seed(0),
            ).images
        )  # fmt: skip
    assert abs(drawn[0] - drawn[1]).max() < 2e-4


def test_a_run_in_two_parts_ends_with_the_same_weights(
    texts: str, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed once while the teacher runs, and once in training."""
    more: dict[str, Any] = {"prompts_file": prompts, "guidance_scale": 2.0}
    whole = distill(settings(tmp_path / "whole", texts, **more))
    with monkeypatch.context() as patched:
        teach, asked = Distillation._teach, []

        def die(self: Distillation, numbers: Any) -> Any:
            asked.append(numbers[0])
            if len(asked) == 2:
                raise KeyboardInterrupt
            return teach(self, numbers)

        patched.setattr(Distillation, "_teach", die)
        with pytest.raises(KeyboardInterrupt):
            distill(settings(tmp_path / "parts", texts, **more))
        assert len(list((tmp_path / "parts" / "trajectories").iterdir())) == 1
    with monkeypatch.context() as patched:
        save = Trainer.save

        def save_and_die(self: Trainer) -> None:
            save(self)
            raise KeyboardInterrupt

        patched.setattr(Trainer, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            distill(settings(tmp_path / "parts", texts, **more))
    parts = distill(settings(tmp_path / "parts", texts, **more))
    first, second = (read_tensors(folder / UNET) for folder in (whole, parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_progressive_halves_the_steps_stage_by_stage(classes: str, tmp_path: Path) -> None:
    chosen = settings(tmp_path, classes, method="progressive", guidance_scale=2.0)
    assert stages_of(chosen, (2.0, 0.5)) == [Stage(4, 4, 1, 2.0, 0.5), Stage(2, 4, 1, 1.0, 0.0)]
    folder = distill(chosen)
    first = DiffusionPipeline.from_pretrained(folder / "steps-4")
    assert first.scheduler.config.recommended_steps == 4
    assert DiffusionPipeline.from_pretrained(folder).scheduler.config.recommended_steps == 2
    made = (folder / "steps-4" / UNET).stat().st_mtime_ns
    distill(chosen)  # nothing is left to do
    assert (folder / "steps-4" / UNET).stat().st_mtime_ns == made


# The fast test beside it is test_a_student_of_classes.
@pytest.mark.slow
def test_one_student_of_all_guidance_scales(texts: str, prompts: str, tmp_path: Path) -> None:
    folder = distill(settings(tmp_path / "fast", texts, prompts_file=prompts, guidance_range=(1.0, 6.0)))
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert pipe.unet.config.time_cond_proj_dim == 256
    assert pipe.unet.time_embedding.cond_proj.weight.abs().max() > 0
    pipe.set_progress_bar_config(disable=True)
    weak, strong = (
        pipe("a cat", num_inference_steps=2, guidance_scale=scale, seed=0, output_type="pt").images for scale in (1, 6)
    )
    assert (weak - strong).abs().max() > 0


# The fast test beside it is test_a_run_in_two_parts_ends_with_the_same_weights.
@pytest.mark.slow
def test_adapters_alone(texts: str, prompts: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = distill(settings(tmp_path / "fast", texts, prompts_file=prompts, rank=2))
    pipe = DiffusionPipeline.from_pretrained(texts)
    pipe.load_lora_weights(folder)
    assert pipe.get_active_adapters() == ["default_0"]


def test_a_student_that_is_trained_further_is_an_ordinary_model_again(classes: str, tmp_path: Path) -> None:
    student = distill(settings(tmp_path / "fast", classes))
    more = PixelSettings(
        output_dir=str(tmp_path / "more"), pretrained_model_name_or_path=str(student), data="digits", resolution=8,
        class_conditional=False, **{**COMMON, "max_train_steps": 1},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="class embeddings"):  # those of the digits are others
        train(more)
    config = DiffusionPipeline.from_pretrained(student).scheduler.config
    assert config.trained_timesteps is not None
    made = train_scheduler(more, config, "linear").config
    assert (made.trained_timesteps, made.recommended_steps, made.recommended_guidance_scale) == (None, None, None)


def test_what_is_drawn_does_not_depend_on_the_batch(classes: str, tmp_path: Path) -> None:
    """Trajectory k has a prompt, a class and a noise of its own, whichever are run beside it."""
    teacher = DiffusionPipeline.from_pretrained(classes)
    stage = Stage(2, 4, 2, 2.0, 0.0)
    made = []
    for batch in (4, 8):
        chosen = settings(tmp_path / str(batch), classes, train_batch_size=batch)
        student = Distillation(chosen, stage, teacher, ())
        student.prepare({})
        made.append(student.trajectories)
    few, many = ({number: at(data, number) for number in range(8)} for data in made)
    for number in range(8):
        assert (few[number] - many[number]).abs().max() < 2e-3  # float16


def at(data: Trajectories, number: int) -> torch.Tensor:
    part, row = divmod(number, data.batch)
    return data._open(part)["samples"][row].float()


def test_settings_that_cannot_work(classes: str, texts: str, prompts: str, tmp_path: Path) -> None:
    for changes, said in [
        ({"teacher_steps": 5}, "multiple of the 2 steps"),
        ({"method": "progressive", "teacher_steps": 6}, "times a power of 2"),
        ({"method": "progressive", "rank": 4}, "method direct"),
        ({"guidance_range": (3.0, 2.0)}, "the smaller first"),
        ({"guidance_range": (1.0, 2.0), "guidance_scale": 2.0}, "not both"),
        ({"prompts_file": "x", "dataset_name": "y"}, "give one of"),
        ({"timesteps": (999, 399, 149)}, "3 for 2 steps: give as many"),
        ({"timesteps": ()}, "0 for 2 steps"),
        ({"timesteps": (399, 999)}, "noisiest first"),
        ({"timesteps": (399, 399)}, "noisiest first"),
        ({"timesteps": (399, -1)}, "0 or more"),
        ({"timesteps": (399, 99), "method": "progressive"}, "method direct"),
        ({"timesteps": (399, 99), "rank": 4}, "leave out rank"),
    ]:
        with pytest.raises(ConfigError, match=said):
            settings(tmp_path, classes, **changes)
    for model, changes, said in [
        (classes, {"prompts_file": prompts}, "draws no texts"),
        (classes, {"guidance_range": (1.0, 2.0)}, "draws no texts"),
        (classes, {"teacher_steps": 2000}, "1000 timesteps"),
        (classes, {"timesteps": (1000, 399)}, "timesteps 0 to 999: 1000 is none"),
        (classes, {"timesteps": (999, 0), "teacher_steps": 8}, "a smaller teacher_steps"),
    ]:
        with pytest.raises(ConfigError, match=said):
            distill(settings(tmp_path, model, **changes))
    with pytest.raises(DataError, match="give prompts_file"):
        distill(settings(tmp_path, texts))
    with pytest.raises(DataError, match="cannot be read"):
        distill(settings(tmp_path, texts, prompts_file=str(tmp_path / "none.txt")))
    assert not [path for path in tmp_path.iterdir() if path.name != "prompts.txt"]
