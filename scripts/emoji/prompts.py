"""Write texts such as the emoji model was trained on, a text a line: what a student of it is taught by.

    python scripts/emoji/prompts.py runs/emoji/prompts.txt
    ddim distill emoji --output-dir runs/emoji/fast --steps 4 --prompts-file runs/emoji/prompts.txt

They are the captions of the training pictures in the words and with the backgrounds that training draws at random.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from train import TRAIN, write_data

from ddim.checkpoint import atomic_write
from ddim.data import Preparation, captioned_source
from ddim.data.stream import CaptionedStream


def prompts(count: int, seed: int = 0) -> list[str]:
    """As many texts as `count`: each epoch of the training pictures once, in another order and other words."""
    source = captioned_source(dataset_name=str(TRAIN))
    stream = CaptionedStream(source, Preparation(64, 3, True, False, "named"), seed, encoded=True)
    return [stream[position]["caption"] for position in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=25_600)
    options = parser.parse_args()
    if not TRAIN.exists():
        write_data()
    with atomic_write(options.out) as temporary:
        temporary.write_text("\n".join(prompts(options.count)) + "\n", encoding="utf-8")
    print(f"{options.out}: {options.count} prompts")


if __name__ == "__main__":
    main()
