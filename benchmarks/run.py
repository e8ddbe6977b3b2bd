"""Run benchmarks side by side with diffusers.

    python benchmarks/run.py                              # all of them, printed
    python benchmarks/run.py step unet --write docs/benchmarks.md

Nothing else should run on the machine meanwhile. Of `--write`'s file, the sections that are run are replaced.
"""

from __future__ import annotations

import argparse
import re
import warnings
from pathlib import Path

import equal_quality
import loading
import policy
import start
import step
import studio
import text_to_image
import training
import unet
import xl
from common import machine

SECTIONS = {
    "step": step.section,
    "policy": policy.section,
    "unet": unet.section,
    "xl": xl.section,
    "text_to_image": text_to_image.section,
    "equal_quality": equal_quality.section,
    "students": equal_quality.students_section,
    "start": start.section,
    "studio": studio.section,
    "loading": loading.section,
    "training": training.section,
}
HEAD = """# Benchmarks

This page is written by `make bench`. The peers are timed in turn, several rounds over, and figures are medians.
Absolute times vary from machine to machine and from day to day, so quote the ratios, whose figures were measured in
one run. All of it was measured on a CPU; [another page](cuda.md) has what was measured on an NVIDIA H200, and
[serving](serving.md#sizing) how many clients a server draws for.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; all if none is named"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", type=Path, help="put the tables into this file")
    options = parser.parse_args()
    unknown = sorted(set(options.sections) - set(SECTIONS))
    if unknown:
        parser.error(f"there is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    warnings.filterwarnings("ignore")
    print(machine())
    old = options.write.read_text(encoding="utf-8") if options.write and options.write.exists() else ""
    kept = dict(re.findall(r"<!-- (\w+) -->\n(.*?)\n<!-- end -->", old, flags=re.DOTALL))
    for name in options.sections or SECTIONS:
        kept[name] = f"{SECTIONS[name](options.rounds)}\n\n{machine()}."
    if options.write:
        parts = [f"<!-- {name} -->\n{kept[name]}\n<!-- end -->\n" for name in SECTIONS if name in kept]
        options.write.write_text("\n".join([HEAD, *parts]), encoding="utf-8")


if __name__ == "__main__":
    main()
