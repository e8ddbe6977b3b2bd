"""What `ddim sample "a red heart"` does until its picture is written, part by part: a table of docs/speed.md.

    python scripts/figures/start_parts.py            # prints the table; a minute
    python scripts/figures/start_parts.py --write    # and writes it into docs/speed.md

Each part is told in milliseconds of processor time, by one thread: the least of several processes, as other work on the
machine can only make it longer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from ddim.checkpoint.files import write_text

PAGE = Path(__file__).parent.parent.parent / "docs" / "speed.md"
BEGIN, END = "<!-- parts: by scripts/figures/start_parts.py -->\n", "<!-- end of parts -->"
PARTS = {
    "options": "Python, and importing the command's options",
    "typed": "reading what was typed",
    "torch": "importing PyTorch",
    "pipelines": "importing the networks and pipelines",
    "loaded": "loading `{model}`",
    "drawn": "drawing, as `{model}` recommends",
    "written": "writing the PNG",
}
# The same calls as the command's, one after the other. The processor's time counts from the start of the process.
CODE = """
import json, sys, time
spent = {}
def done(part):
    spent[part] = time.process_time()
from ddim.cli import COMMANDS, load
settings = load(COMMANDS["sample"].settings)
done("options")
import tyro
tyro.cli(settings, args=["a red heart", "--model", sys.argv[1], "--out", sys.argv[2]])
done("typed")
import torch
torch.set_num_threads(1)
done("torch")
import ddim.pipelines
from ddim import DiffusionPipeline, StableDiffusionPipeline
done("pipelines")
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
done("loaded")
with torch.inference_mode():
    image = pipe("a red heart", seed=0).images[0]
done("drawn")
image.save(sys.argv[2])
done("written")
print(json.dumps(spent))
"""


def measure(model: str, processes: int) -> dict[str, float]:
    """Milliseconds by part, the least of so many processes."""
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    quiet.pop("PYTHONDONTWRITEBYTECODE", None)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", CODE, model, str(Path(folder, "heart.png"))]
        for _ in range(processes):
            out = subprocess.run(command, env=quiet, check=True, capture_output=True, text=True).stdout
            ends = json.loads(out.splitlines()[-1])
            starts = [0.0, *ends.values()][:-1]
            runs.append({part: 1000 * (end - start) for (part, end), start in zip(ends.items(), starts, strict=True)})
    return {part: min(run[part] for run in runs) for part in PARTS}


def table(found: dict[str, dict[str, float]], processes: int) -> str:
    """The fast model's parts, and of the other what differs."""
    fast, whole = found["emoji-fast"], found["emoji"]
    lines = [
        f"`python scripts/figures/start_parts.py --write`: processor time, the least of {processes} processes, one "
        "thread.",
        "",
        "| part | ms |",
        "|---|---|",
    ]
    for part, said in PARTS.items():
        lines.append(f"| {said.format(model='emoji-fast')} | {fast[part]:.0f} |")
        if part in ("loaded", "drawn"):
            lines.append(f"| {said.format(model='emoji')} instead | {whole[part]:.0f} |")
    lines += ["", f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}."]
    return "\n".join(lines)


def with_table(page: str, text: str) -> str:
    return re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: BEGIN + text + "\n" + END, page, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the table into docs/speed.md")
    options = parser.parse_args()
    text = table({model: measure(model, options.processes) for model in ("emoji-fast", "emoji")}, options.processes)
    print(text)
    if options.write:
        write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), text))


if __name__ == "__main__":
    main()
