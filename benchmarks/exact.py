"""What pictures that are the same to the bit cost: the engine with `slots` against the engine without.

    OMP_NUM_THREADS=1 python benchmarks/exact.py
    python benchmarks/exact.py --backend openvino --threads 2 --slots 16

Each kind of work is drawn by both engines in turn, several times, and the least processor time of each is taken, as
others may use the machine. Times by the clock stand beside it, which mean something only where nobody else does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from common import machine

from ddim import DiffusionPipeline
from ddim.serving import Engine, Request

PROMPTS = ("a red heart", "a grinning face", "a blue fish", "a yellow star")


def alike(count: int, **how: Any) -> list[Request]:
    return [Request(prompt=PROMPTS[n % len(PROMPTS)], seed=n, **how) for n in range(count)]


def mixed(count: int) -> list[Request]:
    """Requests of 4 to 32 steps, every third without guidance."""
    return [
        Request(
            prompt=PROMPTS[n % len(PROMPTS)], seed=n, steps=4 + n * 13 % 29, order=1, guidance_scale=1 + 2 * (n % 3)
        )
        for n in range(count)
    ]


def drawn(engine: Engine, requests: Sequence[Request]) -> tuple[float, float]:
    """How long the requests take together: seconds of processor time, and by the clock."""
    used, clock = time.process_time(), time.perf_counter()
    for future in engine.submit_all(requests):
        future.result()
    return time.process_time() - used, time.perf_counter() - clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--count", type=int, default=32, help="pictures of each kind of work")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="the kinds of work that begin so, such as 'emoji-fast'")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(machine())
    print(f"{given.backend}, {given.threads} threads, max_batch={given.max_batch}, {given.count} pictures\n")
    count = given.count
    works = {
        "emoji, 25 steps, guidance 3": ("emoji", alike(count, steps=25, order=1, guidance_scale=3.0)),
        "emoji, 4 to 32 steps, with and without guidance": ("emoji", mixed(count)),
        "emoji-fast, 4 steps": ("emoji-fast", alike(count, steps=4)),
    }
    title = f"slots={given.slots}"
    print(
        f"{'pictures a second of processor time':<50} {'free':>8} {title:>9} {'ratio':>6}   {'ratio by the clock':>18}"
    )
    for name, (model, requests) in works.items():
        if not name.startswith(given.only):
            continue
        pipe: Any = DiffusionPipeline.from_pretrained(model).accelerate(given.backend)
        pipe.set_progress_bar_config(disable=True)
        free = Engine(pipe, max_batch=given.max_batch)
        exact = Engine(pipe, max_batch=given.max_batch, slots=given.slots)
        with free, exact:
            times: dict[Engine, list[tuple[float, float]]] = {free: [], exact: []}
            for engine in times:
                drawn(engine, requests)
            for _ in range(given.rounds):
                for engine, found in times.items():
                    found.append(drawn(engine, requests))
        used, clock = ([min(each[n] for each in found) for found in times.values()] for n in (0, 1))
        speeds = f"{count / used[0]:8.2f} {count / used[1]:9.2f} {used[0] / used[1]:6.3f}   {clock[0] / clock[1]:18.3f}"
        print(f"{name:<50} {speeds}", flush=True)


if __name__ == "__main__":
    main()
