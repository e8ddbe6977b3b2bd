"""Memory and time to load a U-Net of Stable Diffusion 2.1's size, every parameter read.

    python benchmarks/run.py loading

The weights are random, 3.5 GB of float32, written to a temporary folder in diffusers' layout. Each load is a process
of its own; growth is the peak of its resident memory over what it had with the libraries imported.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile

import torch
from unet import FULL

from ddim.checkpoint.loading import skeleton
from ddim.models import UNet2DConditionModel

LOAD = """
import json, sys, time, torch
from pathlib import Path
{imports}

def status(name):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024

torch.empty(1).sum()
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
started = time.perf_counter()
unet = UNet2DConditionModel.from_pretrained(sys.argv[1])
total = sum(float(p.detach().sum()) for p in unet.parameters())
spent = time.perf_counter() - started
weights = sum(p.nbytes for p in unet.parameters())
print(json.dumps({{"growth": (status("VmHWM") - before) / weights, "seconds": spent, "weights": weights}}))
"""
IMPORTS = {
    "diffusers": "from diffusers import UNet2DConditionModel",
    "ddim": "from ddim.models import UNet2DConditionModel",
}


def load(library: str, folder: str) -> dict[str, float]:
    """What a fresh process measured."""
    command = [sys.executable, "-c", LOAD.format(imports=IMPORTS[library]), folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def section(rounds: int) -> str:
    """The section of docs/benchmarks.md."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        with skeleton():
            unet = UNet2DConditionModel(**FULL)  # type: ignore[arg-type]
        unet.to_empty(device="cpu")
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        unet.save_pretrained(folder)
        del unet
        found: dict[str, list[dict[str, float]]] = {name: [] for name in IMPORTS}
        for number in range(min(rounds, 3) + 1):
            for name in IMPORTS:
                figures = load(name, folder)
                if number:  # the first one fills the system's cache of files
                    found[name].append(figures)
    lines = [
        "## Loading",
        "",
        f"`python benchmarks/run.py loading --rounds {rounds}`: a U-Net of Stable Diffusion 2.1's size (float32, "
        f"{found['ddim'][0]['weights'] / 1e9:.2f} GB, random weights), loaded and every parameter summed, in a fresh "
        "process. Memory is the growth of the resident peak (aim: 1.15 times the weights, and not over diffusers').",
        "",
        "| library | memory, times the weights | seconds |",
        "|---|---|---|",
    ]
    for name, each in found.items():
        growth, spent = (statistics.median(one[key] for one in each) for key in ("growth", "seconds"))
        lines.append(f"| {name} | {growth:.3f} | {spent:.2f} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)
