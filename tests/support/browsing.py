"""A studio in a process of its own, and people who look at it with Debian's chromium.

Where no chromium is, the tests that need one are skipped. A test asks for the fixture `visitor`, an open page, or for
`visit`, which opens further ones; at its end it fails if a page asked another host for something, or wrote an error to
its console.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright import sync_api as playwright

CHROMIUM = Path("/usr/bin/chromium")
PHONE = (390, 844)
DESK = (1280, 900)
# What makes chromium need no rights and no graphics card, and ask nobody for anything.
_ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
_START = 120  # seconds, on a slow machine, until a studio listens
_WAIT = 20_000  # milliseconds, until something can be used that is in the page
_DRAWN = 60  # seconds, until something is there that has to be drawn first


class Studio:
    """A running `ddim studio`.

    Attributes:
        url: where it is, such as http://127.0.0.1:1234.
        process: it.
    """

    def __init__(self, url: str, process: subprocess.Popen[str], written: Path) -> None:
        self.url, self.process, self._written = url, process, written

    @property
    def log(self) -> str:
        """All that it has written so far."""
        return self._written.read_text(encoding="utf-8")


@contextlib.contextmanager
def running_studio(*options: str, command: Sequence[str] = ("studio", "--no-browser"), **more: str) -> Iterator[Studio]:
    """A studio on a free port of this machine, which ends with this.

    Args:
        options: of the command, besides a port.
        command: that has a studio.
        more: variables of its environment.
    """
    with tempfile.TemporaryDirectory(prefix="ddim-studio-test-") as folder:
        written = Path(folder) / "log"
        with written.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "ddim", *command, "--port", "0", *options],
                stdout=file,
                stderr=file,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **more},
            )
        try:
            yield Studio(_address(process, written), process, written)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def _address(process: subprocess.Popen[str], written: Path) -> str:
    """Where the studio says that it is."""
    end = time.monotonic() + _START
    while time.monotonic() < end:
        log = written.read_text(encoding="utf-8")
        found = re.search(r"serving at=(\S+)", log)
        if found:
            return found[1]
        assert process.poll() is None, f"the studio ended: {log}"
        time.sleep(0.02)
    raise AssertionError(f"the studio did not listen within {_START} seconds: {log}")


class Visitor:
    """Somebody who looks at the studio.

    Attributes:
        page: Playwright's own.
        outside: requests that left the host.
        errors: what was written to the console as an error, or not caught.
    """

    def __init__(self, page: playwright.Page, url: str) -> None:
        self.page, self.url = page, url
        self.outside: list[str] = []
        self.errors: list[str] = []
        page.set_default_timeout(_WAIT)
        page.on("request", lambda request: self._asked(request.url))
        page.on("websocket", lambda socket: self._asked(socket.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)

    def _asked(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(self.url).netloc:
            self.outside.append(address)

    def open(self) -> Visitor:
        """Open the page, and wait until it can be used."""
        self.page.goto(self.url)
        self.page.locator(".main-button").first.wait_for()
        return self

    def reload(self) -> None:
        """Open the page anew. What the old one says of connections that it loses by that is no error."""
        before = len(self.errors)
        self.open()
        lost = ("aborted", "Connection errored out")
        self.errors[before:] = [each for each in self.errors[before:] if not any(word in each for word in lost)]

    def tab(self, name: str) -> None:
        """Open a tab by its name, and wait until it shows."""
        tab = self.page.get_by_role("tab", name=name, exact=True)
        if not tab.is_visible():  # on a phone, what does not fit is behind a button
            self.page.locator(".overflow-menu > button").click()
            self.page.locator(".overflow-dropdown").get_by_text(name, exact=True).click()
        else:
            tab.click()
        self.panel.wait_for()

    @property
    def panel(self) -> playwright.Locator:
        """What is on the tab that is open."""
        return self.page.get_by_role("tabpanel").locator("visible=true").first

    def field(self, label: str) -> playwright.Locator:
        """The visible field with this label; of a slider, where its number is typed."""
        begins = re.compile(rf"^\s*{re.escape(label)}(\s|$)")  # what explains a field stands in its label, too
        named = self.page.get_by_label(begins).or_(self.page.get_by_label(f"number input for {label}", exact=True))
        return named.locator("visible=true").first

    def unfold(self, name: str) -> None:
        """Open the part of this name, unless it is open."""
        part = self.page.locator("button.label-wrap").filter(has_text=name).locator("visible=true").first
        if "open" not in (part.get_attribute("class") or "").split():
            part.click()
            self.page.wait_for_timeout(150)  # until the fields in it are tied to what the page knows of them

    def fill(self, label: str, value: object) -> None:
        """Type into the field with this label, and leave it. What the page puts back, as it was still building itself,
        is typed again.
        """
        field = self.field(label)
        for _ in range(5):
            field.fill(str(value))
            field.blur()
            self.page.wait_for_timeout(50)
            if field.input_value() == str(value):
                return

    def choose(self, label: str, choice: str) -> None:
        """Choose from the dropdown with this label."""
        self.field(label).click()
        self.page.get_by_role("option", name=choice, exact=True).click()

    def press(self, name: str) -> None:
        """Press the visible button of this name."""
        self.page.get_by_role("button", name=name, exact=True).locator("visible=true").first.click()

    def drop(self, selector: str, file: bytes, name: str = "picture.png", kind: str = "image/png") -> None:
        """Give a file to the component that CSS finds by `selector`."""
        chosen = self.page.locator(f"{selector} input[type=file]").first
        chosen.set_input_files({"name": name, "mimeType": kind, "buffer": file})

    def wait(self, selector: str, text: str = "") -> playwright.Locator:
        """Wait until what CSS finds by `selector` is visible and contains `text`; return it."""
        found = self.page.locator(selector).filter(has_text=text).locator("visible=true").first
        found.wait_for(timeout=1000 * _DRAWN)
        return found

    def draws(self, button: str = "Draw", stage: str = "#draw-stage") -> list[Image.Image]:
        """Press a tab's main button, wait until its pictures are there, and return them."""
        self.runs(button, f"{stage} .status", "seed")
        self.wait(".cancel-button:disabled")
        self.page.wait_for_timeout(100)  # the next press is taken when the server has said that this run is over
        return self.pictures(stage)

    def runs(self, button: str, status: str, text: str) -> None:
        """Press a button, and wait until what CSS finds by `status` is a new one and contains `text`."""
        # The page makes its status anew each time: what was there before has a mark, and what comes has none.
        self.page.evaluate(
            "css => { const old = document.querySelector(css); if (old) old.dataset.old = 'yes'; }", status
        )
        self.press(button)
        self.wait(f"{status}:not([data-old])", text)

    def until(self, condition: str, argument: object = None, seconds: float = _DRAWN) -> None:
        """Wait until a JavaScript expression, or a function of `argument`, is true in the page."""
        self.page.wait_for_function(condition, arg=argument, timeout=seconds * 1000)

    def pictures(self, selector: str) -> list[Image.Image]:
        """The pixels of all pictures in what CSS finds by `selector`, in their order."""
        found = self.page.locator(f"{selector} img")
        return [self.pixels(found.nth(number)) for number in range(found.count())]

    def pixels(self, image: playwright.Locator) -> Image.Image:
        """The picture of an <img>, of the very file that the page was given."""
        address = image.evaluate("image => image.src")
        if address.startswith("data:"):
            with urllib.request.urlopen(address) as answer:
                data = answer.read()
        else:
            answer = self.page.request.get(address)
            assert answer.ok, (answer.status, address)
            data = answer.body()
        picture = Image.open(io.BytesIO(data))
        picture.load()
        return picture

    def screenshot(self, name: str, *, whole: bool = False) -> None:
        """Keep what the page looks like as name.png, in the folder that DDIM_SCREENSHOTS names; nothing without.

        Args:
            whole: the page to its end, not only what fits into the window.
        """
        folder = os.environ.get("DDIM_SCREENSHOTS")
        if not folder:
            return
        self.page.mouse.move(0, 0)
        self.page.evaluate("document.activeElement?.blur()")
        self.page.wait_for_timeout(300)  # for colours that fade
        taken = Image.open(io.BytesIO(self.page.screenshot(full_page=whole, animations="disabled")))
        Path(folder).mkdir(parents=True, exist_ok=True)
        small = taken.convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        small.save(Path(folder) / f"{name}.png", optimize=True)

    def overflow(self) -> list[str]:
        """What is wider than the window and makes the page scroll sideways, the smallest part last."""
        found: list[str] = self.page.evaluate(
            """() => document.documentElement.scrollWidth <= innerWidth ? [] :
            [...document.querySelectorAll('body *')].filter(each => each.getBoundingClientRect().right > innerWidth + 1)
            .map(each => each.tagName + '.' + each.className)"""
        )
        return found


