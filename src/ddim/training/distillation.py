"""Distillation: a student that makes in one step what its teacher makes in many, with guidance that is part of it.

A run of the teacher, under guidance, passes through the student's timesteps, and the student learns to step from each
of them to the next (`trajectories`). So it needs fewer steps, and no second prediction at each of them, which guidance
costs its teacher (Meng et al. 2023). It starts from its teacher's weights. No pictures are needed, because the teacher
draws them: only texts, for a text-to-image model.

- "direct": the student learns from the teacher's own steps, in one run.
- "progressive" (Salimans and Ho 2022): a first student makes as many steps as the teacher, and learns the guidance
  alone; each further one makes half as many steps as the one before, which is its teacher. Every stage is a run.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from ddim.checkpoint import Savable, fingerprint
from ddim.data import captioned_source
from ddim.errors import ConfigError, DataError
from ddim.images import image_grid
from ddim.lora import add_lora, lora_state
from ddim.models.embeddings import guidance_condition
from ddim.pipelines import DiffusionPipeline
from ddim.process import Order
from ddim.sampling import Denoiser
from ddim.scheduler import DDIMScheduler
from ddim.training.caches import CaptionCache
from ddim.training.frozen import copied_as
from ddim.training.lora import Adapters
from ddim.training.objective import Losses, Objective
from ddim.training.settings import DistillSettings, TrainSettings
from ddim.training.texts import Texts
from ddim.training.trajectories import Trajectories


class Stage(NamedTuple):
    """What a student learns, and from which steps of its teacher."""

    steps: int
    teacher_steps: int
    teacher_order: Order
    guidance_scale: float
    guidance_rescale: float
    timesteps: tuple[int, ...] = ()  # of the student; trailing ones if empty


SHOWN = 16  # how many pictures a preview has
TEACHER_STEPS = 16  # about how many steps the teacher makes: of second order they are as good as 50 of first
CONDITION = 256  # channels of the guidance scale's sinusoids, for a student that takes it


def stages_of(settings: DistillSettings, guidance: tuple[float, float]) -> list[Stage]:
    """What is to be learnt, one stage after another.

    Args:
        guidance: the guidance scale and rescale of the model that is learnt from.
    """
    steps, times = settings.steps, max(1, round(TEACHER_STEPS / settings.steps))
    if settings.method == "direct":
        teacher_steps = settings.teacher_steps or steps * times
        order: Order = 2 if teacher_steps > steps else 1
        return [Stage(steps, teacher_steps, order, *guidance, settings.timesteps or ())]
    most = settings.teacher_steps or steps * 2 ** (times - 1).bit_length()
    halved = [most]
    while halved[-1] > steps:
        halved.append(halved[-1] // 2)
    return [Stage(most, most, 1, *guidance), *(Stage(each, 2 * each, 1, 1.0, 0.0) for each in halved[1:])]


def divide(timesteps: Sequence[int], parts: int) -> tuple[int, ...]:
    """The timesteps of a teacher that makes so many steps, of about the same length, for each one of its student.

    >>> divide((999, 399, 149), 2)
    (999, 699, 399, 274, 149, 74)

    Raises:
        ConfigError: there are not so many timesteps between two of the student's.
    """
    ends = [(high + 1, low + 1) for high, low in itertools.pairwise((*timesteps, -1))]
    finer = tuple(round(high + (low - high) * k / parts) - 1 for high, low in ends for k in range(parts))
    if len({*finer}) < len(finer):
        raise ConfigError(
            f"there are no {parts} steps of the teacher between each two of the timesteps {(*timesteps, 0)}: give "
            "timesteps that are further apart, or a smaller teacher_steps"
        )
    return finer


def student_scheduler(teacher: DDIMScheduler, prediction_type: str | None, stage: Stage) -> DDIMScheduler:
    """The scheduler of a student: its timesteps, and nothing clipped.

    They are trailing ones, which begin with the most noise, if the stage names none. Others stand in the scheduler as
    searched ones do.

    It predicts v where its teacher predicts the noise: at the first timesteps of few, where there is hardly any signal,
    a small error of the predicted noise is a large one of the picture (Salimans and Ho 2022, section 4).
    """
    if prediction_type is None and teacher.config.prediction_type == "epsilon":
        prediction_type = "v_prediction"
    scheduler: DDIMScheduler = teacher.from_config(
        teacher.config,
        timestep_spacing="trailing",
        clip_sample=False,
        thresholding=False,
        prediction_type=prediction_type or teacher.config.prediction_type,
        optimized_timesteps={str(stage.steps): list(stage.timesteps)} if stage.timesteps else None,
        recommended_steps=stage.steps,
        recommended_order=None,
        recommended_spacing="optimized" if stage.timesteps else None,
        recommended_guidance_scale=1.0,
        recommended_guidance_rescale=0.0,
        trained_timesteps=list(stage.timesteps or teacher.plan(stage.steps, spacing="trailing").timesteps),
    )
    return scheduler


class Distillation(Objective):
    """The loss of one stage: the squared error of the student's predictions on its teacher's trajectories.

    Args:
        settings: of the run. The trajectories are kept in its `output_dir`.
        stage: what this stage is.
        teacher: the pipeline that is learnt from. It is not needed any more once the trajectories are there.
        prompts: the texts that are drawn, in turn; empty for a model that draws none.
    """

    timesteps: Tensor
    passes = 1

    def __init__(
        self, settings: DistillSettings, stage: Stage, teacher: DiffusionPipeline, prompts: Sequence[str]
    ) -> None:
        super().__init__()
        self.settings, self.stage, self.teacher, self.prompts = settings, stage, teacher, tuple(prompts)
        self.scheduler = student_scheduler(teacher.scheduler, settings.prediction_type, stage)
        self.plan = self.scheduler.plan(stage.steps, spacing=self.scheduler.config.recommended_spacing)
        if stage.timesteps:
            finer = divide(stage.timesteps, stage.teacher_steps // stage.steps)
            self.teacher_plan = teacher.scheduler.plan(timesteps=finer, order=stage.teacher_order)
        else:
            count, order = stage.teacher_steps, stage.teacher_order
            self.teacher_plan = teacher.scheduler.plan(count, order=order, spacing="trailing")
        self.num_train_timesteps = self.scheduler.config.num_train_timesteps
        asked = (self.prompts, teacher.class_count, settings.caption_dropout)
        self.trajectories = Trajectories(
            Path(settings.output_dir) / "trajectories",
            settings.trajectories,
            settings.train_batch_size,
            self.plan,
            self.teacher_plan,
            repr((fingerprint(teacher.unet), asked, stage, settings.guidance_range)),
            settings.seed,
        )
        self.count = len(self.trajectories)
        unet = new_student(teacher.unet, self.takes_scale)
        if settings.rank is not None:
            add_lora(unet, settings.rank)
        if settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.networks = nn.ModuleDict({"unet": unet})
        self.texts: CaptionCache | None = None
        self.register_buffer("timesteps", torch.tensor(self.plan.timesteps), persistent=False)

    @property
    def takes_scale(self) -> bool:
        """Whether the student takes the guidance scale as an input."""
        return self.settings.guidance_range is not None

    @property
    def unet(self) -> Any:
        """The student."""
        return self.networks["unet"]

    def dataset(self) -> Dataset[dict[str, Any]]:
        return _Asked(self)

    # --- what is drawn -----------------------------------------------------------------------------------------------

    def prompt(self, number: int) -> str:
        """The text of a trajectory."""
        return "" if self._is_dropped(number) else self.prompts[number % len(self.prompts)]

    def label(self, number: int) -> int:
        """The class of a trajectory; the last one stands for none."""
        classes = self.teacher.class_count or 0
        return classes if self._is_dropped(number) else number % classes

    def _is_dropped(self, number: int) -> bool:
        """Whether a trajectory is drawn without its prompt or class."""
        draw = np.random.default_rng([self.settings.seed, 4, number]).random()
        return bool(draw < self.settings.caption_dropout)

    def scale(self, number: int) -> float:
        """The guidance scale of a trajectory, which is that of its part."""
        if self.settings.guidance_range is None:
            return self.stage.guidance_scale
        part = number // self.trajectories.batch
        low, high = self.settings.guidance_range
        return float(np.random.default_rng([self.settings.seed, 5, part]).uniform(low, high))

    def _teach(self, numbers: Sequence[int]) -> Denoiser:
        """The teacher, ready to run some trajectories."""
        asked: dict[str, Any] = {}
        if self.prompts:
            asked["prompt"] = [self.prompt(number) for number in numbers]
        elif self.teacher.class_count:
            asked["class_labels"] = [self.label(number) for number in numbers]
        if asked:
            asked |= {"guidance_scale": self.scale(numbers[0]), "guidance_rescale": self.stage.guidance_rescale}
        return self.teacher.denoiser(self.teacher_plan, len(numbers), **asked)

    def prepare(self, began: dict[str, Any]) -> None:
        """Run the teacher, and encode the texts."""
        pipe = self.teacher.to(self.timesteps.device)
        if self.trajectories.missing():
            pipe.accelerate(self.settings.backend)
            self.trajectories.fill(self._teach, pipe.sample_shape(1)[1:], pipe.device, pipe.dtype)
            pipe.accelerate("eager")
        if self.prompts:
            texts = Texts({"text_encoder": pipe.tokenizer})
            encoders, device = {"text_encoder": pipe.text_encoder}, self.timesteps.device
            captions = ["", *sorted({*self.prompts} - {""})]
            self.texts = CaptionCache(captions, Path(self.settings.output_dir) / "cache")
            self.texts.fill(lambda some: texts.encode(encoders, {"ids": texts.tokens(some)["ids"].to(device)}))

    # --- the loss ----------------------------------------------------------------------------------------------------

    def forward(self, batch: dict[str, Any]) -> Losses:
        timesteps = self.timesteps[batch["step"]]
        given: dict[str, Any] = {}
        if "label" in batch:
            given["class_labels"] = batch["label"]
        if "text" in batch:
            given["encoder_hidden_states"] = batch["text"]
        if "ids" in batch:
            with torch.no_grad():
                given["encoder_hidden_states"] = self.teacher.text_encoder(batch["ids"])[0].float()
        if "scale" in batch:
            given["timestep_cond"] = guidance_condition(batch["scale"], self.unet.config.time_cond_proj_dim)
        out = self.unet(batch["sample"], timesteps, **given).sample.float()
        return Losses((out - batch["target"]).square().flatten(1).mean(1), timesteps)

    # --- what comes of it --------------------------------------------------------------------------------------------

    def finished(self, networks: nn.ModuleDict) -> Savable:
        """The teacher's pipeline with the student and its scheduler; or the student's adapters alone."""
        unet: Any = networks["unet"]
        parts = {name: self.teacher.components[name] for name in self.teacher.parts}
        parts |= {name: copied_as(part, unet.dtype) for name, part in parts.items() if isinstance(part, nn.Module)}
        pipe: Any = type(self.teacher)(**{**parts, "unet": unet, "scheduler": self.scheduler})
        if hasattr(self.teacher, "words"):
            pipe.words = self.teacher.words
        if self.settings.rank is None:
            assert isinstance(pipe, Savable)
            return pipe
        return Adapters(lambda: pipe, {"unet": lora_state(unet)}, self.settings.rank, None)

    @property
    def shown(self) -> int:  # type: ignore[override]
        return len(self._shown()) if self.prompts else SHOWN

    def _shown(self) -> list[str]:
        """The texts of a preview."""
        return list(self.settings.validation_prompts or dict.fromkeys(self.prompts[: 4 * SHOWN]))[:SHOWN]

    def preview(self, finished: Any, most: int | None = None) -> Image.Image:
        pipe = finished.pipe() if isinstance(finished, Adapters) else finished
        pipe.set_progress_bar_config(disable=True)
        count = min(self.shown, most or SHOWN)
        drawn: dict[str, Any] = {"num_inference_steps": self.stage.steps, "seed": list(range(count))}
        if self.prompts:
            captions = self._shown()[:count]
            drawn |= {"prompt": captions, "guidance_scale": self.stage.guidance_scale if self.takes_scale else 1.0}
        else:
            classes = self.teacher.class_count
            labels = None if classes is None else [number % classes for number in range(count)]
            captions = [f"class {label}" for label in labels or ()]
            drawn |= {"class_labels": labels, "batch_size": count}
        return image_grid(pipe(**drawn).images, columns=min(8, count), captions=captions or None)

    def next_command(self, folder: str) -> list[str]:
        prompt = self._shown()[:1] if self.prompts else []
        options = ["--model", folder]
        if self.settings.rank is not None:
            options = ["--model", self.settings.model, "--lora", folder, "--steps", str(self.stage.steps)]
            options += ["--guidance-scale", "1", "--spacing", "trailing"]
        return ["ddim", "sample", *prompt, *options, "--out", f"{folder}/try.png"]

    def introduction(self, settings: TrainSettings, steps: int, per_step: int) -> list[str]:
        stage, runs = self.stage, self.trajectories.parts * self.trajectories.batch
        guided = "" if stage.guidance_scale == 1 else f" under guidance {stage.guidance_scale:g}"
        if self.takes_scale:
            guided = " under guidance {:g} to {:g}".format(*self.settings.guidance_range or (1, 1))
        times = steps * per_step / self.count
        return [
            f"{stage.teacher_steps} steps of {self.settings.model}{guided} become {stage.steps}: {runs:,} runs to "
            f"learn from, {steps:,} steps of {per_step}: {times:.2g} times through them"
        ]

    def record(self) -> dict[str, Any]:
        return {"trajectories": self.trajectories.name, "stage": [*self.stage[:-1], list(self.stage.timesteps)]}


class _Asked(Dataset[dict[str, Any]]):
    """The trajectories' steps with what the student is asked for: "text" (s d) or "ids" (s,), "label" and "scale"."""

    def __init__(self, stage: Distillation) -> None:
        self.stage, self.trajectories = stage, stage.trajectories

    def __getitem__(self, position: int) -> dict[str, Any]:
        item = self.trajectories[position]
        stage, number = self.stage, item.pop("number")
        if stage.prompts:
            prompt = stage.prompt(number)
            if stage.texts is not None:
                item["text"] = stage.texts.embedding(prompt).states
            else:
                item["ids"] = stage.teacher.tokenizer.ids(prompt, warn=False)[0]
        elif stage.teacher.class_count:
            item["label"] = stage.label(number)
        if stage.takes_scale:
            item["scale"] = torch.tensor(stage.scale(number))
        return item


