"""The training loop, the same for everything that is trained, resumable bit for bit.

Nothing random depends on what came before: the order of the images is a function of (seed, position), and each batch's
noise, timesteps and dropout of (seed, step, batch, process). So a checkpoint is the weights, the optimizer, the average
and a step count, and a run that was killed ends with the weights of one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import shlex
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Sampler

from ddim import __version__
from ddim.checkpoint import Savable, atomic_write, write_json
from ddim.checkpoint.locks import alone_in
from ddim.data.buckets import BucketBatches
from ddim.data.progress import progress, say
from ddim.errors import CheckpointError, ConfigError, NonFiniteError
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
from ddim.training.forecast import ENDLESS, Forecast
from ddim.training.frozen import copied_as
from ddim.training.interruption import Interrupted, Interruption, ignore_signals
from ddim.training.objective import Losses, Objective
from ddim.training.settings import TrainSettings
from ddim.training.trackers import show_picture, start_trackers

# Settings that may change between the start of a run and its resumption without changing what it computes.
FREE = frozenset(
    "output_dir max_train_steps num_train_epochs max_train_seconds checkpointing_steps checkpoints_total_limit "
    "resume_from_checkpoint validation_steps validation_epochs validation_prompts validation_images "
    "validation_inference_steps num_validation_images save_model_epochs logging_steps report_to logging_dir "
    "tracker_project_name save_dtype push_to_hub hub_model_id hub_private_repo hub_token revision variant "
    "non_ema_revision cache_dir dataloader_num_workers".split()
)
SECRET = frozenset({"output_dir", "hub_token"})  # settings that are written nowhere: one is another after a move
FIRST = 90.0  # seconds after which there is a first checkpoint and a first preview, however few steps were made
EARLY = 20.0  # seconds that this first preview may take, as far as can be known
AGREE = 10  # steps after which several processes ask each other whether one of them was interrupted
BINS = 10  # how many equal parts of the timesteps the loss is told of, one by one


def learning_rate_factor(settings: TrainSettings, step: int, total: int, time: float = 0.0) -> float:
    """What the peak learning rate is multiplied by at a step, of which the first is 0.

    Args:
        total: the number of steps after which it has fallen to zero, if it falls.
        time: the share of the run's time that is over, from 0 to 1, if the run ends by the time.
    """
    warm = settings.lr_warmup_steps
    progress = min(1.0, max(time, (step - warm) / max(1, total - warm)))
    cycle = progress * settings.lr_num_cycles % 1 if progress < 1 else 1.0
    factors: dict[str, float] = {
        "constant": 1.0,
        "constant_with_warmup": 1.0,
        "warmup_stable_decay": min(1.0, (1 - progress) / settings.lr_decay_share),
        "linear": 1 - progress,
        "polynomial": (1 - progress) ** settings.lr_power,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "cosine_with_restarts": 0.5 * (1 + math.cos(math.pi * cycle)),
    }
    return min(factors[settings.lr_scheduler], (step + 1) / (warm + 1))


def changed_settings(settings: TrainSettings, state: dict[str, Any]) -> list[str]:
    """Which settings are not those of a checkpoint, whose state is given, of those that matter.

    One that the checkpoint does not have is younger than it, and was then what is the default now.
    """
    kind = type(settings).__name__
    if state.get("kind", kind) != kind:
        return [f"{state['kind']} -> {kind}"]
    default = {field.name: field.default for field in dataclasses.fields(settings)}
    default, mine = (json.loads(json.dumps(x, default=str)) for x in (default, dataclasses.asdict(settings)))
    theirs = {key: state["settings"].get(key, default[key]) for key in mine}
    return [f"{key}: {theirs[key]} -> {mine[key]}" for key in mine if key not in FREE and theirs[key] != mine[key]]


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


class _Average(AveragedModel):
    """torch's average of weights, which never waits for the device.

    For the average's function torch copies the number of updates to the device at each of them, and the host waits for
    that copy. The functions that are used here do not look at the number.
    """

    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights as they are now into the average, and the buffers as they are; at first, take them over."""
        if self.multi_avg_fn is None or self.use_buffers or not int(self.n_averaged):
            super().update_parameters(model)
            return
        own = [parameter.detach() for parameter in self.module.parameters()]
        new = [p.detach().to(q.device) for p, q in zip(model.parameters(), own, strict=True)]
        self.multi_avg_fn(own, new, self.n_averaged)
        for mine, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.detach().copy_(theirs.detach())
        self.n_averaged += 1


