"""What the Learn tab writes: numbers that come out as it says, and are those of the plan's row."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from ddim import DDIMScheduler
from ddim.plan import SamplingPlan
from ddim.process import PREDICTIONS, SIGMA_HAT, Eta
from ddim.step import Row
from ddim.studio.equations import Equation, equations, markdown
from ddim.studio.tables import number

SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "latent": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "set_alpha_to_one": False},
    "zero SNR": {"rescale_betas_zero_snr": True, "set_alpha_to_one": False},
}


def computed(latex: str) -> float:
    """What numbers and operations in LaTeX come to, as somebody with a pocket calculator finds it."""
    text = latex
    while True:
        simpler = re.sub(r"\\sqrt{([^{}]*)}", r"sqrt(\1)", text)
        simpler = re.sub(r"\\frac{([^{}]*)}{([^{}]*)}", r"((\1)/(\2))", simpler)
        if simpler == text:
            break
        text = simpler
    text = text.replace(r"\cdot", "*")
    text = re.sub(r"\\(sin|cos|ln|arccos)\b", r"\1", text)
    assert re.fullmatch(r"[-+*/().\d\s]*", re.sub(r"\b(sqrt|sin|cos|ln|arccos)\b", "", text)), latex
    names = {"sqrt": lambda x: math.sqrt(max(x, 0.0)), "sin": math.sin, "cos": math.cos, "ln": math.log}
    return float(eval(text, {"__builtins__": {}}, {**names, "arccos": math.acos}))


def plans() -> list[Any]:
    return [
        pytest.param(kind, settings, eta, order, steps, id=f"{kind}-{name}-{eta}-{order}-{steps}")
        for kind in PREDICTIONS
        for name, settings in SCHEDULES.items()
        for eta in (0.0, 0.3, 1.0, SIGMA_HAT)
        for order in ((1, 2) if eta == 0 else (1,))
        for steps in (1, 4, 50)
    ]


def made(kind: str, settings: dict[str, Any], eta: Eta, order: Any, steps: int) -> tuple[SamplingPlan, DDIMScheduler]:
    spacing = "leading" if kind == "epsilon" and settings.get("rescale_betas_zero_snr") else "trailing"
    scheduler = DDIMScheduler(prediction_type=kind, timestep_spacing=spacing, **settings)
    return scheduler.plan(steps, eta=eta, order=order), scheduler


@pytest.mark.parametrize(("kind", "settings", "eta", "order", "steps"), plans())
def test_the_numbers_put_in_come_out_as_the_row_has_them(
    kind: str, settings: dict[str, Any], eta: Eta, order: int, steps: int
) -> None:
    plan, scheduler = made(kind, settings, eta, order, steps)
    for place in sorted({0, 1, steps // 2, steps - 1} & set(range(steps))):
        seen = set()
        for equation in equations(plan, place, scheduler):
            for part in equation.parts:
                found = computed(part.numbers)
                assert found == pytest.approx(part.value, rel=2e-4, abs=2e-5), (place, part)
                if part.column:
                    assert part.value == pytest.approx(getattr(plan[place], part.column), rel=1e-12, abs=1e-12)
                    seen.add(part.column)
        assert seen == set(Row._fields[4:])  # all but the timesteps and ᾱ of both, which are what is put in


def said_by(plan: SamplingPlan, place: int, scheduler: DDIMScheduler) -> dict[str, Equation]:
    return {equation.title: equation for equation in equations(plan, place, scheduler)}


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_formula_filled_in_is_the_step_of_the_library(kind: str) -> None:
    """The sums that are written, with x_t, out and z put in, give what the plan's step gives."""
    import torch

    plan, scheduler = made(kind, SCHEDULES["cosine"], 0.4, 1, 5)
    plan = plan.unclipped()
    x, out, z = (torch.tensor([[value]], dtype=torch.float64) for value in (0.7, -0.3, 1.1))
    for place, row in enumerate(plan):
        step = plan.step(out, row.timestep, x, variance_noise=z)
        found = said_by(plan, place, scheduler)
        x0, eps = (summed(line, x_t=0.7, out=-0.3) for line in found["What the network sees in it"].filled)
        assert x0 == pytest.approx(float(step.pred_original_sample), rel=1e-4, abs=1e-4)
        (line,) = found["The same in one line"].filled
        assert summed(line, x_t=0.7, out=-0.3, z=1.1) == pytest.approx(float(step.prev_sample), rel=1e-4, abs=1e-4)
        (line,) = found["The step"].filled
        assert summed(line, x_0=x0, varepsilon=eps, z=1.1) == pytest.approx(float(step.prev_sample), rel=1e-3, abs=1e-3)


def summed(line: str, **values: float) -> float:
    """A sum such as "x_t = 0.5\\,x_0 - 0.2\\,z", with numbers for the symbols."""
    text = line.partition(" = ")[2]
    for symbol, value in values.items():
        for name in (rf"\mathrm{{{symbol}}}", rf"\{symbol}", symbol):
            text = text.replace(name, f"({value!r})")
    text = text.replace(r"\,", "*")
    assert re.fullmatch(r"[-+*().e\d\s]+", text), line
    return float(eval(text, {"__builtins__": {}}))


def test_each_equation_of_the_paper_is_there_under_its_number() -> None:
    plan, scheduler = made("epsilon", {}, 0.5, 1, 4)
    assert [each.number for each in equations(plan, 1, scheduler)] == ["(4)", "(9)", "(16)", "(12)", "", "", ""]
    assert "Equation (10)" in said_by(plan, 1, scheduler)["The step"].says
    text = "\n".join(markdown(each) for each in equations(plan, 1, scheduler))
    assert text.count("$") % 2 == 0
    assert "{{" not in text
    for column in ("signal_rate", "a", "sigma"):
        assert f"| `{column}` |" in text
        assert f"**{number(getattr(plan[1], column))}**".replace("-", "−") in text


def test_what_is_said_follows_the_plan() -> None:
    plan, scheduler = made("v_prediction", SCHEDULES["zero SNR"], 0.0, 2, 4)
    first, last = said_by(plan, 0, scheduler), said_by(plan, 3, scheduler)
    assert "nothing is the image's" in first["What the network is given"].says
    assert "no step before it" in first["What the last step says: second order"].says
    assert "this is the last row" in last["The step"].says
    assert "shifted and scaled" in last["Zero terminal SNR"].says
    assert len(last["What the last step says: second order"].parts) == 6
    plan, scheduler = made("epsilon", {}, 1.0, 1, 4)
    found = said_by(plan, 1, scheduler)
    assert "this is DDPM" in found["How much new noise"].says
    assert "of first order" in found["What the last step says: second order"].says
    assert number(plan.alphas_cumprod[-1] ** 0.5) in found["Zero terminal SNR"].says
    assert "clipped to ±1" in found["What the network sees in it"].says
    plan, scheduler = made("epsilon", {}, SIGMA_HAT, 1, 4)
    assert r"\hat\sigma" in said_by(plan, 1, scheduler)["How much new noise"].formula[0]


def test_there_is_no_step_past_the_end() -> None:
    plan, scheduler = made("epsilon", {}, 0.0, 1, 4)
    with pytest.raises(IndexError, match="no step 4 in a plan of 4"):
        equations(plan, 4, scheduler)