class Visits:
    """All who look at a studio during one test."""

    def __init__(self, browser: playwright.Browser, url: str) -> None:
        self._browser, self._url = browser, url
        self._visitors: list[Visitor] = []

    def __call__(
        self, *, dark: bool = False, size: tuple[int, int] = DESK, url: str | None = None, opens: bool = True
    ) -> Visitor:
        """A browser of its own that shares nothing with the others, with the studio open.

        Args:
            dark: the visitor's system is dark.
            size: of the window, such as `PHONE`.
            url: of another studio.
            opens: the page now.
        """
        context = self._browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            accept_downloads=True,
        )
        visitor = Visitor(context.new_page(), url or self._url)
        self._visitors.append(visitor)
        return visitor.open() if opens else visitor

    def end(self) -> None:
        """Close all pages, and see that none did what no page may do."""
        for visitor in self._visitors:
            visitor.page.context.close()
        for visitor in self._visitors:
            assert not visitor.outside, visitor.outside
            assert not visitor.errors, visitor.errors


@pytest.fixture(scope="session")
def studio() -> Iterator[Studio]:
    """A studio with the bundled models, run by PyTorch as in the tests themselves; one for all tests of a process."""
    with running_studio("--backend", "eager") as found:
        yield found


# What this process has open of Playwright's driver, and what a forked process has instead.
_OF_THE_DRIVER: dict[int, int] = {}


