"""What a job costs beside drawing, what workers gain, and what kills cost: `python benchmarks/jobs.py WHAT`.

    bookkeeping   rows a second of reading, checking, writing and packing, with a model that costs nothing; memory
    workers       two workers of one core against one of one core
    loop          against a plain loop over pipe(), of the same settings and of mixed ones, and what exactness costs
    example       against Ray's own example of Stable Diffusion on Ray Data, with the same weights, settings and noise
    kills         a job whose driver, workers and raylets are killed by turns, against one that nobody disturbs

Each prints what it measured as a line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import machine
from PIL import Image

from ddim.jobs.hardware import Hardware
from ddim.jobs.job import open_job
from ddim.jobs.worker import Worker, pieces_of
from ddim.pipelines import DiffusionPipeline
from ddim.serving import Engine, Finished, Future, Picture, Request

PROMPTS = ("a red heart", "a grinning face", "a cat", "a blue car", "a tree", "the flag of France", "a fish")


def resident() -> float:
    """The memory that this process holds, in MB."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def table(path: Path, count: int, steps: tuple[int, ...] = ()) -> str:
    """A table of so many rows, whose numbers of steps are these in turn."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row: dict[str, Any] = {"prompt": PROMPTS[number % len(PROMPTS)]}
            if steps:
                row["steps"] = steps[number % len(steps)]
            file.write(json.dumps(row) + "\n")
    return str(path)


def quiet(model: str) -> DiffusionPipeline:
    pipe = DiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- bookkeeping -----------------------------------------------------------------------------------------------------


class Nothing:
    """In the place of an engine: a picture of one colour for every request, at once."""

    max_batch, decoded = 16, 1

    def gathering(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def __init__(self, size: int) -> None:
        self._image = Image.new("RGB", (size, size), "red")

    def submit(self, request: Request) -> Future:
        future = Future(request)
        seed = request.seed or 0
        settings = {
            "prompt": request.prompt,
            "seed": seed,
            "steps": 4,
            "width": request.width,
            "height": request.height,
        }
        future.tell(Finished(Picture(self._image, seed, settings)))
        return future


def bookkeeping(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    pipe = quiet(options.model)
    prompts = table(folder / "prompts.jsonl", options.rows)
    started = time.perf_counter()
    job = open_job(folder / "out", prompts, {"model": options.model, "format": options.format})
    job.agree({"weights": "none"})
    read = time.perf_counter() - started
    memory, done = [resident()], 0

    def heard() -> None:
        nonlocal done
        done += 1
        if done % max(1, options.rows // 10) == 0:
            memory.append(resident())

    engine: Any = Nothing(options.size)
    started = time.perf_counter()
    Worker(job, pipe, engine, lambda: False).draw(pieces_of(job, 250), heard)
    drawn = time.perf_counter() - started
    assert job.finish().rows == 0
    total = time.perf_counter() - started
    return {
        "rows": options.rows,
        "read, rows a second": round(options.rows / read),
        "drawn and packed, rows a second": round(options.rows / drawn),
        "all, rows a second": round(options.rows / (read + total)),
        "memory at each tenth, MB": [round(each) for each in memory],
    }


# --- speed -----------------------------------------------------------------------------------------------------------


def command(prompts: str, out: Path, *options: str, model: str) -> list[str]:
    return [sys.executable, "-m", "ddim", "generate", prompts, "--out", str(out), "--model", model, *options]


def rate_of(out: Path) -> float:
    """Pictures a second, from the middle of the run, when all workers draw: of the second to the ninth tenth."""
    times = sorted(path.stat().st_mtime for path in out.rglob("*.png"))
    first, last = len(times) // 10, len(times) * 9 // 10
    return (last - first) / (times[last] - times[first])


def workers(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    prompts = table(folder / "prompts.jsonl", options.rows)
    rates: dict[str, list[float]] = {}
    for turn in range(options.rounds):
        for count in ("none", "1", "2"):
            out = folder / f"{turn}-{count}"
            extra = ["--threads", "1", *([] if count == "none" else ["--workers", count])]
            subprocess.run(command(prompts, out, *extra, model=options.model), check=True, stdout=subprocess.DEVNULL)
            rates.setdefault(count, []).append(rate_of(out))
    best = {count: max(found) for count, found in rates.items()}
    return {
        "pictures a second, the best of each": {count: round(rate, 2) for count, rate in best.items()},
        "two workers against one": round(best["2"] / best["1"], 3),
        "one worker of Ray against one process without": round(best["1"] / best["none"], 3),
    }


def loop(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of the processor, as others may use the machine; one thread."""
    torch.set_num_threads(1)
    pipe = quiet(options.model)
    found: dict[str, Any] = {}
    for name, steps in (("same settings", (4,)), ("mixed settings", (2, 3, 4, 5, 6, 8, 10))):
        lines = Path(table(folder / f"{name}.jsonl", options.rows, steps)).read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        spent: dict[str, list[float]] = {}
        for turn in range(options.rounds):
            for batch in (1, 4, 8, 16, 32):
                with timed(spent, f"loop, {batch} at a time"):
                    plain_loop(pipe, rows, batch, sort=False)
                if len(steps) > 1:
                    with timed(spent, f"loop, sorted by settings, {batch} at a time"):
                        plain_loop(pipe, rows, batch, sort=True)
            prompts = str(folder / f"{name}.jsonl")
            job = open_job(folder / f"{name}-{turn}", prompts, {"model": options.model, "format": "folder"})
            with Hardware(threads=1).engine(job, pipe) as engine, timed(spent, "job"):
                Worker(job, pipe, engine, lambda: False).draw(pieces_of(job, 250))
            free = open_job(folder / f"{name}-{turn}-free", prompts, {"model": options.model, "format": "folder"})
            with Engine(pipe, max_queue=512) as engine, timed(spent, "job, not exact"):
                Worker(free, pipe, engine, lambda: False).draw(pieces_of(free, 250))
        rates = {what: round(len(rows) / min(seconds), 2) for what, seconds in spent.items()}
        plain = max(rate for what, rate in rates.items() if what.startswith("loop"))
        found[name] = {
            "pictures a second": rates,
            "job against the best loop": round(rates["job"] / plain, 3),
            "exact against not": round(rates["job"] / rates["job, not exact"], 3),
        }
    return found


