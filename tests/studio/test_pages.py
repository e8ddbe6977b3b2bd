"""The studio's pages as a whole, whatever is on their tabs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from browsing import PHONE, Studio, Visitor
from PIL import Image

from ddim import DiffusionPipeline

# What can be reached by keys and used on the tab that is open; of radio buttons, one of a group is.
USABLE = """() => {
    const panel = [...document.querySelectorAll('[role=tabpanel]')].find(each => each.offsetParent !== null);
    const all = panel.querySelectorAll('input, textarea, select, button, a[href], video[controls], [tabindex="0"]');
    const groups = new Set();
    return [...all].filter(each => {
        const box = each.getBoundingClientRect(), style = getComputedStyle(each);
        if (each.disabled || each.tabIndex < 0 || !box.width || !box.height) return false;
        if (style.visibility === 'hidden') return false;
        if (each.type === 'file' || each.closest('[inert]')) return false;
        if (each.type !== 'radio') return true;
        const known = groups.has(each.name);
        groups.add(each.name);
        return !known;
    });
}"""
REACHED = (
    "() => { (window.reached ??= new Set()).add(document.activeElement); return document.activeElement?.outerHTML; }"
)
MISSED = f"""() => ({USABLE})().filter(each => ![...window.reached].some(other =>
    other === each || (each.type === 'radio' && other.type === 'radio' && other.name === each.name)))
    .map(each => each.outerHTML.slice(0, 160))"""
# Texts that are hard to read: those of less contrast with what is behind them than 4 to 1, where both are plain
# colours.
FAINT = """() => {
    const luminance = rgb => rgb.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
    const colour = text => {
        const parts = (text.match(/[\\d.]+/g) ?? []).map(Number);
        return parts.length === 3 ? [...parts, 1] : parts;
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const each = walker.currentNode.parentElement;
        if (!walker.currentNode.textContent.trim() || each.offsetParent === null) continue;
        if (each.closest('script, style, svg, :disabled')) continue;
        let behind = each;
        while (behind && colour(getComputedStyle(behind).backgroundColor)[3] !== 1) behind = behind.parentElement;
        if (!behind || getComputedStyle(each).backgroundImage !== 'none') continue;
        const style = getComputedStyle(each), opaque = colour(style.color);
        if (opaque[3] !== 1 || style.color.startsWith('color(') || each.getClientRects().length === 0) continue;
        const both = [opaque, colour(getComputedStyle(behind).backgroundColor)].map(luminance);
        const contrast = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
        const what = `${each.tagName}.${each.className} ${each.textContent.trim().slice(0, 40)}`;
        if (contrast < 4) found.push(`${contrast.toFixed(1)}: ${what}`);
    }
    return [...new Set(found)];
}"""
NAMELESS = re.compile(r"^\s*- (?:textbox|combobox|slider|spinbutton|checkbox|radio|button|switch|link)(?! \")", re.M)


def same(one: Image.Image, other: Image.Image) -> bool:
    """Whether pictures are the same but for a level that another batch may round otherwise."""
    first, second = (np.asarray(each.convert("RGB")).astype(int) for each in (one, other))
    return first.shape == second.shape and bool(np.abs(first - second).max() <= 1)


def drawn_by_library(name: str, *words: str, **settings: object) -> Image.Image:
    pipe = DiffusionPipeline.from_pretrained(name)
    pipe.set_progress_bar_config(disable=True)
    image: Image.Image = pipe(*words, **settings).images[0]
    return image


def tabs(visitor: Visitor) -> list[str]:
    """The names of all tabs."""
    found = visitor.page.locator("[role=tab]").all_text_contents()
    names = list(dict.fromkeys(filter(None, map(str.strip, found))))
    assert names[:2] == ["Draw", "Compare"]
    return names


def unfold_all(visitor: Visitor) -> None:
    """Open every part of the tab that is folded."""
    closed = visitor.panel.locator("button.label-wrap:not(.open)").locator("visible=true")
    while closed.count():
        closed.first.click()


# The fast test beside it is test_every_tab_on_a_phone_in_the_dark.
@pytest.mark.slow
def test_opening_loads_no_model_and_draws_good_pictures_at_once(studio: Studio, visit: Callable[..., Visitor]) -> None:
    loaded = studio.log.count("model loaded")
    visitor = visit()
    for name in tabs(visitor):
        visitor.tab(name)
    assert studio.log.count("model loaded") == loaded


@pytest.mark.slow
def test_every_tab_by_keys_alone_and_with_names_for_screen_readers(visitor: Visitor) -> None:
    page = visitor.page
    assert page.evaluate("document.documentElement.lang") == "en"
    for name in tabs(visitor):
        for _ in range(120):  # to the tab's button
            if page.evaluate(
                "name => document.activeElement.role === 'tab' && document.activeElement.textContent.trim() === name",
                name,
            ):
                break
            page.keyboard.press("Tab")
        else:
            raise AssertionError(f"{name} is not reached by the Tab key")
        page.keyboard.press("Enter")
        visitor.panel.wait_for()
        assert page.get_by_role("tab", name=name, exact=True).get_attribute("aria-selected") == "true"
        unfold_all(visitor)
        page.get_by_role("tab", name=name, exact=True).focus()
        page.evaluate("() => { window.reached = new Set(); }")
        for _ in range(120):
            page.keyboard.press("Tab")
            if "<body" in str(page.evaluate(REACHED))[:6]:
                break
        assert page.evaluate(MISSED) == [], name
        nameless = NAMELESS.findall(visitor.panel.aria_snapshot())
        assert nameless == [], (name, visitor.panel.aria_snapshot())
        page.evaluate("scrollTo(0, 0)")


def test_every_tab_on_a_phone_in_the_dark(visit: Callable[..., Visitor]) -> None:
    visitor = visit(dark=True, size=PHONE)
    assert visitor.page.evaluate("document.body.classList.contains('dark')")
    for name in tabs(visitor):
        visitor.tab(name)
        unfold_all(visitor)
        assert visitor.overflow() == [], name
        assert visitor.page.evaluate(FAINT) == [], name


# The fast test beside it is test_every_tab_on_a_phone_in_the_dark.
@pytest.mark.slow
def test_every_tab_can_be_read_in_the_light(visitor: Visitor) -> None:
    assert not visitor.page.evaluate("document.body.classList.contains('dark')")
    for name in tabs(visitor):
        visitor.tab(name)
        unfold_all(visitor)
        assert visitor.overflow() == [], name
        assert visitor.page.evaluate(FAINT) == [], name


@pytest.mark.slow
def test_two_browsers_with_different_settings_do_not_disturb_each_other(visit: Callable[..., Visitor]) -> None:
    ada, bob = visit(), visit()
    bob.choose("Model", "emoji")
    bob.until("document.querySelector('[aria-label=\"number input for Steps\"]').value === '9'")
    for visitor, prompt, seed in ((ada, "a red heart", 3), (bob, "a green tree", 5)):
        visitor.fill("Prompt", prompt)
        visitor.unfold("Seed, size and number")
        visitor.fill("Seed", seed)
        visitor.page.get_by_label("Keep the seed").check()
    bob.fill("Steps", 5)
    bob.press("Draw")
    ada.press("Draw")
    for visitor in (ada, bob):
        visitor.wait("#draw-stage .status", "seed")
    (hers,), (his,) = ada.pictures("#draw-stage"), bob.pictures("#draw-stage")
    assert same(hers, drawn_by_library("emoji-fast", "a red heart", seed=3))
    assert same(his, drawn_by_library("emoji", "a green tree", seed=5, num_inference_steps=5))
    assert len(ada.pictures("#gallery")) == len(bob.pictures("#gallery")) == 1


@pytest.mark.slow
def test_a_reload_in_the_middle_frees_the_engine(visitor: Visitor) -> None:
    visitor.choose("Model", "emoji")
    visitor.unfold("Seed, size and number")
    visitor.fill("Pictures", 16)
    visitor.fill("Steps", 100)
    started = time.monotonic()
    visitor.press("Draw")
    visitor.until("/step [1-9]/.test(document.querySelector('#draw-stage .status')?.innerText)")
    visitor.until("Number(document.querySelector('#draw-stage .status').innerText.match(/step (\\d+)/)?.[1]) >= 3")
    step = int(
        str(visitor.page.evaluate("document.querySelector('#draw-stage .status').innerText.match(/step (\\d+)/)[1]"))
    )
    left = (time.monotonic() - started) * (100 - step) / step
    visitor.reload()
    visitor.choose("Model", "emoji")
    visitor.fill("Steps", 3)
    started = time.monotonic()
    assert len(visitor.draws()) == 1
    assert time.monotonic() - started < left / 3


def test_other_loops_can_run_after_a_browser() -> None:
    asyncio.run(asyncio.sleep(0))


LEFT_BEHIND = """
import os, time
from browsing import driver
with driver():
    left = os.fork()
    if not left:
        time.sleep(600)
        os._exit(0)
os.kill(left, 9)
"""


def test_a_process_that_a_test_left_behind_does_not_keep_the_driver_from_ending() -> None:
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", LEFT_BEHIND], env=found, start_new_session=True) as process:
        try:
            assert process.wait(60) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
