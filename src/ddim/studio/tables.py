"""The rows of a plan as a table for the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ddim.plan import SamplingPlan
from ddim.step import Row
from ddim.studio.curves import decibels

__all__ = ["number", "rows_table"]

# The head of each column, and what it is in words.
_HEADS = {
    "alpha_bar": ("<i>ᾱ</i>", "What is left of the image's variance before the step"),
    "alpha_bar_prev": ("<i>ᾱ</i><sub>prev</sub>", "The same after the step"),
    "snr": ("SNR, dB", "Signal to noise before the step, in decibels"),
    "a": ("<i>a</i>", "Factor of the sample in the step"),
    "b": ("<i>b</i>", "Factor of the network's output in the step"),
    "sigma": ("<i>σ</i>", "Noise that the step adds"),
    "p": ("<i>p</i>", "Factor of the sample in the predicted image"),
    "q": ("<i>q</i>", "Factor of the network's output in the predicted image"),
    "r": ("<i>r</i>", "Factor of the sample in the predicted noise"),
    "s": ("<i>s</i>", "Factor of the network's output in the predicted noise"),
    "signal_rate_prev": ("√<i>ᾱ</i><sub>prev</sub>", "Factor of the predicted image after the step"),
    "direction": ("√(1−<i>ᾱ</i><sub>prev</sub>−<i>σ</i>²)", "Factor of the predicted noise after the step"),
    "carried": ("carried", "Second order: share of the change of the predicted image"),
}
ALL = tuple(_HEADS)


def number(value: float) -> str:
    """A number with five digits that count, never with an exponent.

    >>> number(0.000123456), number(157.4139), number(1.0), number(0.0), number(-0.5), number(1e-20)
    ('0.00012346', '157.41', '1', '0', '-0.5', '0')
    """
    if abs(value) < 1e-12:
        return "0"
    places = max(0, 4 - math.floor(math.log10(abs(value))))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def rows_table(
    plan: SamplingPlan, columns: Sequence[str] = ALL, *, caption: str, chosen: int | None = None, picked: bool = False
) -> str:
    """The table of a plan, whose numbers stand below each other by their points.

    Args:
        plan: the plan.
        columns: which columns of `Row` to show, and "snr". `carried` is left out of plans of first order.
        caption: what a screen reader says of it.
        chosen: the place of the row that is marked.
        picked: whether rows can be picked, by a script that is told by `data-step`.
    """
    shown = [name for name in columns if name != "carried" or plan.order == 2]
    values = {name: [_value(row, name) for row in plan] for name in shown}
    cells = {name: _aligned(column, 2 if name == "snr" else 5) for name, column in values.items()}
    head = "".join(f'<th scope="col" title="{_HEADS[name][1]}">{_HEADS[name][0]}</th>' for name in shown)
    lines = []
    for place, row in enumerate(plan):
        more = ""
        if picked:
            is_chosen = place == (chosen or 0)
            more = (
                f' data-step="{place + 1}" tabindex="{0 if is_chosen else -1}" aria-selected="{str(is_chosen).lower()}"'
            )
        where = row.previous_timestep if row.previous_timestep >= 0 else "image"
        lines.append(
            f'<tr{more}><th scope="row">{place + 1}</th><td class="t">{row.timestep}</td><td>{where}</td>'
            + "".join(f"<td>{cells[name][place]}</td>" for name in shown)
            + "</tr>"
        )
    role = ' role="grid"' if picked else ""
    return (
        f'<div class="rows" tabindex="{-1 if picked else 0}" role="region" aria-label="{caption}"><table{role}>'
        f'<thead><tr><th scope="col">step</th><th scope="col" class="t">t</th><th scope="col">to</th>{head}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _value(row: Row, name: str) -> float:
    return decibels(row.alpha_bar) if name == "snr" else float(getattr(row, name))


def _aligned(values: Sequence[float], places: int) -> list[str]:
    """Numbers with the same number of decimals, one less where some have three digits before the point."""
    places -= any(100 <= abs(value) < math.inf for value in values)
    return [_spelt(value, places) for value in values]


def _spelt(value: float, places: int) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{round(value, places) + 0.0:.{places}f}".replace("-", "−")