def new_student(teacher: Any, takes_scale: bool) -> Any:
    """A copy of the teacher's U-Net, all of it to be trained.

    It has no dropout: what it is to predict has no noise, of which dropout would only add some.

    Args:
        takes_scale: give it an input for the guidance scale, which has no effect before it is trained. A U-Net that has
            one already keeps it.
    """
    teacher = getattr(teacher, "_orig_mod", teacher)
    config = dict(teacher.config)
    if not takes_scale or config.get("time_cond_proj_dim") is not None:
        return without_dropout(copy.deepcopy(teacher)).train().requires_grad_(True)
    if "time_cond_proj_dim" not in config:
        raise ConfigError(f"a {type(teacher).__name__} has no input for a guidance scale: leave out guidance_range")
    student = type(teacher).from_config(config, time_cond_proj_dim=CONDITION)
    with torch.no_grad():
        missing, _ = student.load_state_dict(teacher.state_dict(), strict=False)
        assert missing == ["time_embedding.cond_proj.weight"]
        student.time_embedding.cond_proj.weight.zero_()
    return without_dropout(student).train()


def without_dropout(network: nn.Module) -> Any:
    """The same network, whose dropout drops nothing in training either."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


# --- a run ------------------------------------------------------------------------------------------------------------


def read_prompts(settings: DistillSettings) -> list[str]:
    """The texts that the settings name.

    Raises:
        DataError: there are none, or the file cannot be read.
    """
    if settings.prompts_file is not None:
        try:
            lines = Path(settings.prompts_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{settings.prompts_file} cannot be read as text: {error}") from error
        prompts = [line.strip() for line in lines if line.strip()]
    elif settings.dataset_name is not None or settings.train_data_dir is not None:
        source = captioned_source(
            train_data_dir=settings.train_data_dir,
            dataset_name=settings.dataset_name,
            caption_column=settings.caption_column,
            **settings.hub,
        )
        prompts = [options[0] for options in source.captions or ()]
    else:
        raise DataError(
            "a text-to-image model is distilled on texts: give prompts_file, a file with a prompt a line, or data with "
            "captions by dataset_name or train_data_dir"
        )
    if not prompts:
        raise DataError(f"{settings.prompts_file or settings.dataset_name or settings.train_data_dir} has no prompts")
    order = np.random.default_rng([settings.seed, 6]).permutation(len(prompts))
    return [prompts[index] for index in order]


def check_fits(settings: DistillSettings, teacher: DiffusionPipeline) -> None:
    """Raise a ConfigError for settings that have no meaning for the model that is learnt from."""
    if not teacher.draws_texts:
        given = [name for name in ("prompts_file", "dataset_name", "train_data_dir") if getattr(settings, name)]
        if given:
            raise ConfigError(f"{settings.model} draws no texts: leave out {given[0]}")
        if settings.guidance_range is not None:
            raise ConfigError(f"{settings.model} draws no texts: leave out guidance_range, and give guidance_scale")
    if not teacher.draws_texts and teacher.class_count is None and settings.guidance_scale not in (None, 1):
        raise ConfigError(f"{settings.model} knows neither texts nor classes: leave out guidance_scale")
    total = teacher.scheduler.config.num_train_timesteps
    if max(settings.steps, settings.teacher_steps or 1) > total:
        raise ConfigError(f"{settings.model} was trained on {total} timesteps: steps cannot be more")
    if settings.timesteps is not None and settings.timesteps[0] >= total:
        raise ConfigError(
            f"{settings.model} was trained on the timesteps 0 to {total - 1}: {settings.timesteps[0]} is none"
        )