class Trainer:
    """One training run: its objective, its loop and its checkpoints."""

    def __init__(self, settings: TrainSettings, objective: Objective, accelerator: Any) -> None:
        self.settings = settings
        self.objective = objective
        self.accelerator = accelerator
        self.output_dir = Path(settings.output_dir)
        self.average = None
        if settings.use_ema:
            ema = get_ema_multi_avg_fn(settings.ema_decay)  # type: ignore[no-untyped-call]
            if settings.ema_power is not None:
                ema = self._rising_average
            self.average = _Average(objective.networks, multi_avg_fn=ema)
            self.average.to("cpu" if settings.offload_ema else accelerator.device)
            self.average.n_averaged = self.average.n_averaged.cpu()  # it is asked at each step, which would wait there
        self.batch = settings.train_batch_size * accelerator.num_processes
        self.per_step = self.batch * settings.gradient_accumulation_steps
        self.buckets = objective.buckets
        if self.buckets is not None and len(self.buckets.sizes) == 1:
            self.buckets = None  # then any pictures can be in a batch
        self.rate = settings.learning_rate * (self.per_step if settings.scale_lr else 1)
        parameters = trained(objective.networks)
        self.names = list(parameters)
        options: dict[str, Any] = {
            "lr": self.rate,
            "betas": (settings.adam_beta1, settings.adam_beta2),
            "eps": settings.adam_epsilon,
            "weight_decay": settings.adam_weight_decay,
        }
        optimizer: torch.optim.Optimizer
        if settings.use_8bit_adam:
            optimizer = importlib.import_module("bitsandbytes").optim.AdamW8bit(list(parameters.values()), **options)
        else:
            optimizer = torch.optim.AdamW(parameters.values(), fused=True, **options)
        self.model, self.optimizer = accelerator.prepare(objective.train(), optimizer)
        usual = settings.usual_steps if settings.max_train_seconds is None else ENDLESS
        self.total = settings.max_train_steps or self._steps(settings.num_train_epochs) or usual
        self.validate_every = self._steps(settings.validation_epochs) or settings.checkpointing_steps
        if settings.validation_steps is not None:
            self.validate_every = settings.validation_steps
        self.export_every = self._steps(settings.save_model_epochs)
        self.interruption = Interruption(accelerator.num_processes)
        self.clock = time.monotonic
        self.stops = False  # whether the run was interrupted
        self.seconds = 0.0  # that went by since it began
        self.step = 0
        self.saved = 0  # the step of the last checkpoint
        self.drawn = False  # whether there was a preview
        self.began: dict[str, Any] = {}  # the record of the checkpoint that the run goes on from

    def _steps(self, epochs: int | None) -> int:
        """How many steps so many epochs are; 0 for None."""
        if self.buckets is not None:
            batches = (epochs or 0) * self.buckets.per_epoch(self.batch)
            return math.ceil(batches / self.settings.gradient_accumulation_steps)
        return math.ceil((epochs or 0) * int(self.objective.count) / int(self.per_step))

    def _rising_average(self, averaged: list[Tensor], current: list[Tensor], _: Any) -> None:
        """An average whose decay rises with the steps, as EMAModel of diffusers has it with its warm-up."""
        power, limit = self.settings.ema_power or 0.0, self.settings.ema_decay
        decay = min(1 - (1 + self.step / self.settings.ema_inv_gamma) ** -power, limit)
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def run(self) -> Path:
        """Train to the end and save the model; returns its folder.

        Raises:
            Interrupted: by Ctrl-C or a signal; what was learnt is in a checkpoint.
            ConfigError: another process trains into the same folder.
        """
        self.resume()
        with contextlib.ExitStack() as held:
            if self.accelerator.is_main_process:
                self._make_folder()
                if not held.enter_context(alone_in(self.output_dir)):
                    raise ConfigError(
                        f"output_dir={self.output_dir} is being trained into by another process: wait until it ends, "
                        "or give another output_dir"
                    )
            with self.interruption:
                try:
                    self._train()
                    self._finish()
                except Interrupted:
                    self._leave()
        return self.output_dir

    def _train(self) -> None:
        """All steps."""
        settings, accelerator = self.settings, self.accelerator
        began = self.clock()
        if self.step < self.total:
            self._introduce()
            with accelerator.local_main_process_first(), accelerator.autocast():  # it writes what the others read
                self.objective.prepare(self.began)
        if settings.trackers:
            start_trackers(accelerator, settings, self.step)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        batches = iter(self._loader())
        bar = progress(
            total=None if self.total == ENDLESS else self.total,
            initial=self.step,
            desc="training",
            unit="step",
            smoothing=0,
            disable=not accelerator.is_local_main_process,
        )
        log = _Log(BINS)
        forecast, started = self._forecast(), self.clock()
        self.seconds = first = started - began
        with contextlib.closing(bar), self.interruption.later():
            while self.step < self.total:
                at = self.clock()
                decayed = settings.lr_decay_steps or self.total
                factor = learning_rate_factor(settings, self.step, decayed, self._share_of_time(first))
                for group in self.optimizer.param_groups:
                    group["lr"] = self.rate * factor
                self._accumulate(batches, log)
                norm = accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                if self.average is not None:
                    self.average.update_parameters(self.objective.networks)
                self.step += 1
                self._agree(began)
                if self.seconds >= (settings.max_train_seconds or math.inf):
                    self.total = self.step
                if forecast.measures and self._timed(forecast, at) and self.step < self.total:
                    self._say(forecast.say(started - began))
                bar.update()
                due = self.step % settings.checkpointing_steps == 0 or self.step == self.total
                if due or self.step % settings.logging_steps == 0:
                    self._report(log, norm, bar)
                    log = _Log(BINS)
                early = self.clock() - started >= FIRST and accelerator.is_main_process
                if due or (early and not self.saved):
                    forecast.checkpoint = self._checkpoint(bar, together=due)
                if self._previews(early):
                    full = not early or self.drawn
                    seconds = self._draw(bar, None if full else self._affordable(forecast))
                    forecast.preview = seconds if full else forecast.preview
                if forecast.told and self.step < self.total:
                    self._say(forecast.say(started - began))
                exported = self.export_every and self.step % self.export_every == 0 and self.step < self.total
                if exported and accelerator.is_main_process:
                    self._export()
                if self.stops:
                    raise Interrupted

    def _finish(self) -> None:
        """Save the model."""
        settings, accelerator = self.settings, self.accelerator
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            weights = "weights" if self.average is None else "averaged weights"
            self._say(f"saving the {weights} in {self.output_dir}")
            model = self._export()
            if settings.push_to_hub:  # the model alone, not the checkpoints, the cache and the logs beside it
                name = settings.hub_model_id or self.output_dir.resolve().name
                self._say(f"uploading the model to {name}")
                model.push_to_hub(name, token=settings.hub_token, private=settings.hub_private_repo or None)
        accelerator.end_training()
        self._say(f"now try: {shlex.join(self.objective.next_command(str(self.output_dir)))}")

    def _leave(self) -> None:
        """Save a checkpoint, and raise what says so."""
        with self.interruption.later():
            if self.step > self.began.get("step", 0):
                self.save()
            self.accelerator.end_training()
        of_all = f" of {self.total:,}" if self.total < ENDLESS else ""
        there = f"step {self.step:,}{of_all} is saved in {self.output_dir / f'checkpoint-{self.step}'}"
        raise Interrupted(there if self.step else "no step was made yet")

    def _agree(self, began: float) -> None:
        """Note the time, and whether this process or another one was interrupted.

        All processes have to go the same way at the same step. Several of them ask each other now and then.

        Args:
            began: what the clock showed when the run began.
        """
        asked, seconds = float(self.interruption.asked), self.seconds
        if self.settings.max_train_seconds is not None:
            seconds = self.clock() - began
        if self.accelerator.num_processes > 1:
            if self.step % AGREE:
                return
            told = torch.tensor([asked, seconds], device=self.accelerator.device)
            asked, seconds = self.accelerator.reduce(told, "mean").tolist()
        self.stops, self.seconds = asked > 0, seconds

    def _share_of_time(self, first: float) -> float:
        """The share of the steps' time that is over, from 0 to 1; 0 for a run that does not end by the time.

        Args:
            first: the seconds that went by before the first step.
        """
        limit = self.settings.max_train_seconds
        if limit is None or self.settings.lr_decay_steps is not None:
            return 0.0
        return min(1.0, (self.seconds - first) / max(limit - first, 1e-9))

    # --- what is said ------------------------------------------------------------------------------------------------

    def _say(self, what: str | None) -> None:
        if what and self.accelerator.is_main_process:
            say(what)

    def _introduce(self) -> None:
        """Say what data and settings come to, and what might be better."""
        if self.accelerator.is_main_process:
            for line in self.objective.introduction(self.settings, self.total, self.per_step):
                say(line)

    def _forecast(self) -> Forecast:
        """How long the steps that are left will take."""

        def times(every: int) -> int:
            """How often something is done that is done each `every` steps, and after the last one."""
            return self.total // every - self.step // every + bool(self.total % every) if every else 0

        share = self.objective.shown * self.objective.passes / (3 * self.per_step / self.accelerator.num_processes)
        checkpoints_left = times(self.settings.checkpointing_steps)
        limit = self.settings.max_train_seconds
        return Forecast(self.total - self.step, times(self.validate_every), checkpoints_left, share, limit)

    def _timed(self, forecast: Forecast, at: float) -> bool:
        """Tell the forecast how long a step took; whether it is time to say what it says."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()  # else the step may only have been begun
        return forecast.step(self.clock() - at)

    def _affordable(self, forecast: Forecast) -> int:
        """How many pictures of a preview take at most about `EARLY` seconds."""
        one = forecast.share * forecast.a_step / self.objective.shown
        return max(1, min(self.objective.shown, int(EARLY / max(one, 1e-9))))

    def _checkpoint(self, bar: Any, together: bool) -> float:
        """Write a checkpoint, all processes together or the first one alone; returns the seconds that it took."""
        began = self.clock()
        if self.step == self.total:
            self._say("the last step is made: writing the last checkpoint")
        bar.set_description("writing a checkpoint")
        if together:
            self.save()
        else:
            self._write()
        bar.set_description("training")
        return self.clock() - began

    def _previews(self, early: bool) -> bool:
        """Whether a preview is due after this step, or the first one by the time."""
        if not self.validate_every:
            return False
        return self.step % self.validate_every == 0 or self.step == self.total or (early and not self.drawn)

    def _draw(self, bar: Any, most: int | None) -> float:
        """Draw a preview; returns the seconds that it took."""
        began = self.clock()
        if self.step == self.total:
            self._say("drawing the last preview")
        bar.set_description("drawing a preview")
        with self.interruption.later(wait=self.accelerator.num_processes > 1):
            self._validate(most)
        bar.set_description("training")
        self.drawn = True
        return self.clock() - began

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
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        which: dict[str, Any]
        if self.buckets is not None:
            count = self.settings.gradient_accumulation_steps
            numbers = range(self.step * count, self.total * count)
            size, seed = self.settings.train_batch_size, self.settings.seed
            which = {"batch_sampler": BucketBatches(self.buckets, seed, size, numbers, process, processes)}
        else:
            positions = _Positions(self.step * self.per_step, self.total * self.per_step, process, processes)
            which = {"batch_size": self.settings.train_batch_size, "sampler": positions}
        return DataLoader(
            self.objective.dataset(),
            **which,
            num_workers=self.settings.dataloader_num_workers,
            worker_init_fn=ignore_signals,
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
        weighed = losses.loss if losses.weights is None else losses.loss * losses.weights
        self.accelerator.backward(weighed.mean() / count)
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
        if self.settings.trackers:
            self.accelerator.log(values, step=self.step)

    # --- models and pictures -----------------------------------------------------------------------------------------

    def finished(self, dtype: torch.dtype = torch.float32) -> Savable:
        """The model of the averaged weights as they are now.

        Weights that are in that type, and those that are not trained, are not copied: it is to be used before the next
        step.
        """
        networks = self.objective.networks if self.average is None else self.average.module
        trains = {id(parameter) for parameter in trained(networks).values()}
        copied = copied_as(networks, dtype, self.accelerator.device, only=trains).eval()
        assert isinstance(copied, nn.ModuleDict)
        return self.objective.finished(copied)

    def _export(self) -> Savable:
        """Write the model as it is into the output folder."""
        model = self.finished(getattr(torch, self.settings.save_dtype))
        model.save_pretrained(self.output_dir)
        write_json(self.output_dir / "training.json", self.record())
        return model

    def _validate(self, most: int | None = None) -> None:
        if not self.accelerator.is_main_process:
            return
        with torch.random.fork_rng():
            finished = self.finished()
            grid = self.objective.preview(finished) if most is None else self.objective.preview(finished, most)
        name = self.objective.preview_name
        try:
            with atomic_write(self.output_dir / name / f"step-{self.step:07d}.png") as temporary:
                grid.save(temporary)
        except CheckpointError as error:  # such as a full disk, which somebody may have made room on by the next save
            warnings.warn(f"training goes on, but a preview is missing: {error}", stacklevel=2)
        show_picture(self.accelerator, name, grid, self.step)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        return {
            "ddim": __version__,
            "torch": torch.__version__,
            "step": self.step,
            "kind": type(self.settings).__name__,
            "processes": self.accelerator.num_processes,
            **self.objective.record(),
            "settings": {k: v for k, v in dataclasses.asdict(self.settings).items() if k not in SECRET},
        }

    def save(self) -> None:
        """Write a checkpoint, if this step has none yet, when all processes have come to it."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process and self.saved < self.step:
            self._write()

    def _write(self) -> None:
        """Write a checkpoint: complete under a temporary name, then renamed; then drop the oldest over the limit."""
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
        self.saved = self.step

    def resume(self) -> None:
        """Go on from a checkpoint, if there is one and the settings allow it.

        Raises:
            CheckpointError: the checkpoint asked for is missing or broken.
            ConfigError: it was made with other settings or by another number of processes, or the folder has one that
            is not to be used.
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
        changed = changed_settings(self.settings, state)
        if changed:
            raise ConfigError(
                f"{folder} was made with other settings ({'; '.join(changed)}): use the same, or another output_dir"
            )
        before, now = state.get("processes", 1), self.accelerator.num_processes
        if before != now:
            raise ConfigError(
                f"{folder} was made by {before} process{'es' * (before > 1)}, and now there "
                f"{'are' if now > 1 else 'is'} {now}: each has noises and a part of each batch of its own, so the run "
                "cannot go on as it began. "
                f"Start {before} again, as by torchrun --nproc_per_node or accelerate launch --num_processes, or give "
                "another output_dir"
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
        self.saved, self.drawn = self.step, True
        self.accelerator.print(f"resuming from {folder}")
