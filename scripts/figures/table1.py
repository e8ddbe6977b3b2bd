"""The DDIM paper's Table 1 on the bundled digits model: docs/table1.md, and the trade-off as docs/table1.png and .svg.

    python scripts/figures/table1.py            # five etas, five numbers of steps, 5,000 samples each; resumable
    python scripts/figures/table1.py --quick    # a small grid, in runs/table1-quick, nothing in docs

As in the authors' code: x0 is clipped under σ̂ alone, and σ̂ adds no noise at the last step. Other than there: the data
are 1,797 digits of 8x8, the features are those of a digits classifier, so the distance is no FID and its size cannot be
compared with the paper's, only the shape of the table; timesteps are spaced linearly (the model's `leading`), since the
paper's quadratic spacing of CIFAR-10 makes fewer than 1,000 steps of 1,000.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddim.checkpoint import atomic_write, write_text
from ddim.cli.evaluate import EvaluateSettings, run_evaluate
from ddim.plots.tradeoff import plot_tradeoff

HERE = Path(__file__).parent.parent.parent
ETAS: tuple[Any, ...] = (0.0, 0.2, 0.5, 1.0, "sigma_hat")
STEPS = (10, 20, 50, 100, 1000)
PAPER = {  # Table 1, CIFAR-10, FID of 50,000 samples
    0.0: (13.36, 6.84, 4.67, 4.16, 4.04),
    0.2: (14.04, 7.11, 4.77, 4.25, 4.09),
    0.5: (16.66, 8.35, 5.25, 4.46, 4.29),
    1.0: (41.07, 18.36, 8.01, 5.78, 4.73),
    "sigma_hat": (367.43, 133.37, 32.72, 9.99, 3.17),
}
NAMES = {0.0: "η = 0 (DDIM)", 1.0: "η = 1 (DDPM)", "sigma_hat": "σ̂"}

Row = dict[str, Any]
Table = dict[tuple[Any, int], Row]  # (eta, steps) -> a row of the summary


def settings_for(quick: bool, out: Path, seeds: tuple[int, ...], batch: int) -> EvaluateSettings:
    return EvaluateSettings(
        model="digits",
        against="digits",
        steps=STEPS[:3] if quick else STEPS,
        eta=ETAS,
        samples=200 if quick else 5000,
        batch=min(batch, 200) if quick else batch,
        seeds=seeds,
        clip_sample="sigma_hat",
        device="cpu",
        out=str(out),
    )


def name(eta: Any) -> str:
    return NAMES.get(eta, f"η = {eta:g}" if isinstance(eta, float) else str(eta))


def as_table(summary: Sequence[Row]) -> Table:
    return {(row["eta"], row["steps"]): row for row in summary}


# --------------------------------------------------------------------------------------------------------- what it says


def combined_error(first: Row, second: Row) -> float:
    return math.hypot(first["frechet_error"], second["frechet_error"])


def claims(table: Table, steps: Sequence[int]) -> list[str]:
    """The paper's claims about the shape of its table, each with whether it comes out here. Equal within two errors."""

    def distance(eta: Any, number: int) -> float:
        return float(table[eta, number]["frechet"])

    def exceeds(high: tuple[Any, int], low: tuple[Any, int]) -> bool:
        return distance(*high) - distance(*low) > 2 * combined_error(table[high], table[low])

    few = [number for number in steps if number <= 100]
    listed = ", ".join(map(str, few))
    better = [
        f"at S = {number}, {name(eta)} is better, {distance(eta, number):.3g} to {distance(0.0, number):.3g}"
        for number in few
        for eta in ETAS[1:]
        if exceeds((0.0, number), (eta, number))
    ]
    worse = [
        f"at S = {number}, {name(eta)} is worse, {distance(eta, number):.3g} to {distance('sigma_hat', number):.3g}"
        for number in few
        for eta in ETAS[:-1]
        if exceeds((eta, number), ("sigma_hat", number))
    ]
    rising = [
        f"{name(eta)} has {distance(eta, here):.3g} at {here} and {distance(eta, there):.3g} at {there}"
        for eta in ETAS
        for here, there in itertools.pairwise(steps)
        if exceeds((eta, there), (eta, here))
    ]
    said = [
        verdict(f"no η is better than η = 0 at S = {listed}", better),
        verdict(f"none is worse than σ̂ at S = {listed}", worse),
        verdict("for no η are more steps worse", rising),
    ]
    if 1000 in steps:
        ahead = [
            f"{name(eta)} has {distance(eta, 1000):.3g}, σ̂ {distance('sigma_hat', 1000):.3g}"
            for eta in ETAS[:-1]
            if exceeds(("sigma_hat", 1000), (eta, 1000))
        ]
        said.append(verdict("σ̂ is not behind any at S = 1000 (in the paper it is best)", ahead))
    return said