@contextlib.contextmanager
def timed(spent: dict[str, list[float]], what: str) -> Iterator[None]:
    started = time.process_time()
    yield
    spent.setdefault(what, []).append(time.process_time() - started)


def plain_loop(pipe: Any, rows: list[dict[str, Any]], batch: int, *, sort: bool) -> None:
    """What one would write without us: as many rows at a time as follow each other and have the same steps."""
    rows = sorted(rows, key=lambda row: row["steps"]) if sort else rows
    with tempfile.TemporaryDirectory() as folder:
        while rows:
            some = [row for row in rows[:batch] if row["steps"] == rows[0]["steps"]]
            if [row["steps"] for row in rows[: len(some)]] != [rows[0]["steps"]] * len(some):
                some = rows[:1]
            images = pipe([row["prompt"] for row in some], num_inference_steps=some[0]["steps"], seed=0).images
            for number, image in enumerate(images):
                image.save(f"{folder}/{len(rows)}-{number}.png")
            rows = rows[len(some) :]


# --- Ray's example ---------------------------------------------------------------------------------------------------

# Ray's page "Stable Diffusion Batch Prediction with Ray Data" has an actor with a pipeline of diffusers' that is called
# with a batch of prompts, and gathers all pictures in the driver. This is such a program, mended so that it runs on
# processors: without xformers and half precision; so that its seeds work, which are set there as an attribute of the
# pipeline that nothing reads; and so that each picture is written as soon as the driver has it. The noise is that of
# our seeds, and the sampler is DDIM, not DPM++, so that the pictures can be compared.
EXAMPLE = """
import json, os, sys
import numpy as np, ray, torch
from PIL import Image

class Predictor:
    def __init__(self, model):
        import diffusers
        torch.set_num_threads(1)
        self.pipe = diffusers.StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(self, batch):
        from ddim.noise import seeded_generators
        generators = [seeded_generators(int(seed), 1)[0] for seed in batch["seed"]]
        images = self.pipe(list(batch["prompt"]), num_inference_steps=STEPS, guidance_scale=3.0, guidance_rescale=0.7,
                           generator=generators).images
        return {"id": batch["id"], "image": np.stack([np.asarray(image) for image in images])}

model, table, out, size = sys.argv[1:5]
STEPS = int(sys.argv[5])
rows = [json.loads(line) for line in open(table)]
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
found = ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // int(size))).map_batches(
    Predictor, fn_constructor_args=(model,), batch_size=int(size), concurrency=1, num_cpus=1)
os.makedirs(out)
for row in found.iter_rows():
    Image.fromarray(row["image"]).save(f"{out}/{row['id']}.png")
"""


