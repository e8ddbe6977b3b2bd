"""The Plan tab in a browser: what one chooses is the library's plan, and can be drawn with."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from browsing import PHONE, Visitor

from ddim import DDIMScheduler, SamplingPlan
from ddim.studio.curves import curves
from ddim.studio.planning import _shown
from ddim.studio.plans import OWN, Choice, as_fields, spaced


def emoji() -> DDIMScheduler:
    return DDIMScheduler.from_pretrained("emoji", subfolder="scheduler")


def at_plan(visitor: Visitor, model: str = "emoji") -> Visitor:
    """The Plan tab, with the plan that the model recommends."""
    visitor.tab("Plan")
    visitor.choose("Model", model)
    visitor.wait("#plan-said", {"emoji": "9 steps of second order", "digits": "epsilon"}[model])
    return visitor


def seen(visitor: Visitor) -> list[list[str]]:
    """The cells of the table: step, t, to, …"""
    rows: list[list[str]] = visitor.page.evaluate(
        "[...document.querySelectorAll('#plan-table tbody tr')].map(row => [...row.cells].map(cell => cell.innerText))"
    )
    return rows


def shows(visitor: Visitor, plan: SamplingPlan) -> None:
    """The table and the curves are of this plan."""
    table = seen(visitor)
    assert [int(row[1]) for row in table] == list(plan.timesteps)
    assert [float(row[6].replace("−", "-")) for row in table] == [pytest.approx(row.a, abs=6e-5) for row in plan]
    assert [float(row[8]) for row in table] == [pytest.approx(row.sigma, abs=6e-6) for row in plan]


def dots(visitor: Visitor) -> str:
    found: str = visitor.page.evaluate(
        "[...document.querySelectorAll('#plan-curves path.dots')].map(path => path.getAttribute('d')).join(' ')"
    )
    return found


def copied(visitor: Visitor, selector: str) -> str:
    """What the button for copying puts into the clipboard."""
    visitor.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor.page.evaluate("navigator.clipboard.writeText('')")
    visitor.page.locator(f"{selector} button[aria-label=Copy]").click()
    visitor.until("async () => (await navigator.clipboard.readText()) !== ''")
    text: str = visitor.page.evaluate("navigator.clipboard.readText()")
    return text


class Known:
    """As much of a `desk.Studio` as plans need."""

    def scheduler(self, name: str) -> DDIMScheduler | None:
        return None if name == "far" else DDIMScheduler.from_pretrained(name, subfolder="scheduler")


KNOWN: Any = Known()


@pytest.mark.parametrize("steps", [9, 100])
def test_a_change_takes_less_than_a_tenth_of_a_second_of_the_server(steps: int) -> None:
    given = as_fields(Choice(steps, "trailing", 0.5, 1, False, "squaredcos_cap_v2", "epsilon"))
    taken = []
    for _ in range(5):
        start = time.process_time()
        assert _shown(KNOWN, "emoji", given)["json"]
        taken.append(time.process_time() - start)
    assert min(taken) < 0.1


def test_what_goes_wrong_shows_a_sentence_and_nothing_else() -> None:
    for name, given, said in (
        ("far", None, "The schedule of far is not at hand before it has drawn"),
        ("digits", [None, "leading", 0, False, 1, False, OWN, OWN], "Steps is empty: give one."),
        ("digits", [9, "leading", 0.5, False, 2, False, OWN, OWN], "Order=2 is for a plan from noise to image"),
    ):
        shown = _shown(KNOWN, name, given)
        assert said in shown.pop("said")
        assert set(shown.values()) == {""}


def test_the_table_and_the_curves_follow_what_one_moves(visitor: Visitor) -> None:
    at_plan(visitor)
    shows(visitor, emoji().plan(9, order=2, spacing="optimized"))
    visitor.screenshot("plan", whole=True)
    before = dots(visitor)
    visitor.choose("Spacing", "trailing")
    visitor.page.get_by_label("1: DDIM").locator("visible=true").check()
    visitor.fill("Steps", 4)
    visitor.wait("#plan-said", "4 steps of first order at trailing timesteps")
    shows(visitor, emoji().plan(4, spacing="trailing"))
    assert dots(visitor) != before
    visitor.fill("η", 0.5)
    visitor.wait("#plan-said", "η 0.5")
    shows(visitor, emoji().plan(4, spacing="trailing", eta=0.5))
    choice = Choice(4, "trailing", 0.5)
    expected = curves(choice.plan(emoji()), spaced(emoji(), 4), "trailing")
    drawn = re.findall(r'class="dots[^"]*" d="([^"]*)"', expected)
    assert dots(visitor) == " ".join(drawn)
    visitor.page.get_by_label("σ̂ instead of η").locator("visible=true").check()
    visitor.wait("#plan-said", "σ̂")
    shows(visitor, emoji().plan(4, spacing="trailing", eta="sigma_hat"))
    visitor.press("Reset")
    visitor.wait("#plan-said", "9 steps of second order at searched timesteps · η 0")
    shows(visitor, emoji().plan(9, order=2, spacing="optimized"))


@pytest.mark.slow
def test_arrow_keys_move_the_steps(visitor: Visitor) -> None:
    at_plan(visitor)
    visitor.choose("Spacing", "linspace")
    visitor.page.get_by_label("range slider for Steps").locator("visible=true").focus()
    for _ in range(3):
        visitor.page.keyboard.press("ArrowRight")
    visitor.wait("#plan-said", "12 steps of second order at linspace")
    shows(visitor, emoji().plan(12, spacing="linspace", order=2))


@pytest.mark.slow
def test_fifty_rows_read_well_and_the_table_scrolls_in_itself(visit: Callable[..., Visitor]) -> None:
    visitor = at_plan(visit(size=PHONE))
    visitor.choose("Spacing", "trailing")
    visitor.fill("Steps", 50)
    visitor.wait("#plan-said", "50 steps")
    assert len(seen(visitor)) == 50
    assert visitor.overflow() == []
    table = visitor.page.locator("#plan-table .rows")
    assert table.evaluate("box => box.scrollWidth > box.clientWidth && box.scrollHeight > box.clientHeight")
    table.focus()
    table.evaluate("box => box.scrollTo(200, 100)")
    visitor.page.wait_for_timeout(100)
    visitor.fill("η", 0)
    visitor.page.get_by_label("1: DDIM").locator("visible=true").check()
    visitor.wait("#plan-said", "50 steps of first order")
    assert table.evaluate("box => [box.scrollLeft, box.scrollTop]") == [200, 100], "it stays where one was"
    first = "#plan-table tbody tr:first-child"
    assert visitor.page.locator(f"{first} > .t").bounding_box()["x"] < 100, "the timestep stays in sight"  # type: ignore[index]
    visitor.screenshot("plan-phone", whole=True)


@pytest.mark.slow
def test_what_cannot_be_is_said_in_place_of_the_plan(visitor: Visitor) -> None:
    at_plan(visitor)
    visitor.fill("η", 0.5)
    said = visitor.wait("#plan-said [role=alert]", "Order=2 is for a plan from noise to image with eta=0")
    assert said.is_visible()
    assert seen(visitor) == []
    assert dots(visitor) == ""
    assert visitor.page.locator("#plan-draw").is_disabled()
    visitor.page.get_by_text("To copy").wait_for(state="hidden")
    visitor.screenshot("plan-refused")
    visitor.fill("η", 0)
    visitor.wait("#plan-said", "9 steps of second order")
    assert len(seen(visitor)) == 9
    assert visitor.page.locator("#plan-draw").is_enabled()
    visitor.choose("What the network predicts", "epsilon")
    visitor.choose("Spacing", "trailing")
    visitor.wait("#plan-said [role=alert]", "from which a predicted epsilon tells nothing of the image")
    visitor.page.get_by_label("Zero SNR").locator("visible=true").uncheck()
    visitor.wait("#plan-said", "9 steps of second order at trailing timesteps · η 0 · epsilon")


@pytest.mark.slow
def test_json_and_python_are_copied_and_make_the_plan(visitor: Visitor) -> None:
    at_plan(visitor)
    visitor.choose("Schedule", "squaredcos_cap_v2")
    visitor.choose("Spacing", "linspace")
    visitor.wait("#plan-said", "squaredcos_cap_v2 schedule")
    visitor.unfold("To copy")
    config = emoji().config
    plan = DDIMScheduler.from_config(config, beta_schedule="squaredcos_cap_v2").plan(9, order=2, spacing="linspace")
    shows(visitor, plan)
    assert SamplingPlan.from_dict(json.loads(copied(visitor, "#plan-json"))) == plan
    names: dict[str, Any] = {"print": lambda _: None}
    exec(copied(visitor, "#plan-python"), names)
    assert names["plan"] == plan


@pytest.mark.slow
def test_draw_with_this_brings_it_to_the_draw_tab(visitor: Visitor) -> None:
    at_plan(visitor)
    visitor.choose("Spacing", "linspace")
    visitor.page.get_by_label("1: DDIM").locator("visible=true").check()
    visitor.fill("Steps", 5)
    visitor.fill("η", 0.25)
    visitor.choose("Schedule", "linear")
    visitor.wait("#plan-said", "“Draw with this” leaves out the schedule linear")
    visitor.press("Draw with this")
    visitor.wait("#draw-stage")
    for label, value in (("Steps", "5"), ("η", "0.25"), ("Spacing", "linspace"), ("Order", "1: DDIM")):
        assert visitor.field(label).input_value() == value
    visitor.press("Draw")
    visitor.wait("#draw-stage .status", "Drawn")
    visitor.wait("#gallery img").click()
    about = visitor.wait("#about-picture table").inner_text()
    assert re.search(r"steps\s+5", about)
    assert re.search(r"spacing\s+linspace", about)
    assert re.search(r"eta\s+0\.25", about)


@pytest.mark.slow
def test_another_model_brings_its_own_plan(visitor: Visitor) -> None:
    at_plan(visitor)
    at_plan(visitor, "digits")
    own = DDIMScheduler.from_pretrained("digits", subfolder="scheduler")
    shows(visitor, own.plan(9, order=2))
    assert visitor.field("What the network predicts").input_value() == "the model's own: epsilon"


@pytest.mark.slow
def test_the_tab_in_the_dark(visit: Callable[..., Visitor]) -> None:
    visitor = at_plan(visit(dark=True))
    visitor.screenshot("plan-dark", whole=True)
    shade = "getComputedStyle(document.querySelector('#plan-table td')).backgroundColor"
    assert max(map(int, re.findall(r"\d+", visitor.page.evaluate(shade))[:3])) < 80
