"""Everything that the DDIM paper claims, shown on the bundled models: what docs/paper.md is made of.

    python scripts/paper.py            # hours; each part that is long goes on where it was
    python scripts/paper.py --quick    # the same commands, small, into runs/paper-quick; minutes
    python scripts/paper.py table1     # one part

Parts that are done are done again only if they are named: a file in runs/paper notes them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from ddim.checkpoint.files import read_json, write_json

HERE = Path(__file__).parent.parent
DDIM = [sys.executable, "-m", "ddim"]
HEART = ["a red heart, noto style", "a blue heart, noto style"]


def parts(quick: Path | None) -> dict[str, list[str]]:
    """Name -> command. What is quick writes all into that folder."""
    out, kept = (quick, quick) if quick else (Path("docs"), Path("runs"))

    def python(script: str, *options: str) -> list[str]:
        return [sys.executable, f"scripts/{script}.py", *options]

    few = ["--steps", "10" if quick else "50"]
    tradeoff = str(kept / "emoji-tradeoff")
    return {
        "table1": python("figures/table1", *(["--quick", "--out", str(kept / "table1")] if quick else [])),
        "agreement": python(
            "figures/agreement_distance",
            *(["--samples", "60", "--steps", "10", "--write", str(out / "agreement.md")] if quick else []),
            "--out",
            str(kept / "agreement"),
        ),
        "tradeoff": [
            *DDIM, "evaluate", "emoji", "--against", "data/emoji.parquet", "--eta", "0", "1", "sigma_hat",
            "--batch", "50", "--backend", "openvino", "--out", tradeoff,
            *("--steps", *(("4",) if quick else ("10", "25"))), "--samples", "50" if quick else "500",
        ],
        "tradeoff-plot": [
            *DDIM, "plot", "tradeoff", tradeoff, "--overwrite", "--out", str(out / "emoji-tradeoff.png"),
        ],
        "consistency": [
            *DDIM, "evaluate", "digits", "--consistency", "--clip-sample", "never", "--out", str(out),
            "--samples", "20" if quick else "200",
            "--steps", *(("10", "50") if quick else ("10", "20", "50", "100", "1000")),
        ],
        "reconstruction": python("figures/reconstruction", *(["--quick"] if quick else [])),
        "digits": [
            *DDIM, "sample", "--model", "digits", "--class-labels", *"0 1 2 3 4 5 6 7 8 9".split(), "--batch", "60",
            *few, "--order", "1", "--scale", "8", "--overwrite", "--out", str(out / "digits.png"),
        ],
        "interpolation-digits": [
            *DDIM, "interpolate", "--seeds", *"0 1 2 3 4".split(), "--frames", "11", "--rows", *few,
            "--overwrite", "--out", str(out / "interpolation-digits.png"),
        ],
        "interpolation-emoji": [
            *DDIM, "interpolate", *HEART, "--frames", "3" if quick else "10", *few,
            "--overwrite", "--out", str(out / "interpolation-emoji.png"),
        ],
        "interpolation-seeds": [
            *DDIM, "interpolate", "a cat face", "--seeds", "0", "1", "2", "--frames", "3" if quick else "10", "--rows",
            *few, "--overwrite", "--out", str(out / "interpolation-emoji-seeds.png"),
        ],
        "trajectory": [
            *DDIM, "plot", "trajectory", HEART[0], *few, "--overwrite", "--out", str(out / "trajectory.png"),
        ],
        "editing": python("figures/edit_pictures", *(["--quick", "--out", str(out / "editing.png")] if quick else [])),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help=f"parts to do, also again: {', '.join(parts(None))}")
    parser.add_argument("--quick", action="store_true", help="small, in minutes")
    parser.add_argument("--quick-out", type=Path, default=Path("runs/paper-quick"), help="where what is quick goes")
    options = parser.parse_args()
    quick = options.quick_out.resolve() if options.quick else None
    os.chdir(HERE)
    commands = parts(quick)
    unknown = sorted(set(options.only) - set(commands))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(commands)}")
    note = Path("runs/paper/done.json")
    done = read_json(note) if note.exists() and not options.quick else {}
    if quick:
        quick.mkdir(parents=True, exist_ok=True)
    for name, command in commands.items():
        if (options.only and name not in options.only) or (not options.only and name in done):
            continue
        print(f"{name}: {' '.join(command[1:])}", flush=True)
        started = time.perf_counter()
        status = subprocess.run(command, check=False).returncode
        if status:
            print(f"{name} ended with status {status}; run this again to go on", file=sys.stderr)
            return status
        done[name] = round(time.perf_counter() - started, 1)
        print(f"{name}: {done[name]} s", flush=True)
        if not options.quick:
            note.parent.mkdir(parents=True, exist_ok=True)
            write_json(note, done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
