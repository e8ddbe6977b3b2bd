"""Curves as SVG that follows the page: its colours are classes, so that light and dark suit, and it needs no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ddim.plan import SamplingPlan

__all__ = ["Line", "chart", "curves", "spacings"]

_WIDTH, _HEIGHT = 300, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 10, 8, 24
_POINTS = 200  # of a curve over all timesteps, which is more than it has pixels to show


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        name: of it, as HTML.
        xs, ys: where it goes through; not finite where it does not.
        joined: whether a line joins the points.
        dotted: whether the points are marked.
        number: of its colour, 0, 1 or 2.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    joined: bool = True
    dotted: bool = True
    number: int = 0


def curves(plan: SamplingPlan, ways: Mapping[str, Sequence[int]], chosen: str) -> str:
    """All curves of a plan, as a part of the page.

    Args:
        plan: the plan.
        ways: the timesteps of each spacing.
        chosen: the spacing of the plan.
    """
    levels, most = plan.alphas_cumprod, len(plan.alphas_cumprod) - 1
    every = sorted({round(place * most / _POINTS) for place in range(_POINTS + 1)})
    at = [row.timestep for row in plan]
    end = float(max(most, 1))

    def of_steps(*columns: tuple[str, str]) -> list[Line]:
        found = []
        for number, (name, column) in enumerate(columns):
            found.append(Line(name, at, [float(getattr(row, column)) for row in plan], number=number))
        return found

    parts = [
        chart(
            "What is left of the image",
            [
                Line("<i>ᾱ</i>", every, [levels[t] for t in every], dotted=False),
                Line("the steps", at, [row.alpha_bar for row in plan], joined=False, number=1),
            ],
            end,
            low=0.0,
            high=1.0,
        ),
        chart(
            "Signal to noise, in dB",
            [
                Line("SNR", every, [decibels(levels[t]) for t in every], dotted=False),
                Line("the steps", at, [decibels(row.alpha_bar) for row in plan], joined=False, number=1),
            ],
            end,
        ),
        chart(
            "Noise after a step",
            of_steps(("<i>σ</i>, new", "sigma"), ("√(1−<i>ᾱ</i><sub>prev</sub>−<i>σ</i>²), kept", "direction")),
            end,
            low=0.0,
        ),
        chart(
            "<i>x</i><sub>prev</sub> = <i>a</i>·<i>x</i><sub>t</sub> + <i>b</i>·out + <i>σ</i>·<i>z</i>",
            of_steps(("<i>a</i>", "a"), ("<i>b</i>", "b"), *[("carried", "carried")] * (plan.order == 2)),
            end,
        ),
        chart(
            "<i>x</i><sub>0</sub> = <i>p</i>·<i>x</i><sub>t</sub> + <i>q</i>·out",
            of_steps(("<i>p</i>", "p"), ("<i>q</i>", "q")),
            end,
        ),
        chart(
            "<i>ε</i> = <i>r</i>·<i>x</i><sub>t</sub> + <i>s</i>·out",
            of_steps(("<i>r</i>", "r"), ("<i>s</i>", "s")),
            end,
        ),
    ]
    return f'<div class="curves">{spacings(plan, ways, chosen)}{"".join(parts)}</div>'


def decibels(level: float) -> float:
    """The signal-to-noise ratio at a level ᾱ, in dB; infinite at 0 and 1.

    >>> decibels(0.5), decibels(0.0), round(decibels(0.9), 2)
    (0.0, -inf, 9.54)
    """
    if level in (0.0, 1.0):
        return math.inf if level else -math.inf
    return 10 * math.log10(level / (1 - level))


def chart(title: str, lines: Sequence[Line], end: float, low: float | None = None, high: float | None = None) -> str:
    """Curves over the timesteps, with axes, a title and a legend.

    Args:
        title: as HTML.
        lines: the curves.
        end: the last timestep.
        low, high: of the vertical axis; as the curves need it unless told.
    """
    seen = [y for line in lines for y in line.ys if math.isfinite(y)] or [0.0]
    ticks = _ticks(min(seen) if low is None else low, max(seen) if high is None else high)
    low, high = ticks[0], ticks[-1]

    def point(x: float, y: float) -> str:
        share = (min(max(y, low), high) - low) / (high - low)
        return f"{_across(x, end):.1f} {_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM):.1f}"

    drawn = [_axes(end, [(float(point(0, tick).split()[1]), _tick(tick, ticks)) for tick in ticks])]
    for line in lines:
        places = [point(x, y) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(y)]
        if line.joined and len(places) > 1:
            drawn.append(f'<path class="line of-{line.number}" d="M{"L".join(places)}"/>')
        if line.dotted and places:
            few = " few" if len(places) <= 30 else ""
            drawn.append(f'<path class="dots of-{line.number}{few}" d="{"".join(f"M{p}h0" for p in places)}"/>')
        endless = [x for x, y in zip(line.xs, line.ys, strict=True) if y == -math.inf]
        if endless and not line.dotted:  # the curve goes down for ever
            x, bottom = _across(endless[0], end), _HEIGHT - _BOTTOM
            drawn.append(f'<path class="arrow of-{line.number}" d="M{x - 4:.1f} {bottom - 9}h8l-4 8z"/>')
            drawn.append(f'<text class="tick" x="{x - 7:.1f}" y="{bottom - 5}" text-anchor="end">−∞</text>')
    named = "".join(
        f'<span><span class="swatch of-{line.number}{" ring" * (not line.joined)}"></span>{line.name}</span>'
        for line in lines
    )
    return _figure(title, named, "".join(drawn), _about(title, lines))


def spacings(plan: SamplingPlan, ways: Mapping[str, Sequence[int]], chosen: str) -> str:
    """The timesteps of each spacing, each in a line below the schedule: the fainter a place, the less is left of the
    image there. As wide as the page has room.
    """
    levels = plan.alphas_cumprod
    end = max(len(levels) - 1, 1)
    cells = 100
    at = [levels[round(place / (cells - 1) * (len(levels) - 1))] for place in range(cells)]
    shades = "".join(
        f'<rect class="shade" x="{place * 10}" width="10" height="14" opacity="{level:.3f}"/>'
        for place, level in enumerate(at)
    )
    lines = [f'<span class="way">ᾱ</span>{_strip(shades)}']
    for name, timesteps in ways.items():
        own, few = " own" * (name == chosen), " few" * (len(timesteps) <= 40)
        dots = "".join(f"M{t / end * 1000:.0f} 7h0" for t in timesteps)
        strip = _strip(f'<path class="grid" d="M0 7H1000"/><path class="dots{own}{few}" d="{dots}"/>')
        lines.append(f'<span class="way{own}">{_named(name)}</span>{strip}')
    ticks = _ticks(0, end)[:-1] if end > 10 else [0.0, float(end)]
    places = "".join(f'<span style="left:{tick / end * 100:.1f}%">{tick:g}</span>' for tick in ticks)
    about = "; ".join(f"{_named(name)}: {', '.join(map(str, timesteps))}" for name, timesteps in ways.items())
    return (
        f'<figure class="curve wide"><figcaption><b>The timesteps of each spacing, on the schedule</b></figcaption>'
        f'<div class="ways" role="img" aria-label="The timesteps of each spacing. {escape(about)}">{"".join(lines)}'
        f'<span></span><div class="places">{places}</div></div></figure>'
    )


def _named(spacing: str) -> str:
    return "searched" if spacing == "optimized" else escape(spacing)


def _strip(drawn: str) -> str:
    """A line of the picture of spacings, which is stretched to its place; strokes and dots are not."""
    return f'<svg viewBox="0 0 1000 14" preserveAspectRatio="none">{drawn}</svg>'


def _about(title: str, lines: Sequence[Line]) -> str:
    """What a screen reader says of a chart."""
    said = []
    for line in lines:
        seen = [y for y in line.ys if math.isfinite(y)]
        if seen:
            said.append(
                f"{_plain(line.name)} from {seen[0]:.3g} at {line.xs[0]:g} to {seen[-1]:.3g} at {line.xs[-1]:g}"
            )
    return f"{_plain(title)}. {'; '.join(said)}. The table has the numbers."


def _plain(html: str) -> str:
    for tag in ("i", "sub"):
        html = html.replace(f"<{tag}>", "").replace(f"</{tag}>", "")
    return html


def _across(x: float, end: float) -> float:
    """Where a timestep is on the picture."""
    return _LEFT + x / end * (_WIDTH - _RIGHT - _LEFT)


def _axes(end: float, ticks: Sequence[tuple[float, str]]) -> str:
    parts = []
    for y, label in ticks:
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for tick in _ticks(0, end)[:-1] if end > 10 else (0.0, end):
        x = _across(tick, end)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end" font-style="italic">t</text>'
    )
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers, of which the first is not above `low` and the last not below `high`.

    >>> _ticks(0, 999), _ticks(-0.31, 0.94), _ticks(2, 2)
    ([0.0, 250.0, 500.0, 750.0, 1000.0], [-0.5, 0.0, 0.5, 1.0], [1.5, 1.75, 2.0, 2.25, 2.5])
    """
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * each for each in (1, 2, 2.5, 5, 10) if unit * each >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) + 0.0 for number in range(first, last + 1)]


def _tick(value: float, ticks: Sequence[float]) -> str:
    """A number beside an axis, with as many decimals as all of them need."""
    places = max(len(f"{tick:.6f}".rstrip("0").partition(".")[2]) for tick in ticks)
    return f"{value:.{places}f}".replace("-", "−")


def _figure(title: str, legend: str, drawn: str, about: str) -> str:
    return (
        f'<figure class="curve"><figcaption><b>{title}</b><span class="legend">{legend}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(about)}">{drawn}</svg></figure>'
    )