def verdict(claim: str, failures: list[str]) -> str:
    return f"- {claim}: **does not hold**: {'; '.join(failures)}." if failures else f"- {claim}: **holds**."


def linear_fit(rows: Sequence[Row], clock: str) -> tuple[float, float, float]:
    """seconds = a + b·S by least squares on relative errors: (a, b, the largest relative error)."""
    steps, seconds = (np.array([float(row[key]) for row in rows]) for key in ("timesteps", clock))
    columns = np.stack([1 / seconds, steps / seconds], axis=1)
    (start, slope), *_ = np.linalg.lstsq(columns, np.ones(len(rows)), rcond=None)
    return float(start), float(slope), float(np.abs((start + slope * steps) / seconds - 1).max())


def steps_for(table: Table, steps: Sequence[int], goal: float, eta: Any = 0.0) -> float | None:
    """How many steps of an eta reach a distance, between those measured by a straight line in logarithms.

    None if none does; the smallest measured number if that does already.
    """
    distances = [float(table[eta, number]["frechet"]) for number in steps]
    if distances[0] <= goal:
        return float(steps[0])
    for place in range(1, len(steps)):
        if distances[place] <= goal:
            share = math.log(distances[place - 1] / goal) / math.log(distances[place - 1] / distances[place])
            return float(steps[place - 1] * (steps[place] / steps[place - 1]) ** share)
    return None


def speed_up(table: Table, steps: Sequence[int], clock: str) -> list[str]:
    """Time for equal distance: η = 0 at S against η = 1 and σ̂ at the most steps."""
    start, slope, _ = linear_fit([table[0.0, number] for number in steps], clock)
    said = []
    for eta in (1.0, "sigma_hat"):
        full = table[eta, steps[-1]]
        goal, error = full["frechet"], full["frechet_error"]
        text = f"- {name(eta)} at S = {steps[-1]} has {goal:.3g} ± {error:.2g} in {full[clock]:.0f} s. DDIM"
        for limit, what in ((goal, "as near"), (goal + 2 * error, "as near but for two errors")):
            needed = steps_for(table, steps, limit)
            if needed is None:
                text += f" is {what} at no S measured;"
                continue
            seconds = start + slope * needed
            text += f" is {what} at S ≈ {needed:.0f} in {seconds:.1f} s, **{full[clock] / seconds:.0f}x faster**;"
        said.append(text.removesuffix(";") + ".")
    return said


# ------------------------------------------------------------------------------------------------------------ the page


