"""Training a pixel U-Net, resumable bit for bit.

Nothing random depends on what came before: the order of the images is a function of (seed, position), and each batch's
noise, timesteps and dropout of (seed, step, batch, process). So a checkpoint is the weights, the optimizer, the average
and a step count, and a run that was killed ends with the weights of one that was not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm

from ddim import __version__
from ddim.checkpoint import check_state, read_json, read_tensors, save_tensors, write_json
from ddim.data import Preparation, Stream
from ddim.errors import CheckpointError, ConfigError, NonFiniteError, require
from ddim.losses import DiffusionLoss
from ddim.models import UNet2DModel
from ddim.pipelines import DDIMPipeline, image_grid
from ddim.scheduler import DDIMScheduler
from ddim.settings import TrainSettings
from ddim.sources import open_source

# Settings that may change between the start of a run and its resumption without changing what it computes.
FREE = frozenset(
    "output_dir max_train_steps num_train_epochs checkpointing_steps checkpoints_total_limit resume_from_checkpoint "
    "validation_steps logging_steps report_to save_dtype push_to_hub dataloader_num_workers".split()
)


# --- what is trained -------------------------------------------------------------------------------------------------


def build_scheduler(settings: TrainSettings) -> DDIMScheduler:
    """The noise schedule to train with; it is saved with the model, so sampling uses what was trained."""
    return DDIMScheduler(
        num_train_timesteps=settings.num_train_timesteps,
        beta_schedule=settings.beta_schedule,
        prediction_type=settings.prediction_type,
        timestep_spacing=settings.timestep_spacing,
        rescale_betas_zero_snr=settings.rescale_betas_zero_snr,
    )


def build_unet(settings: TrainSettings, resolution: int, channels: int, classes: int | None) -> UNet2DModel:
    """A new U-Net, or the one of `pretrained_model_name_or_path`. One class more than there are stands for none."""
    if settings.pretrained_model_name_or_path is not None:
        pipeline = DDIMPipeline.from_pretrained(settings.pretrained_model_name_or_path)
        config = pipeline.unet.config
        wanted = None if classes is None else classes + 1
        if config.in_channels != channels or config.num_class_embeds != wanted:
            raise ConfigError(
                f"{settings.pretrained_model_name_or_path} has {config.in_channels} channels and "
                f"{config.num_class_embeds} class embeddings; the data asks for {channels} and {wanted}"
            )
        return pipeline.unet
    widths = settings.block_out_channels
    levels = {level % len(widths) for level in settings.attention_levels}
    attention = [level in levels for level in range(len(widths))]
    return UNet2DModel(
        sample_size=resolution,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=settings.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        attention_head_dim=settings.attention_head_dim,
        norm_num_groups=math.gcd(32, *widths),
        dropout=settings.dropout,
        num_class_embeds=None if classes is None else classes + 1,
    )


def learning_rate_factor(settings: TrainSettings, step: int, total: int) -> float:
    """What the learning rate is multiplied by at a step (from 0)."""
    warm = settings.lr_warmup_steps
    if step < warm:
        return (step + 1) / (warm + 1)
    progress = min(1.0, (step - warm) / max(1, total - warm))
    return {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[
        settings.lr_scheduler
    ]


class _Positions(Sampler[int]):
    """Where one process of several reads in the stream, from a step on, to the end of the run."""

    def __init__(self, first: int, last: int, process: int, processes: int) -> None:
        self.range = range(first + process, last, processes)

    def __iter__(self) -> Iterator[int]:
        return iter(self.range)

    def __len__(self) -> int:
        return len(self.range)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    found = [p.parent for p in Path(output_dir).glob("checkpoint-*/state.json") if p.parent.name[11:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[11:]))


class Trainer:
    """One training run: what it is made of, its loop, and its checkpoints."""

    def __init__(self, settings: TrainSettings) -> None:
        accelerate = require("accelerate", "train")
        if settings.report_to == "tensorboard":
            require("tensorboard", "train")
        self.settings = settings
        self.output_dir = Path(settings.output_dir)
        self.accelerator = accelerate.Accelerator(
            mixed_precision=settings.mixed_precision,
            log_with=None if settings.report_to == "none" else settings.report_to,
            project_dir=settings.output_dir,
        )
        self.source = open_source(
            settings.data, settings.class_conditional, settings.image_column, settings.label_column
        )
        if settings.max_train_samples is not None:
            self.source = dataclasses.replace(self.source, count=min(self.source.count, settings.max_train_samples))
        classes = len(self.source.class_names) if settings.class_conditional else None
        if classes == 0:
            raise ConfigError(f"{settings.data} has no classes: leave out class_conditional")
        self.none = classes  # the label that stands for no class
        self.resolution = settings.resolution or (8 if settings.data == "digits" else 32)
        torch.manual_seed(settings.seed)
        self.scheduler = build_scheduler(settings)
        unet = build_unet(settings, self.resolution, self.source.channels, classes)
        if settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.loss = DiffusionLoss(self.scheduler, settings.snr_gamma).to(self.accelerator.device)
        self.average = None
        if settings.use_ema:
            ema = get_ema_multi_avg_fn(settings.ema_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(unet, multi_avg_fn=ema)
            self.average.to(self.accelerator.device)
        rate = settings.learning_rate
        self.batch = settings.train_batch_size * self.accelerator.num_processes
        self.per_step = self.batch * settings.gradient_accumulation_steps
        if settings.scale_lr:
            rate *= self.per_step
        self.rate = rate
        optimizer = torch.optim.AdamW(
            unet.parameters(),
            lr=rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_epsilon,
            weight_decay=settings.adam_weight_decay,
            fused=True,
        )
        self.model, self.optimizer = self.accelerator.prepare(unet.train(), optimizer)
        self.total = settings.max_train_steps
        if settings.num_train_epochs is not None:
            self.total = math.ceil(settings.num_train_epochs * self.source.count / self.per_step)
        self.step = 0

    @property
    def unet(self) -> UNet2DModel:
        """The network itself, without what accelerate wraps it in."""
        unet = self.accelerator.unwrap_model(self.model)
        assert isinstance(unet, UNet2DModel)
        return unet

    def run(self) -> Path:
        """Train to the end and save the pipeline; returns its folder."""
        settings, accelerator = self.settings, self.accelerator
        self.resume()
        if settings.report_to != "none":
            accelerator.init_trackers("logs", {k: str(v) for k, v in dataclasses.asdict(settings).items()})
        parameters = list(self.model.parameters())
        batches = iter(self._loader())
        bar = tqdm(
            total=self.total,
            initial=self.step,
            desc="training",
            unit="step",
            disable=not accelerator.is_local_main_process,
        )
        losses: list[Tensor] = []
        while self.step < self.total:
            factor = learning_rate_factor(settings, self.step, settings.lr_decay_steps or self.total)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * factor
            losses.append(self._accumulate(batches))
            norm = accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.average is not None:
                self.average.update_parameters(self.unet)
            self.step += 1
            bar.update()
            due = self.step % settings.checkpointing_steps == 0 or self.step == self.total
            if due or self.step % settings.logging_steps == 0:
                self._log(losses, norm, bar)
                losses = []
            if due:
                self.save()
            every = settings.checkpointing_steps if settings.validation_steps is None else settings.validation_steps
            if every and (self.step % every == 0 or self.step == self.total):
                self._validate()
        bar.close()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self.finished().to(getattr(torch, settings.save_dtype)).save_pretrained(
                self.output_dir, push_to_hub=settings.push_to_hub
            )
            write_json(self.output_dir / "training.json", self._record())
        accelerator.end_training()
        return self.output_dir

    def _loader(self) -> DataLoader[Any]:
        settings = self.settings
        prepare = Preparation(self.resolution, self.source.channels, settings.center_crop, settings.random_flip)
        return DataLoader(
            Stream(self.source, prepare, settings.seed),
            batch_size=settings.train_batch_size,
            sampler=_Positions(
                self.step * self.per_step,
                self.total * self.per_step,
                self.accelerator.process_index,
                self.accelerator.num_processes,
            ),
            num_workers=settings.dataloader_num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _accumulate(self, batches: Iterator[dict[str, Tensor]]) -> Tensor:
        """The gradients of one optimizer step; returns the mean loss."""
        count = self.settings.gradient_accumulation_steps
        total = torch.zeros((), device=self.accelerator.device)
        for number in range(count):
            batch = next(batches)
            key = [self.settings.seed, 2, self.step, number, self.accelerator.process_index]
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
            if number + 1 < count:
                with self.accelerator.no_sync(self.model):
                    loss = self._loss(batch) / count
                    self.accelerator.backward(loss)
            else:
                loss = self._loss(batch) / count
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        settings = self.settings
        x0 = batch["image"].to(self.accelerator.device, non_blocking=True)
        eps = torch.randn_like(x0)
        if settings.noise_offset:
            eps = eps + settings.noise_offset * torch.randn_like(x0[:, :, :1, :1])
        timesteps = torch.randint(settings.num_train_timesteps, (len(x0),), device=x0.device)
        perturbation = settings.input_perturbation * torch.randn_like(x0) if settings.input_perturbation else None
        labels = None
        if self.none is not None:
            labels = batch["label"].to(x0.device, non_blocking=True)
            labels = labels.masked_fill(torch.rand(len(x0), device=x0.device) < settings.class_dropout, self.none)

        def denoiser(x: Tensor, t: Tensor) -> Tensor:
            with self.accelerator.autocast():
                out: Tensor = self.model(x, t, labels).sample
            return out

        loss: Tensor = self.loss(denoiser, x0, eps, timesteps, perturbation)
        return loss.mean()

    def _log(self, losses: list[Tensor], norm: Tensor | None, bar: Any) -> None:
        """Report the losses since the last time; the only place where the loop waits for the device."""
        mean = float(self.accelerator.gather(torch.stack(losses).mean()).mean())
        if not math.isfinite(mean):
            raise NonFiniteError(
                f"the loss is {mean} at step {self.step}: lower learning_rate, or resume from the last checkpoint in "
                f"{self.output_dir} with other settings"
            )
        bar.set_postfix(loss=f"{mean:.4f}")
        values = {"loss": mean, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        if norm is not None:
            values["gradient_norm"] = float(norm)
        if self.settings.report_to != "none":
            self.accelerator.log(values, step=self.step)

    # --- pictures and pipelines --------------------------------------------------------------------------------------

    def finished(self) -> DDIMPipeline:
        """A pipeline of the averaged weights as they are now (a copy)."""
        network = self.unet if self.average is None else self.average.module
        config = {key: value for key, value in self.unet.config.items() if not key.startswith("_")}
        copy = UNet2DModel(**config)
        copy.load_state_dict(network.state_dict())
        return DDIMPipeline(copy.eval(), self.scheduler)

    def _validate(self) -> None:
        if not self.accelerator.is_main_process:
            return
        pipe = self.finished().to(self.accelerator.device)
        pipe.set_progress_bar_config(disable=True)
        labels = None if self.none is None else [i % self.none for i in range(min(2 * self.none, 32))]
        images = pipe(len(labels or [None] * 16), class_labels=labels, num_inference_steps=25, seed=0)[0]
        grid = image_grid(images, columns=8 if self.none is None else min(self.none, 16))
        (self.output_dir / "samples").mkdir(exist_ok=True)
        grid.save(self.output_dir / "samples" / f"step-{self.step:07d}.png")
        if self.settings.report_to == "tensorboard":
            writer = self.accelerator.get_tracker("tensorboard", unwrap=True)
            writer.add_image("samples", np.asarray(grid), self.step, dataformats="HWC")

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _record(self) -> dict[str, Any]:
        return {
            "ddim": __version__,
            "torch": torch.__version__,
            "step": self.step,
            "images": self.source.count,
            "class_names": list(self.source.class_names),
            "settings": {k: v for k, v in dataclasses.asdict(self.settings).items() if k != "output_dir"},
        }

    def save(self) -> None:
        """Write a checkpoint: complete under a temporary name, then renamed; then drop the oldest over the limit."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        target = self.output_dir / f"checkpoint-{self.step}"
        temporary = self.output_dir / f".{target.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_tensors(temporary / "model.safetensors", self.unet.state_dict())
        if self.average is not None:
            save_tensors(temporary / "average.safetensors", self.average.state_dict())
        save_tensors(temporary / "optimizer.safetensors", self._optimizer_tensors())
        record = self._record()
        if self.accelerator.scaler is not None:
            record["scaler"] = self.accelerator.scaler.state_dict()
        write_json(temporary / "state.json", record)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        limit = self.settings.checkpoints_total_limit
        for old in checkpoints(self.output_dir)[: -limit if limit else 0]:
            shutil.rmtree(old, ignore_errors=True)

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        state = self.optimizer.state_dict()["state"]
        names = [name for name, _ in self.unet.named_parameters()]
        return {f"{key}:{names[i]}": value for i, values in state.items() for key, value in values.items()}

    def resume(self) -> None:
        """Go on from a checkpoint, if there is one and the settings allow it.

        Raises:
            CheckpointError: the checkpoint asked for is missing or broken.
            ConfigError: it was made with other settings, or the folder has one that is not to be used.
        """
        wanted = self.settings.resume_from_checkpoint
        found = checkpoints(self.output_dir)
        if wanted == "none":
            if found:
                raise ConfigError(f"{self.output_dir} has checkpoints of an earlier run: give another output_dir")
            return
        if wanted == "latest":
            if not found:
                return
            folder = found[-1]
        else:
            folder = Path(wanted)
        state = read_json(folder / "state.json")
        mine = json.loads(json.dumps(dataclasses.asdict(self.settings)))
        theirs = state.get("settings")
        if not isinstance(theirs, dict) or not isinstance(state.get("step"), int):
            raise CheckpointError(f"{folder / 'state.json'} is no state of a training run")
        changed = [
            f"{key}: {theirs.get(key)} -> {mine[key]}"
            for key in mine
            if key not in FREE and theirs.get(key) != mine[key]
        ]
        if changed:
            raise ConfigError(
                f"{folder} was made with other settings ({'; '.join(changed)}): use the same, or another output_dir"
            )
        _load(self.unet, read_tensors(folder / "model.safetensors"), folder)
        if self.average is not None:
            _load(self.average, read_tensors(folder / "average.safetensors"), folder)
        self._load_optimizer(read_tensors(folder / "optimizer.safetensors"))
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.accelerator.print(f"resuming from {folder}")

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        numbers = {name: number for number, (name, _) in enumerate(self.unet.named_parameters())}
        for key, value in tensors.items():
            kind, _, name = key.partition(":")
            state.setdefault(numbers[name], {})[kind] = value.clone()
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


def _load(module: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    check_state(module.state_dict(), state, f"{folder} does not fit the network")
    module.load_state_dict(state)


def train(settings: TrainSettings) -> Path:
    """Train a U-Net on pixels and save it as a pipeline that `DiffusionPipeline.from_pretrained` loads.

    Raises:
        ConfigError, DataError: settings or data that cannot work together, before anything is written.
        NonFiniteError: the loss became NaN; the checkpoints before it are left as they are.
    """
    return Trainer(settings).run()
