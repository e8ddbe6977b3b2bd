"""What a pipeline is made of: its parts, their sizes and settings, as a text and as a table for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from torch import nn

from ddim.sampling import Pipeline

# Notebooks put the text of cells at their right edges, in the middle of their height, unless a cell says otherwise.
LEFT = 'style="text-align: left; vertical-align: top"'


@dataclass(frozen=True)
class PartInfo:
    """One part of a pipeline: a network, the scheduler or the tokenizer.

    Attributes:
        name: what the pipeline calls it, such as "unet".
        kind: the name of its class; "none" if the pipeline was saved without it.
        parameters: how many numbers it has learnt; None for a part that learns nothing, such as the scheduler.
        size: of these numbers, in bytes.
        dtype: their type, as PyTorch prints it.
        settings: its config, sorted by name, without private entries and without what is None.
    """

    name: str
    kind: str
    parameters: int | None
    size: int | None
    dtype: str | None
    settings: Mapping[str, Any]

    @property
    def weight(self) -> str:
        """How large it is, in words; empty for a part that learns nothing."""
        if self.parameters is None or self.size is None:
            return ""
        return f"{self.parameters:,} parameters, {self.size / 2**20:.1f} MiB as {self.dtype}"


@dataclass(frozen=True, repr=False)
class ModelInfo:
    """What a pipeline is made of. It prints as a text, and shows itself as a table in a notebook.

    Attributes:
        pipeline: the name of the pipeline's class.
        parts: in the order of the pipeline's components.
    """

    pipeline: str
    parts: tuple[PartInfo, ...]

    def __repr__(self) -> str:
        lines = [self.pipeline, ""]
        for part in self.parts:
            lines.append(f"{_printable(part.name)}: {part.kind}")
            lines += [f"  {part.weight}"] * bool(part.weight)
            lines += [f"  {_setting(name, value)}" for name, value in part.settings.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """A table with a row for each part. A config may come from anywhere, so all text in it is escaped."""
        columns = ("part", "class", "parameters", "size", "dtype", "settings")
        head = "".join(f"<th {LEFT}>{column}</th>" for column in columns)
        rows = "".join(f"<tr>{''.join(f'<td {LEFT}>{cell}</td>' for cell in _cells(part))}</tr>" for part in self.parts)
        caption = f"<caption {LEFT}>{escape(self.pipeline)}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def model_info(pipe: Pipeline) -> ModelInfo:
    """The parts of a pipeline, with their classes, sizes and settings."""
    return ModelInfo(type(pipe).__name__, tuple(_part(name, part) for name, part in pipe.components.items()))


def summary(pipe: Pipeline) -> str:
    """A pipeline in a few lines: where it is from and where it runs, and a line for each part."""
    info = model_info(pipe)
    rows = [(_printable(part.name), part.kind + _about(part)) for part in info.parts if part.kind != "none"]
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    name = _printable(str(getattr(pipe, "name_or_path", "")))
    devices = dict.fromkeys(str(weight.device) for part in networks for weight in part.parameters())
    runners = dict.fromkeys(str(part.runner) for part in networks if getattr(part, "runner", None) is not None)
    adapters = pipe.get_active_adapters() if hasattr(pipe, "get_active_adapters") else []
    rows += [("adapters", _printable(", ".join(adapters)))] if adapters else []
    title = info.pipeline + f" of {name}" * bool(name) + f" on {' and '.join(devices)}" * bool(devices)
    title += f", run by {' | '.join(runners)}" * bool(runners)
    width = max((len(key) for key, _ in rows), default=0)
    return "\n".join([title, *(f"  {key:<{width}}  {value}" for key, value in rows)])


def _about(part: PartInfo) -> str:
    """What is said of a part after its class: of a network its size and type, of a scheduler what it is made for."""
    if part.parameters is not None:
        return f", {part.parameters:,} parameters, {part.dtype}".replace("torch.", "")
    said = [str(part.settings[key]) for key in ("prediction_type", "timestep_spacing") if key in part.settings]
    said += ["zero SNR"] * (part.settings.get("rescale_betas_zero_snr") is True)
    return "".join(f", {_printable(each)[:40]}" for each in said)


def _part(name: str, part: Any) -> PartInfo:
    part = getattr(part, "_orig_mod", part)  # the network itself, where torch.compile has wrapped it
    weights = list(part.parameters()) if isinstance(part, nn.Module) else []
    config: Mapping[str, Any] = getattr(part, "config", {})
    return PartInfo(
        name=name,
        kind="none" if part is None else type(part).__name__,
        parameters=sum(weight.numel() for weight in weights) if weights else None,
        size=sum(weight.numel() * weight.element_size() for weight in weights) if weights else None,
        dtype=str(weights[0].dtype) if weights else None,
        settings={key: config[key] for key in sorted(config) if key[:1] != "_" and config[key] is not None},
    )


def _cells(part: PartInfo) -> tuple[str, ...]:
    """A row of the table, as HTML."""
    lines = "\n".join(_setting(name, value) for name, value in part.settings.items())
    folded = f"<pre style='white-space: pre-wrap'>{escape(lines)}</pre>"
    settings = f"<details><summary>{len(part.settings)}</summary>{folded}</details>"
    return (
        escape(part.name),
        escape(part.kind),
        "" if part.parameters is None else f"{part.parameters:,}",
        "" if part.size is None else f"{part.size / 2**20:.1f} MiB",
        escape(part.dtype or ""),
        settings if part.settings else "",
    )


def _setting(name: str, value: Any) -> str:
    return f"{_printable(name)} = {_printable(str(value))}"


def _printable(text: str) -> str:
    r"""A text in which characters that would move or colour a terminal's cursor are spelt out.

    >>> print(_printable("a\x1b[31m\nb"))
    a\x1b[31m\nb
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
