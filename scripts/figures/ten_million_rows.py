#!/usr/bin/env python3
"""Ten million rows on a hundred GPUs, on paper: how long the last worker is waited for, and what deaths cost.

    python scripts/figures/ten_million_rows.py            # prints the table of docs/scale.md
    python scripts/figures/ten_million_rows.py --write    # and writes it there

A worker draws as many rows a second as told, each a little more or fewer than the
others; one of them at half the speed. Workers die at random; one that died is back after a while, and what it had in
hand is drawn again.
"""

from __future__ import annotations

import argparse
import heapq
import random
import re
from pathlib import Path

from ddim.checkpoint.files import write_text

PAGE = Path(__file__).parent.parent.parent / "docs" / "scale.md"
BEGIN, END = "<!-- pieces: by scripts/figures/ten_million_rows.py -->\n", "\n<!-- end of pieces -->"


def simulate(options: argparse.Namespace, piece: int) -> tuple[float, float, int]:
    """Hours until all is drawn; the share of all workers' time in which they had nothing to draw; rows drawn twice."""
    chance = random.Random(options.seed)
    speeds = [options.speed * chance.gauss(1, 0.05) for _ in range(options.workers)]
    speeds[0] /= 2
    pieces, rest = divmod(options.rows, piece)
    left = [piece] * pieces + [rest] * bool(rest)
    free = [(0.0, worker) for worker in range(options.workers)]
    died = [chance.expovariate(1 / (options.days * 86_400)) for _ in range(options.workers)]
    ends, twice, drawing = [0.0] * options.workers, 0, 0.0
    while left:
        now, worker = heapq.heappop(free)
        rows = left.pop()
        end = now + rows / speeds[worker]
        drawing += rows / speeds[worker]
        while died[worker] < end:
            end += options.restart + options.in_hand / speeds[worker]
            twice += options.in_hand
            died[worker] += chance.expovariate(1 / (options.days * 86_400))
        ends[worker] = end
        heapq.heappush(free, (end, worker))
    last = max(ends)
    return last / 3600, 1 - drawing / (last * options.workers), twice


def table(options: argparse.Namespace) -> str:
    lines = ["| rows of a piece | pieces | hours | time without work | rows drawn twice |", "|---|---|---|---|---|"]
    for piece in (50, 250, 1000, 10_000, options.rows // options.workers):
        hours, idle, twice = simulate(options, piece)
        lines.append(f"| {piece:,} | {options.rows // piece:,} | {hours:.2f} | {idle:.2%} | {twice:,} |")
    return "\n".join(lines)


def with_table(page: str, text: str) -> str:
    """The page's text with its table made anew."""
    return re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: BEGIN + text + END, page, flags=re.DOTALL)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--speed", type=float, default=4.0, help="rows a second of a worker")
    parser.add_argument("--days", type=float, default=7.0, help="from one death of a worker to the next, on average")
    parser.add_argument("--restart", type=float, default=120.0, help="seconds until a worker that died draws again")
    parser.add_argument("--in-hand", type=int, default=64, help="rows that a worker that dies has drawn in part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the table into docs/scale.md")
    return parser


def main() -> None:
    options = parser().parse_args()
    text = table(options)
    print(text)
    if options.write:
        write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), text))


if __name__ == "__main__":
    main()
