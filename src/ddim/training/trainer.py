"""The training loop, the same for everything that is trained, resumable bit for bit.

Nothing random depends on what came before: the order of the images is a function of (seed, position), and each batch's
noise, timesteps and dropout of (seed, step, batch, process). So a checkpoint is the weights, the optimizer, the average
and a step count, and a run that was killed ends with the weights of one that was not.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import os
import warnings
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
from ddim.checkpoint import Savable, atomic_write, write_json
from ddim.errors import CheckpointError, ConfigError, NonFiniteError, require
from ddim.training.checkpoints import (
    checkpoints,
    drop_old,
    load_optimizer,
    load_trained,
    optimizer_tensors,
    read_state,
    trained,
    write_checkpoint,
)
from ddim.training.objective import Losses, Objective
from ddim.training.settings import TrainSettings

# Settings that may change between the start of a run and its resumption without changing what it computes.
FREE = frozenset(
    "output_dir max_train_steps num_train_epochs checkpointing_steps checkpoints_total_limit resume_from_checkpoint "
    "validation_steps validation_epochs validation_prompts logging_steps report_to save_dtype push_to_hub "
    "dataloader_num_workers".split()
)
BINS = 10  # how many equal parts of the timesteps the loss is told of, one by one


def learning_rate_factor(settings: TrainSettings, step: int, total: int) -> float:
    """What the peak learning rate is multiplied by at a step, of which the first is 0."""
    warm = settings.lr_warmup_steps
    if step < warm:
        return (step + 1) / (warm + 1)
    progress = min(1.0, (step - warm) / max(1, total - warm))
    cycle = progress * settings.lr_num_cycles % 1 if progress < 1 else 1.0
    factors: dict[str, float] = {
        "constant": 1.0,
        "constant_with_warmup": 1.0,
        "linear": 1 - progress,
        "polynomial": (1 - progress) ** settings.lr_power,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "cosine_with_restarts": 0.5 * (1 + math.cos(math.pi * cycle)),
    }
    return factors[settings.lr_scheduler]


class _Positions(Sampler[int]):
    """The positions in the stream that one process of several reads, from a step on to the end of the run."""

    def __init__(self, first: int, last: int, process: int, processes: int) -> None:
        self.range = range(first + process, last, processes)

    def __iter__(self) -> Iterator[int]:
        return iter(self.range)

    def __len__(self) -> int:
        return len(self.range)


class _Log:
    """What the steps since the last report gave, kept on the device, so that training never waits for it."""

    def __init__(self, bins: int) -> None:
        self.losses: list[Tensor] = []
        self.parts: dict[str, list[Tensor]] = {}
        self.bins = bins
        self.by_timestep: list[tuple[Tensor, Tensor]] = []

    def add(self, losses: Losses) -> None:
        """Note what a batch gave."""
        self.losses.append(losses.loss.detach().mean())
        for name, value in (losses.parts or {}).items():
            self.parts.setdefault(name, []).append(value.detach())
        if losses.timesteps is not None:
            self.by_timestep.append((losses.timesteps.detach(), losses.loss.detach()))

    def values(self, num_train_timesteps: int) -> dict[str, float]:
        """The means since the last report."""
        values = {name: float(torch.stack(parts).mean()) for name, parts in self.parts.items()}
        if self.by_timestep:
            timesteps, losses = (torch.cat(columns).cpu() for columns in zip(*self.by_timestep, strict=True))
            index = timesteps * self.bins // num_train_timesteps
            for number in range(self.bins):
                chosen = losses[index == number]
                if len(chosen):
                    first, last = (-(-(number + k) * num_train_timesteps // self.bins) for k in (0, 1))
                    values[f"loss_by_timestep/{first:04d}-{last - 1:04d}"] = float(chosen.mean())
        return values


class Trainer:
    """One training run: its objective, its loop and its checkpoints."""

    def __init__(self, settings: TrainSettings, objective: Objective, accelerator: Any) -> None:
        if settings.report_to == "tensorboard":
            require("tensorboard", "train")
        self.settings = settings
        self.objective = objective
        self.accelerator = accelerator
        self.output_dir = Path(settings.output_dir)
        self.average = None
        if settings.use_ema:
            ema = get_ema_multi_avg_fn(settings.ema_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(objective.networks, multi_avg_fn=ema)
            self.average.to(accelerator.device)
        self.batch = settings.train_batch_size * accelerator.num_processes
        self.per_step = self.batch * settings.gradient_accumulation_steps
        self.rate = settings.learning_rate * (self.per_step if settings.scale_lr else 1)
        parameters = trained(objective.networks)
        self.names = list(parameters)
        optimizer = torch.optim.AdamW(
            parameters.values(),
            lr=self.rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_epsilon,
            weight_decay=settings.adam_weight_decay,
            fused=True,
        )
        self.model, self.optimizer = accelerator.prepare(objective.train(), optimizer)
        self.total = settings.max_train_steps
        if settings.num_train_epochs is not None:
            self.total = math.ceil(settings.num_train_epochs * objective.count / self.per_step)
        self.validate_every = settings.checkpointing_steps
        if settings.validation_epochs is not None:
            self.validate_every = math.ceil(settings.validation_epochs * objective.count / self.per_step)
        if settings.validation_steps is not None:
            self.validate_every = settings.validation_steps
        self.step = 0
        self.began: dict[str, Any] = {}  # the record of the checkpoint that the run goes on from

    def run(self) -> Path:
        """Train to the end and save the model; returns its folder."""
        settings, accelerator = self.settings, self.accelerator
        self.resume()
        if accelerator.is_main_process:
            self._make_folder()
        if self.step < self.total:
            with accelerator.local_main_process_first(), accelerator.autocast():  # it writes what the others read
                self.objective.prepare(self.began)
        if settings.report_to != "none":
            accelerator.init_trackers("logs", {k: str(v) for k, v in dataclasses.asdict(settings).items()})
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        batches = iter(self._loader())
        bar = tqdm(
            total=self.total,
            initial=self.step,
            desc="training",
            unit="step",
            disable=not accelerator.is_local_main_process,
        )
        log = _Log(BINS)
        while self.step < self.total:
            factor = learning_rate_factor(settings, self.step, settings.lr_decay_steps or self.total)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * factor
            self._accumulate(batches, log)
            norm = accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.average is not None:
                self.average.update_parameters(self.objective.networks)
            self.step += 1
            bar.update()
            due = self.step % settings.checkpointing_steps == 0 or self.step == self.total
            if due or self.step % settings.logging_steps == 0:
                self._report(log, norm, bar)
                log = _Log(BINS)
            if due:
                self.save()
            if self.validate_every and (self.step % self.validate_every == 0 or self.step == self.total):
                self._validate()
        bar.close()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            model = self.finished(getattr(torch, settings.save_dtype))
            model.save_pretrained(self.output_dir)
            write_json(self.output_dir / "training.json", self.record())
            if settings.push_to_hub:  # the model alone, not the checkpoints, the cache and the logs beside it
                model.push_to_hub(self.output_dir.resolve().name)
        accelerator.end_training()
        return self.output_dir

    def _make_folder(self) -> None:
        """Make the output folder, so that one that cannot be written is an error now and not at the first checkpoint.

        Raises:
            CheckpointError: the file system does not allow it.
        """
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"output_dir={self.output_dir} cannot be made: {error.strerror or error}") from error
        if not os.access(self.output_dir, os.W_OK | os.X_OK):
            raise CheckpointError(f"output_dir={self.output_dir} cannot be written: give a folder of your own")

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(
            self.objective.dataset(),
            batch_size=self.settings.train_batch_size,
            sampler=_Positions(
                self.step * self.per_step,
                self.total * self.per_step,
                self.accelerator.process_index,
                self.accelerator.num_processes,
            ),
            num_workers=self.settings.dataloader_num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _accumulate(self, batches: Iterator[dict[str, Any]], log: _Log) -> None:
        """The gradients of one optimizer step."""
        count = self.settings.gradient_accumulation_steps
        for number in range(count):
            batch = next(batches)
            key = [self.settings.seed, 2, self.step, number, self.accelerator.process_index]
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
            with self.accelerator.no_sync(self.model) if number + 1 < count else contextlib.nullcontext():
                log.add(self._backward(batch, count))

    def _backward(self, batch: dict[str, Any], count: int) -> Losses:
        device = self.accelerator.device
        moved = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
        losses = Losses(*self.model(moved))
        self.accelerator.backward(losses.loss.mean() / count)
        return losses

    def _report(self, log: _Log, norm: Tensor | None, bar: Any) -> None:
        """Report the losses since the last time; the only place where the loop waits for the device."""
        mean = float(self.accelerator.gather(torch.stack(log.losses).mean()).mean())
        scaled = self.accelerator.scaler is not None  # float16's, which leaves out steps with an infinite gradient
        slope = 0.0 if norm is None or scaled else float(norm)
        if not math.isfinite(mean) or not math.isfinite(slope):
            what = f"loss is {mean}" if not math.isfinite(mean) else f"gradient's norm is {slope}"
            raise NonFiniteError(
                f"the {what} at step {self.step}: try a lower learning_rate, or mixed_precision='no', in another "
                f"output_dir; what {self.output_dir} has is from before"
            )
        bar.set_postfix(loss=f"{mean:.4f}")
        values = {"loss": mean, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        values |= log.values(self.objective.num_train_timesteps)
        if norm is not None:
            values["gradient_norm"] = float(norm)
        if self.settings.report_to != "none":
            self.accelerator.log(values, step=self.step)

    # --- models and pictures -----------------------------------------------------------------------------------------

    def finished(self, dtype: torch.dtype = torch.float32) -> Savable:
        """The model of the averaged weights as they are now (a copy)."""
        networks = self.objective.networks if self.average is None else self.average.module
        copied = copy.deepcopy(networks).requires_grad_(False).eval().to(dtype)
        assert isinstance(copied, nn.ModuleDict)
        return self.objective.finished(copied)

    def _validate(self) -> None:
        if not self.accelerator.is_main_process:
            return
        with torch.random.fork_rng():
            grid = self.objective.preview(self.finished())
        if grid is None:
            return
        name = self.objective.preview_name
        try:
            with atomic_write(self.output_dir / name / f"step-{self.step:07d}.png") as temporary:
                grid.save(temporary)
        except CheckpointError as error:  # such as a full disk, which somebody may have made room on by the next save
            warnings.warn(f"training goes on, but a preview is missing: {error}", stacklevel=2)
        if self.settings.report_to == "tensorboard":
            writer = self.accelerator.get_tracker("tensorboard", unwrap=True)
            writer.add_image(name, np.asarray(grid), self.step, dataformats="HWC")

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        return {
            "ddim": __version__,
            "torch": torch.__version__,
            "step": self.step,
            "kind": type(self.settings).__name__,
            "processes": self.accelerator.num_processes,
            **self.objective.record(),
            "settings": {k: v for k, v in dataclasses.asdict(self.settings).items() if k != "output_dir"},
        }

    def save(self) -> None:
        """Write a checkpoint: complete under a temporary name, then renamed; then drop the oldest over the limit."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        files = {
            "model": trained(self.objective.networks),
            "optimizer": optimizer_tensors(self.optimizer, self.names),
        }
        record = self.record()
        if self.average is not None:
            files["average"] = trained(self.average.module)
            record["n_averaged"] = int(self.average.n_averaged)
        if self.accelerator.scaler is not None:
            record["scaler"] = self.accelerator.scaler.state_dict()
        write_checkpoint(self.output_dir, self.step, files, record)
        drop_old(self.output_dir, self.settings.checkpoints_total_limit)

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
        if wanted == "latest" and not found:
            return
        folder = found[-1] if wanted == "latest" else Path(wanted)
        if not folder.exists() and (self.output_dir / wanted).exists():
            folder = self.output_dir / wanted
        state = read_state(folder)
        changed = self._changed(state)
        if changed:
            raise ConfigError(
                f"{folder} was made with other settings ({'; '.join(changed)}): use the same, or another output_dir"
            )
        self.objective.check_unchanged(state)
        load_trained(self.objective.networks, folder, "model")
        if self.average is not None:
            load_trained(self.average.module, folder, "average")
            self.average.n_averaged.fill_(int(state["n_averaged"]))
        load_optimizer(self.optimizer, self.names, folder)
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.began = state["step"], state
        self.accelerator.print(f"resuming from {folder}")

    def _changed(self, state: dict[str, Any]) -> list[str]:
        """Which settings are not those of a checkpoint, of those that matter.

        One that the checkpoint does not have is younger than it, and was then what is the default now.
        """
        kind = type(self.settings).__name__
        if state.get("kind", kind) != kind:
            return [f"{state['kind']} -> {kind}"]
        default = {field.name: field.default for field in dataclasses.fields(self.settings)}
        default, mine = (json.loads(json.dumps(x, default=str)) for x in (default, dataclasses.asdict(self.settings)))
        theirs = {key: state["settings"].get(key, default[key]) for key in mine}
        return [f"{key}: {theirs[key]} -> {mine[key]}" for key in mine if key not in FREE and theirs[key] != mine[key]]
