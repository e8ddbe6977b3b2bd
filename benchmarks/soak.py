"""Many clients of a `ddim serve` for a while: is anything lost, is a picture wrong, does memory grow?

    python benchmarks/soak.py --clients 100 --seconds 600 --json soak.json

Requests are taken at random from a set that was drawn before by calls of the pipelines, with other steps, sizes, η,
orders, guidance, classes and seeds each: new pictures, edits with masks and without, and variations through noise and
by inversion. Some are streams with partial pictures, some clients go away while they wait, some requests cannot be
followed. A full queue (429) is tried again after the time that the server says. Every picture is compared with its own,
in the levels of a PNG: 1e-4 in [0, 1] may round one level up or down, and never two.
The exit code is 1 if anything is lost or wrong, failed, is still in flight at the end, or memory grew by over 5 %.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import machine
from PIL import Image
from served import Server, body, events, picture, post, served
from server import percentile
from soak_kinds import ROUTES, Kind, draw_kinds

from ddim import DiffusionPipeline
from ddim.checkpoint import write_json

MODELS = ("emoji", "emoji-fast", "digits")
STREAMS, LEAVES, IMPOSSIBLE = 0.25, 0.1, 0.03  # shares of all requests
ROUNDED = 0.05  # the share of values that may be one level off: 1e-4 is a fortieth of a level, on either side


@dataclass
class Tally:
    """What came of all requests."""

    counts: Counter[str] = field(default_factory=Counter)
    latencies: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    tried_again: list[float] = field(default_factory=list)
    most_rounded: float = 0.0
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, fault: str = "") -> None:
        with self.lock:
            self.counts[what] += 1
            if fault and len(self.faults) < 50:
                self.faults.append(f"{what}: {fault}"[:600])


def check(tally: Tally, kind: Kind, number: int, image: Image.Image) -> bool:
    """Whether a picture is its own."""
    own, given = kind.pictures[number], np.asarray(image)
    if own.shape != given.shape:
        tally.add("wrong", f"picture {number} of {kind.asked} is {given.shape}, not {own.shape}")
        return False
    off = np.abs(own.astype(int) - given.astype(int))
    share = float((off > 0).mean())
    tally.most_rounded = max(tally.most_rounded, share)
    if off.max() > 1 or share > ROUNDED:
        tally.add("wrong", f"picture {number} of {kind.asked}: {off.max()} levels off, {share:.1%} of all values")
        return False
    tally.add("right pictures")
    return True


def streamed(tally: Tally, kind: Kind, response: http.client.HTTPResponse, partial: int) -> None:
    """Follow a stream to its end."""
    seen: dict[int, int] = {}
    done: set[int] = set()
    for event in events(response):
        if "error" in event:
            tally.add("failed", f"{event['error']} in the stream of {kind.asked}")
            return
        number = event["ddim"]["number"]
        if event["type"].endswith("partial_image"):
            if number in done or event["partial_image_index"] != seen.get(number, 0):
                tally.add("wrong", f"partial pictures of {kind.asked} are out of order")
            seen[number] = seen.get(number, 0) + 1
            picture(event["b64_json"])
        else:
            check(tally, kind, number, picture(event["b64_json"]))
            done.add(number)
    if len(done) < len(kind.pictures) or any(count > partial for count in seen.values()):
        tally.add("lost", f"a stream of {kind.asked} ended with {len(done)} pictures and {seen} partial ones")
    else:
        tally.add("streams")


def ask(tally: Tally, server: Server, chance: random.Random, kinds: list[Kind], until: float) -> None:
    """One client: a request after another until the time is up."""
    connection = server.connect()
    while time.monotonic() < until:
        kind, what = chance.choice(kinds), chance.random()
        asked = dict(kind.asked)
        partial = chance.randrange(4)
        if what < STREAMS and kind.may_stream:
            asked |= {"stream": True, "partial_images": partial}
        elif STREAMS <= what < STREAMS + LEAVES:
            leave(tally, server, chance, kind)
            continue
        elif STREAMS + LEAVES <= what < STREAMS + LEAVES + IMPOSSIBLE:
            asked["eta"] = -1
        tally.add("asked")
        first = time.monotonic()
        try:
            while True:
                started = time.monotonic()
                response = post(connection, asked, kind.route, kind.files)
                if response.status != 429:
                    break
                response.read()
                connection.close()  # the server does not keep a connection for as long as it may be told to wait
                tally.add("told to try again (429)")
                time.sleep(float(response.headers["Retry-After"]) * chance.uniform(1, 1.5))
            finish(tally, kind, response, asked, partial)
            if response.status == 200:
                with tally.lock:
                    for each in (asked["model"], kind.route, "all"):
                        tally.latencies[each].append(time.monotonic() - started)
                    tally.tried_again.append(time.monotonic() - first)
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            tally.add("lost", f"{type(error).__name__}: {error} for {asked}")
            connection.close()
            connection = server.connect()
    connection.close()


def finish(tally: Tally, kind: Kind, response: http.client.HTTPResponse, asked: dict[str, Any], partial: int) -> None:
    """Take an answer and look at it."""
    if response.status == 200 and "stream" in asked:
        streamed(tally, kind, response, partial)
        return
    told = json.loads(response.read())
    is_impossible = asked.get("eta") == -1
    if response.status == 200 and not is_impossible:
        images = [picture(each["b64_json"]) for each in told["data"]]
        if len(images) != len(kind.pictures):
            tally.add("lost", f"{len(images)} pictures for {asked}")
        for number, image in enumerate(images):
            check(tally, kind, number, image)
        tally.add("answered")
    elif response.status == 400 and is_impossible and told["error"]["param"] == "eta":
        tally.add("refused as they must be (400)")
    else:
        tally.add("failed", f"{response.status} {told} for {asked}")


def leave(tally: Tally, server: Server, chance: random.Random, kind: Kind) -> None:
    """Ask and go away before the answer is there."""
    with contextlib.closing(server.connect()) as connection:
        connection.request("POST", f"/v1/images/{kind.route}", *body(kind.asked, kind.files))
        time.sleep(chance.uniform(0, 1))
    tally.add("went away")


@contextlib.contextmanager
def watched(server: Server, every: float) -> Iterator[list[tuple[float, int]]]:
    """(second, resident bytes) of the server, again and again."""
    samples: list[tuple[float, int]] = []
    ends = threading.Event()
    started = time.monotonic()

    def look() -> None:
        while not ends.wait(every):
            samples.append((time.monotonic() - started, server.resident()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield samples
    finally:
        ends.set()
        thread.join()


def growth(samples: list[tuple[float, int]], seconds: float) -> dict[str, float]:
    """How memory went on after the first minute (of a short run: its first third), by medians of some samples."""
    first = min(60.0, seconds / 3)
    after = [size for second, size in samples if second >= first]
    some = max(1, min(6, len(after) // 3))
    base, last = statistics.median(after[:some]), statistics.median(after[-some:])
    return {"after the first minute": base, "at the end": last, "most": max(after), "growth": last / base - 1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--kinds", type=int, default=90, help="how many requests there are to choose from")
    parser.add_argument("--backend", default="eager", choices=["eager", "openvino"])
    parser.add_argument("--max-queue", type=int, default=32, help="so short that some are told to try again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    given = parser.parse_args()
    if given.kinds < len(MODELS):
        parser.error(f"--kinds must be {len(MODELS)} or more, one for each model")
    pipes: dict[str, Any] = {}
    for name in MODELS:
        pipes[name] = DiffusionPipeline.from_pretrained(name).accelerate(given.backend)
        pipes[name].set_progress_bar_config(disable=True)
    chance = random.Random(given.seed)
    kinds = [kind for name in MODELS for kind in draw_kinds(chance, name, pipes[name], given.kinds // len(MODELS))]
    del pipes
    print(f"{machine()}\n{len(kinds)} requests were drawn by the pipelines", flush=True)

    tally = Tally()
    every = min(5.0, given.seconds / 15)
    with served(MODELS, "--backend", given.backend, "--max-queue", str(given.max_queue)) as server:
        with contextlib.closing(server.connect()) as connection:
            for name in MODELS:  # loaded before the time begins
                asked = next(kind.asked for kind in kinds if kind.asked["model"] == name)
                post(connection, asked).read()
        with watched(server, every) as samples:
            until = time.monotonic() + given.seconds
            threads = [
                threading.Thread(target=ask, args=(tally, server, random.Random(f"{given.seed}/{k}"), kinds, until))
                for k in range(given.clients)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(given.seconds + 700)
        counts = tally.counts
        ends = ("answered", "streams", "refused as they must be (400)", "failed", "lost")
        counts["lost"] += max(0, counts["asked"] - sum(counts[end] for end in ends))  # threads that wait still, too
        for _ in range(100):  # who went away last may be there for a step
            in_flight = server.in_flight()
            if not in_flight:
                break
            time.sleep(0.1)
        images = sum(n for name, n in server.metrics().items() if name.startswith("ddim_images_total{"))
        code = server.end()
    memory = growth(samples, given.seconds)
    waits = {name: tally.latencies[name] for name in (*MODELS, *ROUTES, "all")}
    waits["all, with trying again"] = tally.tried_again
    figures = {
        "machine": machine(),
        "clients": given.clients,
        "seconds": given.seconds,
        "backend": given.backend,
        "counts": {**dict.fromkeys(("lost", "wrong", "failed"), 0), **tally.counts},
        "pictures drawn by the server": images,
        "in flight at the end": in_flight,
        "exit code of the server": code,
        "most values one level off in a picture": tally.most_rounded,
        "resident bytes": memory,
        "latency": {
            name: {"answers": len(each), "p50": percentile(each, 0.5), "p99": percentile(each, 0.99)}
            for name, each in waits.items()
            if each
        },
        "faults": tally.faults,
        "samples": samples,
    }
    if given.json is not None:
        write_json(given.json, figures)
    print(f"\n{given.clients} clients, {given.seconds:g} seconds, {given.backend}\n")
    for what, count in sorted(figures["counts"].items()):
        print(f"  {what:<34} {count}")
    print(f"  {'in flight at the end':<34} {in_flight}")
    print(f"  {'exit code of the server':<34} {code}")
    print(f"  {'most values one level off':<34} {tally.most_rounded:.2%} of a picture")
    for name, each in figures["latency"].items():
        print(f"  {'latency, ' + name:<34} p50 {each['p50']:.2f} s, p99 {each['p99']:.2f} s of {each['answers']}")
    mib = {name: size / 2**20 for name, size in memory.items() if name != "growth"}
    print("  " + ", ".join(f"{size:.0f} MiB {name}" for name, size in mib.items()) + f": {memory['growth']:+.1%}")
    for fault in tally.faults[:10]:
        print(f"  {fault}")
    bad = sum(figures["counts"][what] for what in ("lost", "wrong", "failed")) + in_flight + abs(code)
    return 1 if bad or memory["growth"] > 0.05 or not tally.counts["right pictures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