def _forget_the_driver() -> None:
    for file, nothing in _OF_THE_DRIVER.items():
        os.dup2(nothing, file)


os.register_at_fork(after_in_child=_forget_the_driver)


def _open_files() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}


@contextlib.contextmanager
def driver() -> Iterator[playwright.Playwright]:
    """Playwright's driver, which ends with this, whatever processes the tests have left behind.

    It ends when nobody has its pipes open any more. A process that is forked gets all that this one has open, and one
    that a failed test has left behind, such as one that reads pictures for training, would keep it from ending for
    ever. So a forked process has nothing instead.
    """
    before = _open_files()
    nothing = os.open(os.devnull, os.O_RDWR)
    with playwright.sync_playwright() as found:
        _OF_THE_DRIVER.update(dict.fromkeys(_open_files() - before - {nothing}, nothing))
        try:
            yield found
        finally:
            _OF_THE_DRIVER.clear()
    os.close(nothing)


@pytest.fixture(scope="session")
def chromium() -> Iterator[tuple[playwright.Browser, asyncio.AbstractEventLoop]]:
    """A browser, one for all tests of a process, and the loop that Playwright runs it with."""
    if not CHROMIUM.exists():
        pytest.skip(f"the studio's pages are looked at with {CHROMIUM}, which is not here: apt install chromium")
    with driver() as found:
        browser = found.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        loop = asyncio.get_running_loop()
        asyncio._set_running_loop(None)
        yield browser, loop
        asyncio._set_running_loop(loop)
        browser.close()


@pytest.fixture
def visit(
    chromium: tuple[playwright.Browser, asyncio.AbstractEventLoop], studio: Studio
) -> Iterator[Callable[..., Visitor]]:
    """What opens the studio in a browser: `visit(dark=True, size=PHONE)`."""
    browser, loop = chromium
    visits = Visits(browser, studio.url)
    # Playwright's loop counts as running in this thread only within such a test, so that others can run their own.
    asyncio._set_running_loop(loop)
    try:
        yield visits
        visits.end()
    finally:
        asyncio._set_running_loop(None)


@pytest.fixture
def visitor(visit: Callable[..., Visitor]) -> Visitor:
    """Somebody who has opened the studio."""
    return visit()
