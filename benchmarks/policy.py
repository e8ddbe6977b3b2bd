"""The scheduler's share of a robot's control tick, beside diffusers', in one run on the same tensors.

    python benchmarks/run.py policy

A tick is `set_timesteps(10)` and ten steps over a trajectory of actions, as LeRobot and diffusion_policy have it:
squaredcos_cap_v2, 100 training steps, clipped samples. The network is left out. `plan` is the same by a plan that is
kept, without predicted x0. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import measure

from ddim import DDIMScheduler

CONFIG: dict[str, Any] = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "clip_sample": True}
STEPS = 10
SHAPES = ((1, 16, 7), (1, 16, 2), (64, 16, 7))


def ticks(shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    from diffusers import DDIMScheduler as Theirs

    torch.manual_seed(0)
    sample, output = torch.randn(2, *shape)
    plan = DDIMScheduler(**CONFIG).plan(STEPS)

    def by(scheduler: Any) -> Callable[[], object]:
        def tick() -> torch.Tensor:
            x = sample
            scheduler.set_timesteps(STEPS)
            for t in scheduler.timesteps:
                x = scheduler.step(output, t, x).prev_sample
            return x

        return tick

    def by_plan() -> torch.Tensor:
        x = sample
        for t in plan.timesteps:
            x = plan.step(output, t, x, return_x0=False).prev_sample
        return x

    return {"diffusers": by(Theirs(**CONFIG)), "scheduler": by(DDIMScheduler(**CONFIG)), "plan": by_plan}


def section(rounds: int) -> str:
    """The section of docs/benchmarks.md."""
    lines = [
        "## A robot's tick",
        "",
        f"`python benchmarks/run.py policy --rounds {rounds}` (seed 0): the scheduler's share of a tick of "
        f"{STEPS} steps, without the network; **bold** is how many times faster than diffusers.",
        "",
        "| actions | diffusers µs | scheduler | plan |",
        "|---|---|---|---|",
    ]
    for shape in SHAPES:
        with torch.inference_mode():
            times = measure(ticks(shape), rounds)
        base = times["diffusers"]
        cells = [f"{times[name]:.0f} µs, **{base / times[name]:.1f}x**" for name in ("scheduler", "plan")]
        lines.append(f"| {'x'.join(map(str, shape))} | {base:.0f} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)