def as_markdown(results: dict[str, Any], command: str, note: str | None = None) -> str:
    table, steps = as_table(results["summary"]), sorted({row["steps"] for row in results["summary"]})
    settings, versions = results["settings"], results["versions"]
    places = [STEPS.index(number) for number in steps]
    head = " | ".join(f"{number}" for number in steps)
    rule = "|---" * (2 * len(steps) + 1) + "|"
    first = results["summary"][0]
    errors = first["error_is"].replace("bootstrap", "the standard deviation of a bootstrap")
    lines = [
        "# Table 1",
        "",
        f"Written by `{command}`: the digits model, {settings['samples']:,} samples a cell and seed, {first['seeds']} "
        f"seed(s), classes in turn, against all 1,797 real digits. torch {versions['torch']}, Python "
        f"{versions['python']}, {versions['machine']}." + f" {note}" * bool(note),
        "",
        "On the left the Fréchet distance of digits features, on the right the paper's FID of CIFAR-10. **The two "
        f"cannot be compared in size**, only in shape. Errors are {errors}. A perfect model would have "
        f"{results['ideal']:.3g}: "
        "samples that are finite in number are never at zero. As in the authors' code, x0 is clipped under σ̂ alone, "
        "which adds no noise at the last step; timesteps are spaced linearly.",
        "",
        f"| digits, S = | {head} | CIFAR-10, {' | '.join(f'{number}' for number in steps)} |",
        rule,
    ]
    for eta in ETAS:
        ours = " | ".join(f"{table[eta, n]['frechet']:.3g} ± {table[eta, n]['frechet_error']:.1g}" for n in steps)
        lines.append(f"| {name(eta)} | {ours} | {' | '.join(f'{PAPER[eta][place]:g}' for place in places)} |")
    for title, key in (("Kernel distance", "kernel"), ("Precision", "precision"), ("Recall", "recall")):
        lines += ["", f"{title}:", "", f"| S = | {head} |", "|---" * (len(steps) + 1) + "|"]
        for eta in ETAS:
            cells = [
                f"{table[eta, n][key]:.3g}" + (f" ± {table[eta, n]['kernel_error']:.1g}" if key == "kernel" else "")
                for n in steps
            ]
            lines.append(f"| {name(eta)} | {' | '.join(cells)} |")
    lines += ["", "## Does its shape come out?", "", *claims(table, steps)]
    lines += ["", "## Time", "", f"| seconds, S = | {head} |", "|---" * (len(steps) + 1) + "|"]
    for key, label in (("seconds", "of the clock"), ("cpu_seconds", "of the processors")):
        for eta in (0.0, 1.0):
            cells = " | ".join(f"{table[eta, n][key]:.1f}" for n in steps)
            lines.append(f"| {name(eta)}, {label} | {cells} |")
    lines += ["", "Other work on the machine lengthens the clock's times, hardly the processors'."]
    start, slope, off = linear_fit([table[0.0, number] for number in steps], "cpu_seconds")
    verdict_on_time = "linear in S, as in the paper" if off < 0.1 else "**not linear in S**, as it is in the paper"
    lines += [
        "",
        f"Processor time for η = 0 is {start:.2g} s + {slope:.3g} s · S, off by {off:.0%} at most: {verdict_on_time}.",
    ]
    if steps[-1] == 1000:
        lines += [
            "",
            "## DDIM against DDPM at equal distance",
            "",
            "In processor time, which other work on the machine does not change:",
            "",
        ]
        lines += speed_up(table, steps, "cpu_seconds")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10, 20 and 50 steps, 200 samples each")
    parser.add_argument("--out", type=Path, help="the run's folder")
    parser.add_argument("--write", type=Path, help="the page; its picture goes beside it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--note", help="a sentence for the page, on how this run was made")
    parser.add_argument("--threads", type=int, help="of torch; all cores if not given")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    out = options.out or HERE / "runs" / ("table1-quick" if options.quick else "table1")
    page = options.write or (out / "table1.md" if options.quick else HERE / "docs" / "table1.md")
    print(run_evaluate(settings_for(options.quick, out, tuple(options.seeds), options.batch)))
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    picture = page.with_suffix(".png").name
    text = as_markdown(results, "python scripts/figures/table1.py" + " --quick" * options.quick, options.note)
    write_text(page, text + f"\n![Distance against steps and against time]({picture})\n")
    for suffix in (".png", ".svg"):
        plot_tradeoff([results], str(page.with_suffix(suffix)), clock="cpu_seconds")
    with atomic_write(page.with_suffix(".json")) as path:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
