"""The paper's equations with the numbers of one step: with symbols, with the numbers put in, and what comes out.

What comes out are the columns of the plan's `Row`, which the plan computes from ᾱ in float64. The numbers that are put
in are rounded so that whoever computes with them gets the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ddim.plan import SamplingPlan
from ddim.process import DAMPING, SIGMA_HAT
from ddim.schedule import make_alphas_cumprod, make_betas
from ddim.scheduler import DDIMScheduler
from ddim.step import Row
from ddim.studio.tables import number

__all__ = ["Equation", "Part", "equations", "markdown"]

# Symbols, in LaTeX.
_HERE, _THERE = r"\bar\alpha_t", r"\bar\alpha_{\mathrm{prev}}"
_X0, _XT, _EPS, _OUT, _PREV = "x_0", "x_t", r"\varepsilon", r"\mathrm{out}", r"x_{\mathrm{prev}}"
_CHANGE = r"(x_0 - x_0^{\mathrm{before}})"


@dataclass(frozen=True)
class Part:
    """One number of a step.

    Attributes:
        name: its symbol, in LaTeX.
        symbols: what it is, in LaTeX.
        numbers: the same with the numbers of the step put in, in LaTeX that has nothing but numbers and operations.
        value: what comes out.
        column: of `Row`, that it is; "" where it is on the way to one.
    """

    name: str
    symbols: str
    numbers: str
    value: float
    column: str = ""


@dataclass(frozen=True)
class Equation:
    """One of the paper's equations, or one of those that followed it.

    Attributes:
        title: what it is about.
        number: in the paper, or "".
        says: sentences for somebody who reads it for the first time; math is between dollars.
        formula: in symbols, in LaTeX, by lines.
        parts: the numbers of the step in it.
        filled: the formula with these put in, in the same way.
    """

    title: str
    number: str
    says: str
    formula: tuple[str, ...]
    parts: tuple[Part, ...]
    filled: tuple[str, ...] = ()


def equations(plan: SamplingPlan, place: int, scheduler: DDIMScheduler) -> list[Equation]:
    """What the step at a place of a plan computes, in the order in which it does.

    Args:
        plan: from noise to image.
        place: of the step, from 0.
        scheduler: that made the plan.

    Raises:
        IndexError: there is no such step.
    """
    row = plan[place]
    return [
        _forward(row),
        _prediction(plan, row),
        _noise(plan, row),
        _step(plan, row, place),
        _sum(plan, row),
        _second_order(plan, row, place),
        _zero_snr(row, scheduler),
    ]


def markdown(equation: Equation) -> str:
    """An equation for `gradio.Markdown`, with math between dollars."""
    title = f"### {equation.title}" + (f" · equation {equation.number}" if equation.number else "")
    parts = [title, equation.says, *(f"$${line}$$" for line in equation.formula)]
    if equation.parts:
        lines = ["| of the row | in symbols | with its numbers | = |", "|:---|:---|:---|---:|"]
        for part in equation.parts:
            left = f"`{part.column}`" if part.column else f"${part.name}$"
            symbols = f"{part.name} = {part.symbols}" if part.name and part.column else part.symbols
            result = number(part.value).replace("-", "−")
            lines.append(f"| {left} | {_wide(symbols)} | {_wide(part.numbers)} | **{result}** |")
        parts.append("\n".join(lines))
    parts += [f"$${line}$$" for line in equation.filled]
    return "\n\n".join(parts)


def _wide(latex: str) -> str:
    return rf"$\displaystyle {latex}$"


# --- the equations ---------------------------------------------------------------------------------------------------


def _forward(row: Row) -> Equation:
    here = _fixed(row.alpha_bar, _places(row.alpha_bar, 1 - row.alpha_bar))
    return Equation(
        "What the network is given",
        "(4)",
        f"At timestep {row.timestep} a sample is the image, made fainter, and noise. Of its variance, "
        rf"{_percent(row.alpha_bar)} is the image's: this share is $\bar\alpha$, and the noise has the rest.",
        (rf"x_t = \sqrt{{{_HERE}}}\,x_0 + \sqrt{{1-{_HERE}}}\,\varepsilon",),
        (
            Part("", rf"\sqrt{{{_HERE}}}", rf"\sqrt{{{here}}}", row.signal_rate, "signal_rate"),
            Part("", rf"\sqrt{{1-{_HERE}}}", rf"\sqrt{{1-{here}}}", row.noise_rate, "noise_rate"),
        ),
        (f"x_t = {_sum_of((row.signal_rate, _X0), (row.noise_rate, _EPS))}",),
    )


def _prediction(plan: SamplingPlan, row: Row) -> Equation:
    here = _fixed(row.alpha_bar, _places(row.alpha_bar, 1 - row.alpha_bar))
    signal, noise = rf"\sqrt{{{_HERE}}}", rf"\sqrt{{1-{_HERE}}}"
    a, b = rf"\sqrt{{{here}}}", rf"\sqrt{{1-{here}}}"
    says, formula, forms = {
        "epsilon": (
            rf"This network predicts the noise ${_EPS}$ that is in the sample. Equation (4), solved for ${_X0}$, says "
            "what image that makes.",
            (rf"x_0 = \frac{{x_t - {noise}\,{_OUT}}}{{{signal}}}", rf"\varepsilon = {_OUT}"),
            (
                (rf"\frac{{1}}{{{signal}}}", rf"\frac{{1}}{{{a}}}"),
                (rf"-\frac{{{noise}}}{{{signal}}}", rf"-\frac{{{b}}}{{{a}}}"),
                ("0", "0"),
                ("1", "1"),
            ),
        ),
        "sample": (
            rf"This network predicts the image ${_X0}$ itself. Equation (4), solved for ${_EPS}$, says what noise that "
            "leaves.",
            (f"x_0 = {_OUT}", rf"\varepsilon = \frac{{x_t - {signal}\,{_OUT}}}{{{noise}}}"),
            (
                ("0", "0"),
                ("1", "1"),
                (rf"\frac{{1}}{{{noise}}}", rf"\frac{{1}}{{{b}}}"),
                (rf"-\frac{{{signal}}}{{{noise}}}", rf"-\frac{{{a}}}{{{b}}}"),
            ),
        ),
        "v_prediction": (
            rf"This network predicts $v = {signal}\,{_EPS} - {noise}\,{_X0}$, a mixture that says both at every level "
            rf"of noise: $(x_t, v)$ is $({_X0}, {_EPS})$, turned by an angle.",
            (rf"x_0 = {signal}\,x_t - {noise}\,{_OUT}", rf"\varepsilon = {noise}\,x_t + {signal}\,{_OUT}"),
            ((signal, a), (f"-{noise}", f"-{b}"), (noise, b), (signal, a)),
        ),
    }[plan.prediction_type]
    if plan.thresholding is not None:
        says += f" The largest values of ${_X0}$ are then cut off."
    elif plan.clip_range is not None:
        says += f" Then ${_X0}$ is clipped to ±{number(plan.clip_range)}."
    return Equation(
        "What the network sees in it",
        "(9)",
        says,
        formula,
        tuple(
            Part(name, symbols, numbers, float(getattr(row, name)), name)
            for name, (symbols, numbers) in zip("pqrs", forms, strict=True)
        ),
        (f"x_0 = {_sum_of((row.p, _XT), (row.q, _OUT))}", rf"\varepsilon = {_sum_of((row.r, _XT), (row.s, _OUT))}"),
    )


def _noise(plan: SamplingPlan, row: Row) -> Equation:
    here, there = _pair(row)
    shrinks, rest = rf"\sqrt{{1-\frac{{{_HERE}}}{{{_THERE}}}}}", rf"\sqrt{{\frac{{1-{_THERE}}}{{1-{_HERE}}}}}"
    numbers = rf"\sqrt{{1-\frac{{{here}}}{{{there}}}}}"
    if plan.eta == SIGMA_HAT:
        says = (
            r"$\hat\sigma$ is the larger noise that DDPM may add: more than the step makes room for, so that few steps "
        )
        says += "leave noise in the image."
        symbols = shrinks
    else:
        eta = float(plan.eta)
        says = {
            0.0: r"$\eta$ is 0: this is DDIM, which adds no noise: the same noise at the start gives the same image.",
            1.0: r"$\eta$ is 1: this is DDPM, which adds as much noise as the posterior of its forward process has.",
        }.get(eta, rf"$\eta$ is {number(eta)}: between DDIM (0), which adds no noise, and DDPM (1).")
        symbols = rf"\eta\,{rest}\,{shrinks}"
        numbers = rf"{number(eta)} \cdot \sqrt{{\frac{{1-{there}}}{{1-{here}}}}} \cdot {numbers}"
    if row.alpha_bar == row.alpha_bar_prev:  # nothing to compute, and perhaps 0/0
        says, numbers = says + " This step leads to where it is, and adds none.", "0"
    left = r"\hat\sigma" if plan.eta == SIGMA_HAT else r"\sigma"
    part = Part(left, symbols, numbers, row.sigma, "sigma")
    return Equation("How much new noise", "(16)", says, (f"{left} = {symbols}",), (part,))


def _step(plan: SamplingPlan, row: Row, place: int) -> Equation:
    kept = 1 - row.alpha_bar_prev - row.direction**2  # σ²; where σ̂ is added, σ² for η = 1
    places = _places(row.alpha_bar_prev, 1 - row.alpha_bar_prev, row.direction**2, kept)
    there, squared = _fixed(row.alpha_bar_prev, places), _fixed(kept, places)
    smaller = r"\sigma_{\eta=1}^2" if plan.eta == SIGMA_HAT else r"\sigma^2"
    where = "the image has: this is the last row" if place == len(plan) - 1 else f"timestep {row.previous_timestep} has"
    says = (
        "Equation (10) is the whole sampler: it begins with pure noise, and makes this step for each row of the plan. "
        f"The step mixes the predicted image, the predicted noise and new noise in the amounts that {where}."
    )
    if plan.eta == SIGMA_HAT:
        says += r" With $\hat\sigma$, the old noise makes room as if $\eta$ were 1."
    return Equation(
        "The step",
        "(12)",
        says,
        (rf"{_PREV} = \sqrt{{{_THERE}}}\,x_0 + \sqrt{{1-{_THERE}-{smaller}}}\,\varepsilon + \sigma z",),
        (
            Part("", rf"\sqrt{{{_THERE}}}", rf"\sqrt{{{there}}}", row.signal_rate_prev, "signal_rate_prev"),
            Part("", rf"\sqrt{{1-{_THERE}-{smaller}}}", rf"\sqrt{{1-{there}-{squared}}}", row.direction, "direction"),
        ),
        (f"{_PREV} = {_sum_of((row.signal_rate_prev, _X0), (row.direction, _EPS), (row.sigma, 'z'))}",),
    )


def _sum(plan: SamplingPlan, row: Row) -> Equation:
    rate, direction = _digits(row.signal_rate_prev), _digits(row.direction)

    def of(first: float, second: float) -> str:
        return rf"{rate} \cdot {_bracket(first)} + {direction} \cdot {_bracket(second)}"

    says = (
        rf"By equation (9), ${_X0}$ and ${_EPS}$ are sums of ${_XT}$ and what the network gives. Put into "
        f"equation (12), with $d = {number(row.direction)}$ for its second root, they make one sum. Its factors "
        "$a$ and $b$ are the columns by which the library steps."
    )
    if plan.clipping is not None:
        says += f" Where ${_X0}$ is clipped this does not hold, and equation (12) is computed as it stands."
    return Equation(
        "The same in one line",
        "",
        says,
        (rf"{_PREV} = a\,x_t + b\,{_OUT} + \sigma z",),
        (
            Part("a", rf"\sqrt{{{_THERE}}}\,p + d\,r", of(row.p, row.r), row.a, "a"),
            Part("b", rf"\sqrt{{{_THERE}}}\,q + d\,s", of(row.q, row.s), row.b, "b"),
        ),
        (f"{_PREV} = {_sum_of((row.a, _XT), (row.b, _OUT), (row.sigma, 'z'))}",),
    )


def _second_order(plan: SamplingPlan, row: Row, place: int) -> Equation:
    title, formula = "What the last step says: second order", rf"{_PREV} \mathrel{{+}}= c\,{_CHANGE}"
    if plan.order != 2:
        says = (
            "This plan is of first order: a step takes the predicted image to stay as it is on the way. Choose order 2 "
            r"on the Plan tab, with $\eta = 0$, to see what the change since the last step adds."
        )
        return Equation(title, "", says, (formula,), (Part("c", "0", "0", row.carried, "carried"),))
    if place == 0:
        says = "The first step of a plan of second order has no step before it, so that it is one of first order."
        return Equation(title, "", says, (formula,), (Part("c", "0", "0", row.carried, "carried"),))
    levels = (plan[place - 1].alpha_bar, row.alpha_bar, row.alpha_bar_prev)
    before, here, there = (math.atan2((1 - level) ** 0.5, level**0.5) for level in levels)
    bent = math.sin(there) * math.log(math.sin(there) / math.sin(here)) if there > 0 else 0.0
    above = math.cos(there) * (there - here) - bent
    places = _places(above, here - before, here - there)
    u, v, w = (_fixed(angle, places) for angle in (before, here, there))
    turned = rf"\sin({w}) \cdot \ln(\frac{{\sin({w})}}{{\sin({v})}})" if there > 0 else "0"
    g = _fixed(bent, places)
    marks = (r"\bar\alpha_{\mathrm{before}}", _HERE, _THERE)
    angles = [
        Part(
            name,
            rf"\arccos\sqrt{{{mark}}}",
            rf"\arccos(\sqrt{{{_fixed(level, _places(level, 1 - level) + 3)}}})",
            angle,
        )
        for name, mark, level, angle in zip(
            (r"\varphi_{\mathrm{before}}", r"\varphi", r"\varphi'"), marks, levels, (before, here, there), strict=True
        )
    ]
    full = r"\frac{\cos\varphi'\,(\varphi'-\varphi) - g}{\varphi-\varphi_{\mathrm{before}}}"
    bend = r"\sin\varphi'\,\ln\frac{\sin\varphi'}{\sin\varphi}"
    value = above / (here - before)
    damped = rf"\frac{{f}}{{1+{DAMPING:g}\,(\varphi-\varphi')}}"
    return Equation(
        title,
        "",
        "A step of first order takes the predicted image to stay as it is on the way. One of second order takes it to "
        r"go on as it went since the last step, in a straight line over the angle $\varphi$ from the image (0) to pure "
        r"noise ($\pi/2$). In a large step that is too bold, so that it is damped.",
        (formula, f"c = {damped}", f"f = {full}", f"g = {bend}"),
        (
            *angles,
            Part("g", bend, turned, bent),
            Part("f", full, rf"\frac{{\cos({w}) \cdot ({w}-{v}) - {f'({g})' if bent < 0 else g}}}{{{v}-{u}}}", value),
            Part("c", damped, rf"\frac{{{_digits(value)}}}{{1+{DAMPING:g} \cdot ({v}-{w})}}", row.carried, "carried"),
        ),
        (rf"{_PREV} \mathrel{{+}}= {_sum_of((row.carried, _CHANGE))}",),
    )


def _zero_snr(row: Row, scheduler: DDIMScheduler) -> Equation:
    config = scheduler.config
    betas = make_betas(
        config.num_train_timesteps, config.beta_start, config.beta_end, config.beta_schedule, config.trained_betas
    )
    raw = make_alphas_cumprod(betas)
    first, here, last = (float(math.sqrt(raw[t])) for t in (0, row.timestep, -1))
    title, root = "Zero terminal SNR", rf"\sqrt{{{_HERE}}}"
    scaled = (
        rf"\left({root}-\sqrt{{\bar\alpha_T}}\right)"
        r"\frac{\sqrt{\bar\alpha_1}}{\sqrt{\bar\alpha_1}-\sqrt{\bar\alpha_T}}"
    )
    formula = (rf"{root}\;\leftarrow\;{scaled}",)
    if not config.rescale_betas_zero_snr:
        says = (
            rf"At the noisiest timestep $T$ this schedule leaves $\sqrt{{\bar\alpha_T}} = {number(last)}$ of the "
            "image. But sampling begins with pure noise, which the network has never seen in training. Shifting and "
            "scaling the roots takes it to 0 (Lin et al. 2024), as “Zero SNR” on the Plan tab does."
        )
        return Equation(title, "", says, formula, ())
    says = (
        "The roots of this schedule were shifted and scaled so that nothing is left of the image at the noisiest "
        "timestep $T$, as sampling begins with pure noise (Lin et al. 2024). Before, they were "
        f"{number(first)} at the first timestep, {number(here)} at this one and {number(last)} at the last."
    )
    places = _places(here - last, first - last, last)
    a, b, c = (_fixed(value, places) for value in (first, here, last))
    part = Part("", scaled, rf"({b}-{c}) \cdot \frac{{{a}}}{{{a}-{c}}}", row.signal_rate, "signal_rate")
    return Equation(title, "", says, formula, (part,))


# --- numbers ---------------------------------------------------------------------------------------------------------


def _places(*values: float) -> int:
    """How many decimals it takes to give each of these values, but for zeros, five digits that count."""
    smallest = min((abs(value) for value in values if abs(value) > 1e-12), default=1.0)
    return min(14, max(4, 4 - math.floor(math.log10(smallest))))


def _fixed(value: float, places: int) -> str:
    """A number with as many decimals, less zeros at its end."""
    text = f"{value:.{places}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _digits(value: float) -> str:
    """A number to be put in: seven digits that count, so that a sum of two which nearly cancel comes out right."""
    return _fixed(value, _places(value) + 2)


def _bracket(value: float) -> str:
    return f"({_digits(value)})" if value < 0 else _digits(value)


def _pair(row: Row) -> tuple[str, str]:
    """ᾱ and ᾱ_prev with so many decimals that all of equation (16) can be computed from them."""
    here, there = row.alpha_bar, row.alpha_bar_prev
    places = _places(here, 1 - here, there, 1 - there, there - here)
    return _fixed(here, places), _fixed(there, places)


def _percent(share: float) -> str:
    """
    >>> _percent(0.3214), _percent(0.0), _percent(1.0), _percent(0.99991), _percent(0.00004)
    ('32%', 'nothing', '100%', '99.99%', '0.004%')
    """
    if share == 0:
        return "nothing"
    places = 0
    while places < 6 and share < 1 and float(f"{share * 100:.{places}f}") in (0.0, 100.0):
        places += 1
    return f"{share * 100:.{places}f}%"


def _sum_of(*terms: tuple[float, str]) -> str:
    """A sum of products, without those that are 0, in LaTeX.

    >>> print(_sum_of((1.0, "x"), (-0.25, "y"), (0.0, "z")))
    x - 0.25\\,y
    """
    text = ""
    for factor, name in terms:
        size = number(abs(factor))
        if size == "0":
            continue
        sign = "-" if factor < 0 else "+" if text else ""
        text += f" {sign} " if text else sign
        text += name if size == "1" else rf"{size}\,{name}"
    return text or "0"
