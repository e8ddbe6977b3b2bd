"""The engine on the bundled emoji model: what it gains from batches, and what it costs.

    python benchmarks/serving.py                       # eager and, where it is installed, OpenVINO
    python benchmarks/serving.py --backends eager --steps 25 --clients 16

The floor of the first figure is the U-Net's own gain at the same batch: its forward passes under guidance alone, timed
in the same run. Everything is timed in turn, several times, and the least is taken, as others may use the machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine

from ddim import DiffusionPipeline
from ddim.serving import Engine, Finished, Future, Request, Step

PROMPTS = ("a red heart", "a grinning face", "a blue fish", "a yellow star")


def request(seed: int, steps: int) -> Request:
    return Request(
        prompt=PROMPTS[seed % len(PROMPTS)], seed=seed, steps=steps, order=1, guidance_scale=3.0, guidance_rescale=0.7
    )


def least(work: Callable[[], object], rounds: int) -> float:
    """The least of several times, in seconds."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def in_turn(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least time of each, in seconds, each timed once a round."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(least(work, 1))
    return {name: min(each) for name, each in times.items()}


def drawn(engine: Engine, requests: list[Request]) -> list[float]:
    """The latencies of requests that are submitted together, in seconds."""
    return [future.result().seconds for future in engine.submit_all(requests)]


def unet_gain(pipe: Any, batch: int, rounds: int) -> float:
    """How much faster guided predictions are in a batch than one by one."""
    plan = pipe.scheduler.plan(25)

    def passes(count: int) -> Callable[[], object]:
        x = torch.randn(pipe.sample_shape(count))
        denoiser = pipe.denoiser(plan, count, prompt=PROMPTS[0], guidance_scale=3.0, guidance_rescale=0.7)

        def work() -> None:
            with torch.no_grad():
                for _ in range(batch // count):
                    denoiser(x, torch.tensor(plan.timesteps[3]))

        return work

    times = in_turn({"alone": passes(1), "together": passes(batch)}, rounds)
    return times["alone"] / times["together"]


def throughput(pipe: Any, clients: int, steps: int, rounds: int) -> dict[str, float]:
    """Pictures a second of clients who ask again and again, with batches and without, and the U-Net's own gain."""
    requests = [request(seed, steps) for seed in range(clients)]
    with Engine(pipe, max_batch=1) as single, Engine(pipe, max_batch=clients) as batched:
        times = in_turn(
            {"max_batch=1": lambda: drawn(single, requests), "batched": lambda: drawn(batched, requests)}, rounds
        )
    gain, floor = times["max_batch=1"] / times["batched"], unet_gain(pipe, clients, rounds)
    return {
        "pictures/s, max_batch=1": clients / times["max_batch=1"],
        f"pictures/s, max_batch={clients}": clients / times["batched"],
        "gain": gain,
        "gain of the U-Net alone": floor,
        "share of it": gain / floor,
    }


def equal_requests(pipe: Any, count: int, steps: int, rounds: int) -> dict[str, float]:
    """Requests that are alike, by the engine and by one call of the pipeline; and one request alone."""
    requests = [request(0, steps)] * count
    how: dict[str, Any] = {"num_inference_steps": steps, "order": 1, "guidance_scale": 3.0, "guidance_rescale": 0.7}
    with Engine(pipe, max_batch=count) as engine:
        together = in_turn(
            {
                "engine": lambda: drawn(engine, requests),
                "pipeline": lambda: pipe(PROMPTS[0], num_images_per_prompt=count, seed=[0] * count, **how),
            },
            rounds,
        )
        alone = in_turn(
            {"engine": lambda: drawn(engine, requests[:1]), "pipeline": lambda: pipe(PROMPTS[0], seed=0, **how)},
            2 * rounds,
        )
    return {
        f"{count} equal requests, engine, s": together["engine"],
        f"{count} equal requests, one call, s": together["pipeline"],
        "ratio": together["engine"] / together["pipeline"],
        "one request, engine, ms": 1000 * alone["engine"],
        "one request, pipeline, ms": 1000 * alone["pipeline"],
        "more, ms": 1000 * (alone["engine"] - alone["pipeline"]),
    }


def arrival(pipe: Any, rounds: int) -> dict[str, float]:
    """A request of 4 steps that comes while 15 of 50 steps run; and where requests are drawn in order of arrival."""

    def latency(max_batch: int) -> tuple[float, int]:
        arrived: list[tuple[Future, int]] = []
        there = threading.Event()
        ticks: list[int] = []

        def come(event: Any) -> None:
            # In order of arrival, the others come one after another: the first one's middle is where they all wait.
            if isinstance(event, Step) and event.number == 10 and not arrived:
                future = engine.submit(request(99, 4))
                arrived.append((future, engine.stats().ticks))
                future.listen(lambda e: ticks.append(engine.stats().ticks) if isinstance(e, Finished) else None)
                there.set()

        with Engine(pipe, max_batch=max_batch) as engine:
            others = engine.submit_all([request(seed, 50) for seed in range(15)])
            others[0].listen(come)
            there.wait()
            (future, before), *_ = arrived
            seconds = future.result().seconds
            for other in others:
                other.cancel()
        return seconds, ticks[0] - before

    batched, in_order = min(latency(16) for _ in range(rounds)), latency(1)
    return {
        "latency, ms": 1000 * batched[0],
        "ticks": batched[1],
        "latency in order of arrival, ms": 1000 * in_order[0],
        "share": batched[0] / in_order[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--backends", nargs="+", default=["eager", "openvino"])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip", nargs="*", default=[], choices=["throughput", "equal", "arrival"])
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    given = parser.parse_args()
    print(machine())
    found: dict[str, dict[str, float]] = {}
    for backend in given.backends:
        if backend == "openvino" and not importlib.util.find_spec("openvino"):
            continue
        pipe: Any = DiffusionPipeline.from_pretrained(given.model).accelerate(backend)
        pipe.set_progress_bar_config(disable=True)
        figures: dict[str, float] = {}
        if "throughput" not in given.skip:
            figures |= throughput(pipe, given.clients, given.steps, given.rounds)
        if "equal" not in given.skip:
            figures |= equal_requests(pipe, given.clients, given.steps, given.rounds)
        if "arrival" not in given.skip:
            figures |= arrival(pipe, given.rounds)
        found[pipe.backend] = figures
        print(f"\n{pipe.backend}")
        for name, value in figures.items():
            print(f"  {name:<40} {value:.4g}")
    if given.out is not None:
        given.out.write_text(json.dumps({"machine": machine(), "figures": found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
