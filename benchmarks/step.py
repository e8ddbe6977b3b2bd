"""The sampler's step beside diffusers', in one run on the same tensors.

    python benchmarks/run.py step

Each row times, in turn and several rounds over: diffusers' `DDIMScheduler.step`; ours; `plan.step(return_x0=False)`,
which leaves out the predicted x0; `plan.step(out=…)` into buffers of the caller's; and, as the floor, one pass that
adds the two tensors, into fresh memory and into a buffer. The figures are medians over the rounds; a ratio is
diffusers' median over ours. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import torch
from common import measure

from ddim import DDIMScheduler

SHAPES = ((1, 4, 64, 64), (16, 4, 64, 64), (64, 3, 128, 128))
KINDS = {
    "plain": {"clip_sample": False},
    "clipped": {"clip_sample": True},
    "thresholded": {"thresholding": True, "sample_max_value": 1.5},
}
# What was aimed at, for eta 0: (step, return_x0=False, out=).
AIMS = {
    ((1, 4, 64, 64), "plain"): (4.0, 6.0, None),
    ((64, 3, 128, 128), "plain"): (1.1, 2.0, 5.0),
    ((64, 3, 128, 128), "thresholded"): (15.0, None, None),
}


def row(shape: tuple[int, ...], kind: str, eta: float, rounds: int) -> dict[str, float]:
    from diffusers import DDIMScheduler as Theirs

    theirs, ours = Theirs(**KINDS[kind]), DDIMScheduler(**KINDS[kind])  # type: ignore[arg-type]
    theirs.set_timesteps(50)
    ours.set_timesteps(50)
    plan = ours.plan(50, eta=eta)
    torch.manual_seed(0)
    x, out, z = torch.randn(3, *shape)
    noise = z if eta else None
    buffers = (torch.empty_like(x), torch.empty_like(x))
    buffer = torch.empty_like(x)
    timestep = ours.timesteps[10]
    number = int(timestep)
    return measure(
        {
            "diffusers": lambda: theirs.step(out, timestep, x, eta=eta, variance_noise=noise),
            "step": lambda: ours.step(out, timestep, x, eta=eta, variance_noise=noise),
            "return_x0=False": lambda: plan.step(out, number, x, variance_noise=noise, return_x0=False),
            "out=": lambda: plan.step(out, number, x, variance_noise=noise, out=buffers),
            "add": lambda: torch.add(x, out),
            "add into": lambda: torch.add(x, out, out=buffer),
        },
        rounds,
    )


def section(rounds: int) -> str:
    """The section of docs/benchmarks.md."""
    lines = [
        "## The step",
        "",
        f"`python benchmarks/run.py step --rounds {rounds}` (seed 0). **Bold** is how many times faster than "
        "diffusers' `step` on the same tensors. The last two columns are the floor: one addition of two such "
        "tensors, into fresh memory and into a buffer.",
        "",
        "| shape | x0 | η | diffusers µs | step | return_x0=False | out= | add µs | add into µs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        for kind in KINDS:
            for eta in (0.0, 1.0):
                times = row(shape, kind, eta, rounds)
                base = times["diffusers"]
                aims = AIMS.get((shape, kind), (None,) * 3) if eta == 0 else (None,) * 3
                cells = [
                    f"{times[name]:.1f} µs, **{base / times[name]:.1f}x**" + (f" (aim {aim:g}x)" if aim else "")
                    for name, aim in zip(("step", "return_x0=False", "out="), aims, strict=True)
                ]
                lines.append(
                    f"| {'x'.join(map(str, shape))} | {kind} | {eta:g} | {base:.1f} | {' | '.join(cells)} "
                    f"| {times['add']:.1f} | {times['add into']:.1f} |"
                )
                print(lines[-1], flush=True)
    return "\n".join(lines)
