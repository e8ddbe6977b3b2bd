"""The Learn tab in a browser: the step that one points at is the one whose numbers are in the equations."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from browsing import PHONE, Visitor

from ddim import DDIMScheduler
from ddim.plan import SamplingPlan
from ddim.studio.tables import number


def emoji() -> DDIMScheduler:
    return DDIMScheduler.from_pretrained("emoji", subfolder="scheduler")


def at_learn(visitor: Visitor) -> SamplingPlan:
    """The Learn tab of the model emoji; its plan, of which the first step is shown."""
    visitor.choose("Model", "emoji")
    visitor.tab("Learn")
    visitor.wait("#learn-said", "emoji: 9 steps of second order at searched timesteps")
    plan = emoji().plan(9, order=2, spacing="optimized")
    shows(visitor, plan, 1)
    return plan


def shows(visitor: Visitor, plan: SamplingPlan, step: int) -> None:
    """The equations are of this step, its row is the one that is marked, and the slider is at it."""
    row = plan[step - 1]
    visitor.wait("#learn-text", f"At timestep {row.timestep} a sample")
    visitor.until(
        "n => document.querySelector('#learn-rows tr[aria-selected=true]')?.dataset.step === String(n)", step, seconds=5
    )
    assert visitor.page.locator("#learn-rows tr[aria-selected=true]").count() == 1
    assert visitor.field("Step").input_value() == str(step)
    cells: list[list[str]] = visitor.page.evaluate(
        """[...document.querySelectorAll('#learn-text tbody tr')]
        .map(row => [row.cells[0].innerText.trim(), row.cells[3].innerText.trim()])"""
    )
    found = {name: value.replace("−", "-") for name, value in cells if name in row._fields}
    assert len(found) == 12
    for name, value in found.items():
        assert value == number(getattr(row, name)), name


def test_a_step_is_picked_by_the_slider_and_a_click(visitor: Visitor) -> None:
    plan = at_learn(visitor)
    visitor.fill("Step", 4)
    shows(visitor, plan, 4)
    visitor.page.locator("#learn-rows tr[data-step]").nth(2).click()
    shows(visitor, plan, 3)


# The fast test beside it is test_a_step_is_picked_by_the_slider_and_a_click.
@pytest.mark.slow
def test_a_step_is_picked_by_the_pointer_and_keys_too(visitor: Visitor) -> None:
    plan = at_learn(visitor)
    visitor.fill("Step", 4)
    shows(visitor, plan, 4)
    rows = visitor.page.locator("#learn-rows tr[data-step]")
    rows.nth(5).hover()
    shows(visitor, plan, 6)
    rows.nth(2).click()
    shows(visitor, plan, 3)
    rows.nth(7).hover()  # on the way from the row that was clicked to its equations
    visitor.page.wait_for_timeout(300)
    shows(visitor, plan, 3)
    visitor.page.keyboard.press("ArrowDown")
    shows(visitor, plan, 4)
    visitor.page.keyboard.press("End")
    shows(visitor, plan, 9)
    visitor.page.keyboard.press("ArrowUp")
    shows(visitor, plan, 8)
    visitor.page.locator("#learn-text").hover()
    rows.nth(1).hover()  # and then rows follow the pointer again
    shows(visitor, plan, 2)


@pytest.mark.slow
def test_keys_alone_are_enough(visitor: Visitor) -> None:
    plan = at_learn(visitor)
    visitor.field("Step").focus()
    for _ in range(12):
        visitor.page.keyboard.press("Tab")
        if visitor.page.evaluate("document.activeElement.dataset.step === '1'"):
            break
    visitor.page.keyboard.press("ArrowDown")
    shows(visitor, plan, 2)


@pytest.mark.slow
def test_the_equations_are_set_as_such_and_read_out(visitor: Visitor) -> None:
    plan = at_learn(visitor)
    visitor.fill("Step", 4)
    shows(visitor, plan, 4)
    text = visitor.page.locator("#learn-text")
    assert text.locator(".katex").count() > 30
    assert text.locator(".katex-error").count() == 0
    assert "$" not in text.inner_text()
    for number_ in ("(4)", "(9)", "(16)", "(12)"):
        assert text.locator("h3", has_text=f"equation {number_}").count() == 1
    visitor.until("[...document.fonts].some(font => font.family === 'KaTeX_Math' && font.status === 'loaded')")
    visitor.screenshot("learn", whole=True)


@pytest.mark.slow
def test_it_follows_the_plan_tab(visitor: Visitor) -> None:
    at_learn(visitor)
    visitor.fill("Step", 9)
    visitor.tab("Plan")
    visitor.page.get_by_label("1: DDIM").locator("visible=true").check()
    visitor.choose("Spacing", "trailing")
    visitor.fill("Steps", 4)
    visitor.fill("η", 1)
    visitor.wait("#plan-said", "4 steps of first order at trailing timesteps · η 1")
    visitor.tab("Learn")
    plan = emoji().plan(4, spacing="trailing", eta=1.0)
    shows(visitor, plan, 4)
    assert "this is DDPM" in visitor.page.locator("#learn-text").inner_text()
    visitor.tab("Plan")
    visitor.page.get_by_label("2: second order").locator("visible=true").check()
    visitor.wait("#plan-said [role=alert]")
    visitor.tab("Learn")
    visitor.wait("#learn-said [role=alert]", "Choose otherwise on the Plan tab.")
    assert visitor.page.locator("#learn-text").inner_text().strip() == ""
    assert visitor.page.locator("#learn-rows tr").count() == 0


@pytest.mark.slow
def test_another_model_is_followed_at_once(visitor: Visitor) -> None:
    at_learn(visitor)
    visitor.choose("Model", "digits")
    visitor.wait("#learn-said", "digits: 9 steps of second order at leading timesteps · η 0 · epsilon")
    shows(visitor, DDIMScheduler.from_pretrained("digits", subfolder="scheduler").plan(9, order=2), 1)


@pytest.mark.parametrize("dark", [pytest.param(False, marks=pytest.mark.slow), True])
# The fast test beside it is test_every_tab_on_a_phone_in_the_dark of test_pages.py.
@pytest.mark.slow
def test_it_fits_a_phone_in_light_and_dark(visit: Callable[..., Visitor], dark: bool) -> None:
    visitor = visit(size=PHONE, dark=dark)
    plan = at_learn(visitor)
    visitor.fill("Step", 2)
    shows(visitor, plan, 2)
    assert visitor.overflow() == []
    visitor.screenshot(f"learn-phone{'-dark' * dark}", whole=True)
    ink = "getComputedStyle(document.querySelector('#learn-text .katex')).color"
    brightest = max(map(int, re.findall(r"\d+", visitor.page.evaluate(ink))[:3]))
    assert (brightest > 180) == dark
