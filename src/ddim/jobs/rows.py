"""A row of a job: its name, its seed, and what it asks for, checked by the rules of the server's requests."""

from __future__ import annotations

import hashlib
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ddim.jobs.starts import Begun, Named, begun_from, told_of
from ddim.pipelines import DiffusionPipeline
from ddim.serving.limits import Limits
from ddim.serving.parameters import (
    HOW_CONTROLLED,
    Generation,
    Start,
    check_parts,
    from_form,
    from_json,
    under_our_names,
)
from ddim.serving.refusal import Refusal
from ddim.serving.requests import Request
from ddim.serving.wishes import asked_as, wish

__all__ = ["LONGEST_ID", "Asked", "Row", "asked_of", "file_name", "seed_of"]

LONGEST_ID = 1000
_LONGEST_NAME = 80  # bytes; with an ending it has room in the header of a tar file
_LIMITS = Limits(side=2**14, n=1)


class Row(Generation):
    """What a row may say, beside its id."""

    width: Annotated[int | None, Field(ge=1, le=2**14, description="In pixels; what the model was trained on.")] = None
    height: Annotated[int | None, Field(ge=1, le=2**14, description="In pixels; what the model was trained on.")] = None
    image: Annotated[str | None, Field(max_length=4096, description="The file of a picture to start from.")] = None
    mask_image: Annotated[str | None, Field(max_length=4096, description="White where image is painted anew.")] = None
    strength: Annotated[float | None, Field(ge=0, le=1, description="How much of image is lost.")] = None
    denoising_start: Start = None
    control_image: Annotated[
        str | list[str] | None, Field(description="The file of what the ControlNet is shown, or of several a list.")
    ] = None


@dataclass(frozen=True)
class Asked:
    """What a row asks for.

    Attributes:
        request: of the engine.
        start: what the picture says of what it was started from and steered by: `image`, `mask_image` and
            `control_image`.
        files: a hash of each file that it was started from.
    """

    request: Request
    start: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def file_name(row: str) -> str:
    """The name of a row's file, but for its ending, by its id: safe in any folder, and another for each id.

    Letters of ASCII, digits, "-", "_" and "~" stand for themselves. A long one ends in a hash.

    >>> file_name("cats/07.v2"), file_name("猫")
    ('cats%2F07%2Ev2', '%E7%8C%AB')
    """
    name = urllib.parse.quote(row, safe="").replace(".", "%2E")
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:40]}-{hashlib.sha256(row.encode()).hexdigest()[:39]}"


def seed_of(seed: int, row: str) -> int:
    """The seed of a row that says none: 63 bits of a hash of the job's seed and the row's id.

    >>> seed_of(0, "00000000") == seed_of(0, "00000000") != seed_of(1, "00000000")
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {row}".encode()).digest()[:8], "big") >> 1


def asked_of(
    number: int,
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    model: str,
    pipe: DiffusionPipeline,
    *,
    folder: Path = Path(),
    are_texts: bool = False,
) -> Asked:
    """What the engine is asked for a row.

    Args:
        number: of the row. Where neither it nor the job says a class, all classes have their turn.
        values: the row's settings, and its `id`.
        defaults: the job's, for what the row does not say; `seed` is that of the job.
        model: what the user calls the model.
        folder: from which the row's paths are meant.
        are_texts: whether all values are texts, as in a CSV.

    Raises:
        Refusal: it cannot be followed; names the setting.
    """
    said = under_our_names({name: value for name, value in values.items() if name != "id"})
    _check_texts(said)
    row = from_form(Row, {name: [str(value)] for name, value in said.items()}) if are_texts else from_json(Row, said)
    changes = {name: value for name, value in under_our_names(defaults).items() if name != "seed" and name not in said}
    if row.denoising_start is not None:
        changes.pop("strength", None)
    if row.strength is not None:
        changes.pop("denoising_start", None)
    if row.control_image is None:
        changes = {name: value for name, value in changes.items() if name not in HOW_CONTROLLED}
    if row.image is None:
        if row.denoising_start is not None:
            raise Refusal("denoising_start needs what another model left there: give it as image", "denoising_start")
        changes.pop("denoising_start", None)
        if row.strength is not None:
            raise Refusal("strength says how much of image is lost: give one, or leave it out", "strength")
        changes.pop("strength", None)
    if row.seed is None:
        changes["seed"] = seed_of(int(defaults.get("seed", 0)), str(values["id"]))
    if pipe.class_count is not None and row.class_label is None and "class_label" not in changes:
        changes["class_label"] = number % pipe.class_count
    row = row.model_copy(update=changes)
    if row.order == 2 and row.eta != 0:
        raise Refusal(f"order 2 needs an eta of 0, not {row.eta}", "order")
    check_parts(row)
    controls = [row.control_image] if isinstance(row.control_image, str) else row.control_image or []
    named = Named(row.image, row.mask_image, tuple(controls), row.height, row.width)
    begun = begun_from(named, folder, model, pipe)
    row = row.model_copy(update={"size": _size(row, begun, pipe)})
    wanted = wish(model, pipe, row, _LIMITS, begun.image, begun.mask, begun.controls)
    (request,) = wanted.requests(pipe.draws_texts, None)
    return Asked(request, told_of(named, begun), begun.files)


def _size(row: Row, begun: Begun, pipe: DiffusionPipeline) -> str:
    """As a `Wish` is told the size: that of the picture to start from, or what the row says, or the usual one."""
    if begun.size is not None:
        return asked_as(begun.size)
    if row.width is None and row.height is None:
        return "auto"
    _, height, width = pipe.picture_shape()
    return asked_as((row.width or width, row.height or height))


def _check_texts(said: Mapping[str, Any]) -> None:
    """Raise a `Refusal` for what looks like a text and is none."""
    for name, value in said.items():
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                continue
            if "\0" in text:
                raise Refusal(f"{name} has a zero byte", name)
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise Refusal(f"{name} has half a character: a surrogate without its other half", name)
