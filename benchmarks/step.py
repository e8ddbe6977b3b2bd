"""The sampler's step beside diffusers', in one run on the same tensors.

    python benchmarks/step.py [--write docs/benchmarks.md]

Each row times, in turn and several rounds over: diffusers' `DDIMScheduler.step`; ours; `plan.step(x0=False)`, which
leaves out the predicted x0; `plan.step(out=…)` into buffers of the caller's; and, as the floor, a one-pass addition of
the two tensors, into fresh memory and into a buffer. The figures are medians over the rounds; a ratio is diffusers'
median over ours. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from ddim import DDIMScheduler, __version__

SHAPES = ((1, 4, 64, 64), (16, 4, 64, 64), (64, 3, 128, 128))
KINDS = {
    "plain": {"clip_sample": False},
    "clipped": {"clip_sample": True},
    "thresholded": {"thresholding": True, "sample_max_value": 1.5},
}
# What was aimed at, for eta 0: (step, x0=False, out=).
AIMS = {
    ((1, 4, 64, 64), "plain"): (4.0, 6.0, None),
    ((64, 3, 128, 128), "plain"): (1.1, 2.0, 5.0),
    ((64, 3, 128, 128), "thresholded"): (15.0, None, None),
}


def measure(functions: dict[str, Callable[[], object]], rounds: int, budget: float = 0.05) -> dict[str, float]:
    """Median microseconds a call: every round runs each function for about `budget` seconds."""
    counts = {}
    for name, function in functions.items():
        function()
        started = time.perf_counter()
        for _ in range(3):
            function()
        counts[name] = max(1, int(budget / ((time.perf_counter() - started) / 3)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            for _ in range(counts[name]):
                function()
            times[name].append((time.perf_counter() - started) / counts[name] * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


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
            "x0=False": lambda: plan.step(out, number, x, variance_noise=noise, x0=False),
            "out=": lambda: plan.step(out, number, x, variance_noise=noise, out=buffers),
            "add": lambda: torch.add(x, out),
            "add into": lambda: torch.add(x, out, out=buffer),
        },
        rounds,
    )


def table(rounds: int) -> str:
    lines = [
        "| shape | x0 | η | diffusers µs | step | x0=False | out= | add µs | add into µs |",
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
                    for name, aim in zip(("step", "x0=False", "out="), aims, strict=True)
                ]
                lines.append(
                    f"| {'x'.join(map(str, shape))} | {kind} | {eta:g} | {base:.1f} | {' | '.join(cells)} "
                    f"| {times['add']:.1f} | {times['add into']:.1f} |"
                )
                print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", type=Path, help="write the table into this file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    import diffusers

    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    machine = (
        f"{cpu}, {torch.get_num_threads()} threads; Python {platform.python_version()}, torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}, ddim {__version__}"
    )
    print(machine)
    text = table(options.rounds)
    if options.write:
        options.write.write_text(
            "# Benchmarks\n\nWritten by `make bench`. Absolute times vary from machine to machine and day to day; the "
            "ratios, of figures measured in one run, are what to quote.\n\n## The step\n\n"
            f"`python benchmarks/step.py --rounds {options.rounds}` (seed 0). {machine}.\n\n"
            "Medians; **bold** is how many times faster than diffusers' `step` on the same tensors. The last two "
            "columns are the floor: one addition of two such tensors, into fresh memory and into a buffer.\n\n"
            f"{text}\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
