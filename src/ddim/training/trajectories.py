"""What a teacher does, written down: its runs from noise to samples, and what a student of fewer steps has to predict.

Without clipping a step is x_prev = a·x + b·out, with numbers from the plan. So a student makes one step of what its
teacher makes in many, from x to x_prev, if it predicts

    out = (x_prev - a·x) / b

with the a and b of its own plan. Such targets do not change while a student learns, so each trajectory is run once, on
whatever runs the teacher fastest, and kept on disk.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddim.checkpoint import read_tensors, save_tensors
from ddim.data.progress import progress
from ddim.data.stream import shuffled
from ddim.errors import CheckpointError, ConfigError, NonFiniteError
from ddim.noise import gaussian_noise, seeded_generators
from ddim.plan import SamplingPlan
from ddim.sampling import Denoiser, sample

# The numbers of some trajectories -> the teacher, ready for its plan, under the conditions of these trajectories.
Teacher = Callable[[Sequence[int]], Denoiser]


def landmarks(student: SamplingPlan, teacher: SamplingPlan) -> list[int]:
    """After how many of the teacher's steps the student's first, second, … step is to end.

    Raises:
        ConfigError: the teacher does not pass through all of the student's timesteps, or begins or ends elsewhere.
    """
    places = {row.timestep: index for index, row in enumerate(teacher)}
    missing = [t for t in student.timesteps if t not in places]
    if missing or places[student.timesteps[0]] != 0 or student[-1].alpha_bar_prev != teacher[-1].alpha_bar_prev:
        raise ConfigError(
            f"a student with the timesteps {student.timesteps} cannot learn from a teacher with {teacher.timesteps}: "
            "the teacher's number of steps must be a multiple of the student's"
        )
    return [*(places[t] for t in student.timesteps[1:]), len(teacher)]


def run(denoiser: Denoiser, x: Tensor, student: SamplingPlan, teacher: SamplingPlan) -> Tensor:
    """The teacher's states at the student's timesteps, and its end: (b n+1 …) for n steps of the student.

    Args:
        denoiser: the teacher.
        x: noise, (b …).
    """
    wanted = set(landmarks(student, teacher))
    steps = sample(denoiser, x, teacher, return_x0=False)
    states = [x, *(step.sample for step in steps if step.index + 1 in wanted)]
    return torch.stack(states, dim=1)


def targets(states: Tensor, student: SamplingPlan) -> Tensor:
    """What the student has to predict at each of its steps to follow the states: (b n+1 …) -> (b n …)."""
    at = (1, -1, *[1] * (states.ndim - 2))
    a, b = (torch.tensor([getattr(row, name) for row in student]).double().view(at) for name in "ab")
    states = states.cpu().double()
    return ((states[:, 1:] - a * states[:, :-1]) / b).float()


class Trajectories(Dataset[dict[str, Any]]):
    """A teacher's trajectories on disk, as an endless shuffled stream of single steps of the student.

    An item is {"sample": x_t (c h w) float32, "target": what to predict there, "step": the number of the student's
    step, "number": that of the trajectory}. Trajectory k starts from the noise of image k of the seed.

    Args:
        folder: where the files are. The name of each has a hash of `what`.
        count: how many trajectories there are; rounded up to whole files.
        batch: how many are run at once, and kept in one file.
        what: a text that says all that the trajectories depend on.
        seed: of the noise and of the order.
    """

    def __init__(
        self, folder: Path, count: int, batch: int, student: SamplingPlan, teacher: SamplingPlan, what: str, seed: int
    ) -> None:
        landmarks(student, teacher)
        self.folder, self.batch, self.student, self.teacher, self.seed = folder, batch, student, teacher, seed
        self.parts = -(-count // batch)
        said = repr((what, batch, student, teacher, teacher.alphas_cumprod, seed))
        self.name = hashlib.sha256(said.encode()).hexdigest()[:16]
        self._open = functools.lru_cache(maxsize=None)(self._read)

    def __len__(self) -> int:
        """How many steps there are before the stream goes through them in another order."""
        return self.parts * self.batch * len(self.student)

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"{self.name}-{part:06d}.safetensors"

    def missing(self) -> list[int]:
        """The parts that are still to be run."""
        return [part for part in range(self.parts) if not self.path(part).is_file()]

    def fill(self, teacher: Teacher, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> None:
        """Run the teacher for what is not on disk yet; goes on where an earlier call was interrupted.

        Args:
            shape: of one sample, (c h w).
            device, dtype: where and in which type the teacher's samples are computed.

        Raises:
            NonFiniteError: the teacher gave what is no number.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode():
            for part in progress(self.missing(), desc="running the teacher", unit="batch"):
                numbers = range(part * self.batch, (part + 1) * self.batch)
                generators = seeded_generators(self.seed, self.batch, numbers[0])
                x = gaussian_noise((self.batch, *shape), generators, device, dtype)
                states = run(teacher(numbers), x, self.student, self.teacher)
                wanted = targets(states, self.student).half()
                if not wanted.isfinite().all():
                    raise NonFiniteError("the teacher's steps give a student targets that float16 cannot hold")
                save_tensors(self.path(part), {"samples": states[:, :-1].cpu().half(), "targets": wanted})

    def _read(self, part: int) -> dict[str, Tensor]:
        tensors = read_tensors(self.path(part))
        if tensors.keys() != {"samples", "targets"} or len(tensors["samples"]) != self.batch:
            raise CheckpointError(f"{self.path(part)} holds no trajectories: delete it, and it is made again")
        return tensors

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, offset = divmod(position, len(self))
        number, step = divmod(int(shuffled(len(self), self.seed, 3, epoch)[offset]), len(self.student))
        part, row = divmod(number, self.batch)
        tensors = self._open(part)
        return {
            "sample": tensors["samples"][row, step].float(),
            "target": tensors["targets"][row, step].float(),
            "step": step,
            "number": number,
        }
