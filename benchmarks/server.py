"""Pictures a second and latencies of `ddim serve` by how many clients ask, and the U-Net's own gain beside them.

    python benchmarks/server.py --backends eager openvino --json docs/serving.json --write

Each client asks for one picture after another over its own connection: the bundled emoji model, 25 steps of order 1,
guidance 3, rescale 0.7, a PNG in base64. A second server with --max-batch 1 runs beside the first one and is asked in
turn with it, so that what else the machine does concerns both. The rates are the best of the rounds; the latencies are
of all rounds together. --write puts the table into docs/serving.md and the plot beside it; with --rounds 0 nothing is
measured, and they are made of the JSON file as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
from common import machine
from pages import put_between
from served import Server, post, served
from serving import PROMPTS, unet_gain

from ddim import DiffusionPipeline
from ddim.checkpoint import read_json, write_json
from ddim.plots.style import COLOURS, MARKERS, plain, save_figure

DOCS = Path(__file__).resolve().parents[1] / "docs"
MARKS = ("<!-- sizing: measured table -->", "<!-- end of sizing -->")
BATCH = 16


def asked(seed: int, steps: int) -> dict[str, Any]:
    how = {"steps": steps, "order": 1, "guidance_scale": 3.0, "guidance_rescale": 0.7}
    return {"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed, **how}


def round_of(server: Server, clients: int, each: int, steps: int) -> tuple[float, list[float]]:
    """Pictures a second of clients who ask `each` times one after another, and the seconds of each answer."""
    latencies: list[float] = []
    failed: list[str] = []
    begin = threading.Barrier(clients + 1)

    def ask(client: int) -> None:
        with contextlib.closing(server.connect()) as connection:
            connection.connect()
            begin.wait()
            for number in range(each):
                started = time.perf_counter()
                response = post(connection, asked(client * each + number, steps))
                body = response.read()
                latencies.append(time.perf_counter() - started)
                if response.status != 200:
                    failed.append(f"{response.status}: {body[:300]!r}")

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    begin.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if failed or len(latencies) != clients * each:
        raise RuntimeError(f"{clients * each - len(latencies)} answers are missing, and others failed: {failed[:3]}")
    return clients * each / seconds, latencies


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that at least a share of all are not above."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def measured(backend: str, counts: Sequence[int], steps: int, rounds: int, pictures: int) -> dict[str, Any]:
    """A row for each number of clients, and what one at a time and the U-Net alone come to at the batch."""
    cases = [(clients, BATCH) for clients in counts] + [(BATCH, 1)]
    rates: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    latencies: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    pipe: Any = DiffusionPipeline.from_pretrained("emoji").accelerate(backend)
    pipe.set_progress_bar_config(disable=True)
    options = ("--backend", backend, "--max-queue", "64", "--max-batch")
    with (
        served(["emoji"], *options, str(BATCH)) as batched,
        served(["emoji"], *options, "1") as single,
    ):
        servers = {BATCH: batched, 1: single}
        for clients, most in cases:
            round_of(servers[most], clients, 2, min(steps, 4))
        for _ in range(rounds):
            for clients, most in cases:
                rate, found = round_of(servers[most], clients, max(1, pictures // clients), steps)
                rates[clients, most].append(rate)
                latencies[clients, most] += found
        floor = unet_gain(pipe, BATCH, rounds + 2)
    rows = [
        {
            "clients": clients,
            "max_batch": most,
            "pictures": len(latencies[clients, most]),
            "per_second": max(rates[clients, most]),
            "p50": percentile(latencies[clients, most], 0.5),
            "p99": percentile(latencies[clients, most], 0.99),
        }
        for clients, most in cases
    ]
    found = {"steps": steps, "rounds": rounds, "rows": rows, "unet_gain": floor}
    if BATCH in counts:
        found["gain"] = max(rates[BATCH, BATCH]) / max(rates[BATCH, 1])
        found["share"] = found["gain"] / found["unet_gain"]
    return found


def said(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def table(found: dict[str, Any]) -> str:
    backends = found["backends"]
    lines = [
        "| backend | `--max-batch` | clients | pictures a second | latency, p50 | p99 |",
        "|---|---|---|---|---|---|",
    ]
    for backend, figures in backends.items():
        for number, row in enumerate(figures["rows"]):
            name = "" if number else backend
            lines.append(
                f"| {name} | {row['max_batch']} | {row['clients']} | {row['per_second']:.2f} | {said(row['p50'])} | "
                f"{said(row['p99'])} |"
            )
    gains = [
        f"{backend}: {figures['gain']:.2f}x at {BATCH} clients, where the U-Net alone gains "
        f"{figures['unet_gain']:.2f}x ({figures['share']:.0%} of it)"
        for backend, figures in backends.items()
        if "gain" in figures
    ]
    steps = next(iter(backends.values()))["steps"]
    lines += ["", "![Pictures a second and latency, by the number of clients](serving.png)", ""]
    lines.append(
        f"`python benchmarks/server.py`: emoji, {steps} steps of order 1 under guidance, a PNG each; every client asks "
        f"again as soon as it is answered. What drawing together gains over `--max-batch 1`: {'; '.join(gains)}."
    )
    lines += ["", f"{found['machine']}."]
    return "\n".join(lines)


def plot(found: dict[str, Any], out: Path) -> None:
    figure = matplotlib.figure.Figure(figsize=(7.5, 2.9), layout="constrained")
    rates, latencies = figure.subplots(1, 2)
    for (backend, figures), colour, marker in zip(found["backends"].items(), COLOURS, MARKERS, strict=False):
        rows = [row for row in figures["rows"] if row["max_batch"] == BATCH]
        clients = [row["clients"] for row in rows]
        style = {"color": colour, "marker": marker, "markersize": 4}
        rates.plot(clients, [row["per_second"] for row in rows], label=backend, **style)
        latencies.plot(clients, [row["p50"] for row in rows], label=f"{backend}, p50", **style)
        latencies.plot(clients, [row["p99"] for row in rows], label=f"{backend}, p99", linestyle="--", **style)
        alone = [row for row in figures["rows"] if row["max_batch"] == 1]
        hollow = {**style, "linestyle": "none", "markerfacecolor": "none"}
        name = f"{backend}, --max-batch 1"
        rates.plot([row["clients"] for row in alone], [row["per_second"] for row in alone], label=name, **hollow)
        latencies.plot([row["clients"] for row in alone], [row["p50"] for row in alone], label=f"{name}, p50", **hollow)
    ticks = sorted({row["clients"] for figures in found["backends"].values() for row in figures["rows"]})
    for axes, title in ((rates, "pictures a second"), (latencies, "latency in seconds")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlabel("clients")
        axes.set_title(title, fontsize=10)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7)
        plain(axes)
    save_figure(figure, str(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["eager"], choices=["eager", "openvino"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=16, help="of a round, or one for each client if they are more")
    parser.add_argument("--json", type=Path, help="a file for the figures; those of other backends in it are kept")
    parser.add_argument("--write", action="store_true", help="write the table into the page, and the plot beside it")
    parser.add_argument("--page", type=Path, default=DOCS / "serving.md", help="the page: %(default)s")
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "backends": {}}
    if given.json is not None and given.json.exists():
        found = read_json(given.json)
    for backend in given.backends if given.rounds else ():
        found["backends"][backend] = measured(backend, given.clients, given.steps, given.rounds, given.pictures)
        found["machine"] = machine()
        if given.json is not None:
            write_json(given.json, found)
    print(table(found))
    if given.write:
        plot(found, given.page.with_name("serving.png"))
        put_between(MARKS, table(found), given.page)


if __name__ == "__main__":
    main()
