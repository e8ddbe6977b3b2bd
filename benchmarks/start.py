"""From the start of a process to a PNG on the disk, beside a script for diffusers that does the same.

    python benchmarks/run.py start

The bundled emoji model, 25 steps, guidance 3 and rescale 0.7, one picture. What OpenVINO keeps on the disk was made
before, and the files of both are in the system's cache.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ddim.checkpoint import Repository

THEIRS = """
import sys
from diffusers import DDIMScheduler, StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe("a red heart", num_inference_steps=25, guidance_scale=3.0, guidance_rescale=0.7).images[0].save(sys.argv[2])
"""
PEER = "a script for diffusers"


def seconds(command: list[str]) -> float:
    """Of a process that must succeed and write its last argument."""
    picture = Path(command[-1])
    picture.unlink(missing_ok=True)
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    quiet.pop("PYTHONDONTWRITEBYTECODE", None)  # else what is not installed, but run from its source, is compiled anew
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, check=False)
    spent = time.perf_counter() - started
    if done.returncode or not picture.is_file():
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return spent


def section(rounds: int) -> str:
    """The section of docs/benchmarks.md."""
    model = Repository.open("emoji", {}).find("model_index.json").parent  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as folder:
        ours = [str(Path(sys.executable).with_name("ddim")), "sample", "a red heart", "--steps", "25"]
        script, out = Path(folder, "theirs.py"), ["--overwrite", "--out", str(Path(folder, "ours.png"))]
        script.write_text(THEIRS, encoding="utf-8")
        commands = {
            PEER: [sys.executable, str(script), str(model), str(Path(folder, "theirs.png"))],
            "ddim sample": [*ours, *out],
            "ddim sample --backend openvino": [*ours, "--backend", "openvino", *out],
            "import torch alone": [
                sys.executable, "-c", "import sys, torch; open(sys.argv[1], 'wb').close()", str(Path(folder, "none"))
            ],
        }  # fmt: skip
        times: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(min(rounds, 7) + 1):
            for name, command in commands.items():
                spent = seconds(command)
                if number:  # the first one fills the caches
                    times[name].append(spent)
    lines = [
        "## From nothing to a PNG",
        "",
        f"`python benchmarks/run.py start --rounds {rounds}`: the emoji model, 25 steps, one picture, from the "
        "start of the process to its end. The last row is a process that imports PyTorch and ends.",
        "",
        "| process | seconds | times faster |",
        "|---|---|---|",
    ]
    medians = {name: statistics.median(spent) for name, spent in times.items()}
    for name, spent in medians.items():
        lines.append(f"| {name} | {spent:.2f} | **{medians[PEER] / spent:.2f}x** |")
        print(lines[-1], flush=True)
    return "\n".join(lines)