def example(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One worker of one thread each: how long the whole run took, from the start of Ray to the last picture.

    Ray's example writes what it has drawn in bursts, so that times of files do not say how fast it draws.
    """
    model, steps, prompts = "emoji", 25, folder / "prompts.jsonl"
    quiet(model).save_pretrained(folder / "model")
    lines = [{"id": str(n), "prompt": PROMPTS[n % len(PROMPTS)], "seed": n} for n in range(options.rows)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "example.py").write_text(EXAMPLE, encoding="utf-8")
    settings = ["--steps", str(steps), "--guidance-scale", "3", "--guidance-rescale", "0.7", "--order", "1"]
    worker = ["--workers", "1", "--threads", "1"]
    runs = {
        f"Ray's example, {size} at a time": [
            *(sys.executable, str(folder / "example.py"), str(folder / "model"), str(prompts)),
            *(str(folder / f"theirs-{size}"), str(size), str(steps)),
        ]
        for size in (1, 16)
    }
    runs["ddim generate"] = command(str(prompts), folder / "ours", *settings, *worker, model=model)
    whole: dict[str, float] = {}
    for name, typed in runs.items():
        started = time.perf_counter()
        env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
        subprocess.run(typed, check=True, stdout=subprocess.DEVNULL, env=env)
        whole[name] = time.perf_counter() - started
    differences = [
        difference(folder / "ours" / f"{n // 1000:05d}" / f"{n}.png", folder / "theirs-1" / f"{n}.png")
        for n in range(options.rows)
    ]
    own = whole.pop("ddim generate")
    return {
        "rows": options.rows,
        "seconds of the whole run of ours": round(own, 1),
        "seconds of the whole run": {name: round(seconds, 1) for name, seconds in whole.items()},
        "times that ours is as fast": {name: round(seconds / own, 2) for name, seconds in whole.items()},
        "largest difference of a value of a pixel, of 255": max(most for most, _ in differences),
        "share of values that differ": round(sum(share for _, share in differences) / options.rows, 5),
    }


def difference(one: Path, other: Path) -> tuple[int, float]:
    """(the most by which values of two pictures differ, the share of values that do)"""
    with Image.open(one) as first, Image.open(other) as second:
        found = [abs(a - b) for a, b in zip(first.tobytes(), second.tobytes(), strict=True)]
    return max(found), sum(each > 0 for each in found) / len(found)


# --- kills -----------------------------------------------------------------------------------------------------------

# Put before everything in each process: writes down which rows it begins to draw.
WATCH = """
import importlib.abc, os, sys
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "ddim.jobs.worker":
            return None
        sys.meta_path.remove(self)
        import importlib.util
        spec = importlib.util.find_spec(name)
        once = spec.loader.exec_module
        def exec_module(module):
            once(module)
            usual = module._Hand._hear
            def hear(self, row, asked, event):
                if type(event).__name__ == "Started":
                    with open(os.environ["BEGUN"], "a") as log:
                        log.write(f"{row.number}\\n")
                usual(self, row, asked, event)
            module._Hand._hear = hear
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Watch())
"""


def kills(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """It gives up after `--minutes`, and then says so."""
    end = time.monotonic() + 60 * options.minutes
    prompts = table(folder / "prompts.jsonl", options.rows, (2, 3, 4, 5))
    (folder / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    begun = folder / "begun"
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "BEGUN": str(begun)}
    moments, told = random.Random(options.seed), Counter[str]()
    out, plain = folder / "out", folder / "plain"
    typed = command(prompts, out, "--workers", "2", "--threads", "1", model=options.model)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(typed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)

    def left() -> float:
        return max(1.0, end - time.monotonic())

    started = time.monotonic()
    process = start()
    try:
        while sum(told.values()) < options.kills and time.monotonic() < end:
            victim = ("driver", "worker", "raylet")[sum(told.values()) % 3]
            before, more = drawn(out), moments.randint(1, max(2, options.rows // options.kills))
            while process.poll() is None and drawn(out) < before + more and time.monotonic() < end:
                time.sleep(0.1)
            if process.poll() is None:
                mark = {"driver": "", "worker": "ray::MapWorker", "raylet": "raylet/raylet"}[victim]
                found = [process.pid] if victim == "driver" else children(mark, process.pid)
                if found:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(moments.choice(found), signal.SIGKILL)
                    told[victim] += 1
                if victim == "raylet":  # without that of its own node, the driver ends
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(60)
                    process.kill()
            elif process.returncode == 0:
                break
            if victim == "driver" or process.poll() is not None:
                process.wait()
                process = start()
        process.wait(left())
        subprocess.run(typed, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env, timeout=left())
        disturbed = time.monotonic() - started
        alone = command(prompts, plain, "--threads", "1", model=options.model)
        subprocess.run(alone, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=left())
    except subprocess.TimeoutExpired:
        return {"kills": dict(told), "rows": options.rows, "given up after minutes": options.minutes}
    finally:
        process.kill()
        process.wait()
    ids = [json.loads(line)["id"] for line in (out / "manifest.jsonl").read_text().splitlines()]
    starts = begun.read_text().split()
    return {
        "kills": dict(told),
        "rows": options.rows,
        "seconds": round(disturbed),
        "rows in the manifest, and how many different": [len(ids), len(set(ids))],
        "the same bytes as undisturbed": contents(out) == contents(plain),
        "rows that were begun more than once, a kill": round(
            (len(starts) - len(set(starts))) / max(1, sum(told.values())), 1
        ),
    }


def drawn(out: Path) -> int:
    """How many pictures are there."""
    return sum(len(os.listdir(folder)) for folder in out.glob("[0-9]*"))


def contents(out: Path) -> dict[str, bytes]:
    """All that a job has written for others."""
    files = [path for path in out.rglob("*") if path.is_file() and ".job" not in path.parts]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def children(mark: str, of: int) -> list[int]:
    """The processes below one whose command has a mark."""
    said = subprocess.run(["ps", "-ewwo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    parts = [line.split(None, 2) for line in said.splitlines()[1:]]
    below = {of}
    for _ in range(6):
        below |= {int(pid) for pid, parent, _ in parts if int(parent) in below}
    return [int(pid) for pid, _, typed in parts if int(pid) in below and mark in typed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["bookkeeping", "workers", "loop", "example", "kills"])
    parser.add_argument(
        "--rows", type=int, help="how many rows; 100,000 for bookkeeping, 2,000 for kills, 64 for example, else 320"
    )
    parser.add_argument("--model", default="emoji-fast")
    parser.add_argument("--format", default="folder", choices=["folder", "parquet", "webdataset"])
    parser.add_argument("--size", type=int, default=64, help="pixels of a side of the pictures that cost nothing")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed, in turn; the best counts")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=30, help="after which kills gives up")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of numbers of steps that the model was not made for
    options.rows = options.rows or {"bookkeeping": 100_000, "kills": 2000, "example": 64}.get(options.what, 320)
    with tempfile.TemporaryDirectory() as folder:
        measures = {"bookkeeping": bookkeeping, "workers": workers, "loop": loop, "example": example, "kills": kills}
        found = measures[options.what](options, Path(folder))
    print(json.dumps({"what": options.what, **found, "machine": machine()}, indent=2))


if __name__ == "__main__":
    main()
