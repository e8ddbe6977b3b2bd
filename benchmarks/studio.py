"""The studio as somebody sees it who opens it: when something shows, when the first picture is there, and how long a
picture takes with five browsers drawing at once.

    python benchmarks/run.py studio

By Debian's chromium on the same machine, which takes its share of the processor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from playwright.async_api import Browser, Page, async_playwright

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
BROWSERS, PICTURES = 5, 12  # at once, and of each
LOOK = 0.5  # seconds that somebody looks at a picture before the next press, which is not taken while the last run ends
# The page makes its status anew each time, so that what was there before has a mark, and what comes has none.
MARK = "document.querySelector('#draw-stage .status').dataset.old = 'yes'"
DRAWN = """() => {
    const status = document.querySelector('#draw-stage .status');
    return status?.innerText.includes('seed') && !status.dataset.old;
}"""


@contextlib.contextmanager
def running() -> Iterator[tuple[str, Path, float]]:
    """A studio of its own: (where it is, its log, the seconds until it listened)."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        started = time.perf_counter()
        with log.open("w") as file:
            command = [sys.executable, "-m", "ddim", "studio", "--port", "0", "--no-browser"]
            process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            while not (found := re.search(r"serving at=(\S+)", log.read_text())):
                if process.poll() is not None or time.perf_counter() - started > 120:
                    raise RuntimeError(f"the studio does not listen: {log.read_text()}")
                time.sleep(0.01)
            yield found[1], log, time.perf_counter() - started
        finally:
            process.terminate()
            process.wait(30)


async def opened(browser: Browser, url: str) -> tuple[Page, float, float, float]:
    """A page in a browser that has nothing of it yet: (the page, when it began, the seconds until something showed, and
    until it could be used)."""
    page = await (await browser.new_context()).new_page()
    page.set_default_timeout(120_000)
    began = time.perf_counter()
    await page.goto(url)
    await page.locator(".main-button").first.wait_for()
    usable = time.perf_counter() - began
    paint = await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    return page, began, paint / 1000, usable


async def drawn(page: Page) -> float:
    """The seconds from a press of Draw to the picture."""
    await page.evaluate(MARK)
    began = time.perf_counter()
    await page.locator(".main-button").locator("visible=true").first.click()
    await page.wait_for_function(DRAWN, polling=10)
    return time.perf_counter() - began


async def measured(rounds: int) -> dict[str, list[float]]:
    """All times, in seconds, by what they are of."""
    found: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        found.setdefault(name, []).append(seconds)

    async with async_playwright() as driver:
        for number in range(rounds):
            with running() as (url, log, listening):
                note("listening", listening)
                # A browser of its own each time, so that none has the page's code compiled already.
                browser = await driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
                page, began, paint, usable = await opened(browser, url)
                note("paint", paint)
                note("usable", usable)
                if "model loaded" in log.read_text():
                    raise RuntimeError("opening the page has loaded a model")
                await drawn(page)
                note("first", time.perf_counter() - began)
                again, began, _, _ = await opened(browser, url)
                await drawn(again)
                note("later", time.perf_counter() - began)
                if number == rounds - 1:
                    pages = [page, *[(await opened(browser, url))[0] for _ in range(BROWSERS - 1)]]

                    async def draws(page: Page, name: str) -> None:
                        for _ in range(PICTURES):
                            await asyncio.sleep(LOOK)
                            note(name, await drawn(page))

                    await draws(page, "alone")
                    await asyncio.gather(*(draws(each, "together") for each in pages))
                await browser.close()
    return found


def section(rounds: int) -> str:
    """The section of docs/benchmarks.md."""
    rounds = min(rounds, 5)
    found = asyncio.run(measured(rounds))

    def middle(name: str) -> str:
        return f"{statistics.median(found[name]):.2f}"

    def late(name: str) -> str:
        return f"{statistics.quantiles(found[name], n=20)[-1]:.2f}"

    lines = [
        "## The studio",
        "",
        f"`python benchmarks/run.py studio --rounds {rounds}`: by chromium on the same machine, whose share of the "
        f"processor is in the figures. The first five are medians of {rounds} fresh studios and browsers. The picture "
        "is what the page draws when nothing is changed, by emoji-fast in 4 steps, and Draw is pressed at once. "
        "Opening the page loads no model, which the measurement checks.",
        "",
        "| what | seconds |",
        "|---|---|",
        f"| from `ddim studio` to its listening | {middle('listening')} |",
        f"| from opening the page to the first paint | {middle('paint')} |",
        f"| … until it can be used | {middle('usable')} |",
        f"| … to the first picture, with loading the model | {middle('first')} |",
        f"| … to the first picture where the model is loaded | {middle('later')} |",
        f"| a further picture, from the press of the button, one browser | {middle('alone')}, p95 {late('alone')} |",
        f"| the same with {BROWSERS} browsers drawing at once | {middle('together')}, p95 {late('together')} |",
    ]
    print("\n".join(lines))
    return "\n".join(lines)
