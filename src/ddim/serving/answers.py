"""What goes back to a client: OpenAI's answers and events, with the seed and the settings beside."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ddim.checkpoint.hub import bundled_models
from ddim.pipelines import DiffusionPipeline
from ddim.pipelines.fitting import structure
from ddim.serving.parameters import Drawing
from ddim.serving.pictures import MEDIA_TYPES, OutputFormat, encoded
from ddim.serving.recipes import recipe
from ddim.serving.store import Store
from ddim.serving.wishes import Wish, asked_as, tokenizer_of

__all__ = ["Answer", "event"]


class Answer:
    """The answer to one request, as its pictures are drawn.

    Args:
        name: of the model.
        wish: what was asked for.
        prefix: of the types of events: "image_generation" or "image_edit".
    """

    def __init__(self, name: str, pipe: DiffusionPipeline, wish: Wish, prefix: str) -> None:
        self.name, self.pipe, self.wish, self._prefix = name, pipe, wish, prefix
        self.created = int(time.time())
        asked = wish.asked
        self.kind: OutputFormat = getattr(asked, "output_format", "png")
        self._compression: int | None = getattr(asked, "output_compression", None)

    def file(self, image: Image.Image, number: int, settings: Mapping[str, Any]) -> bytes:
        """A picture's file, of which a PNG says how it was made."""
        asked, start = self.wish.asked, dict[str, Any]()
        is_inversion = getattr(asked, "method", "noise") == "inversion"
        if self.wish.start is not None:
            start = {"image": "the image that was sent", "strength": settings.get("strength")}
            if self.wish.start.mask is not None:
                start["mask_image"] = "the mask that was sent"
        if self.wish.controls:
            scales = settings["controlnet_conditioning_scale"]
            each = scales if isinstance(scales, Sequence) else [scales] * len(self.wish.controls)
            start["controlnet"] = [f"a ControlNet of the server={scale:g}" for scale in each]
            start["control_image"] = ["a control image that was sent"] * len(each)
        made = recipe(
            _own_name(self.name, self.pipe),
            settings,
            count=asked.n,
            number=number,
            command="sample"
            if self.wish.start is None or (self.pipe.draws_texts and not is_inversion)
            else "variation",
            classes=self.wish.classes if asked.class_label is None else self.wish.classes[:1],
            size=self.wish.size if self.pipe.draws_texts else None,
            start=start,
        )
        return encoded(image, self.kind, self._compression, made)

    def body(
        self, files: Sequence[bytes], settings: Mapping[str, Any], store: Store | None = None, address: str = ""
    ) -> dict[str, Any]:
        """The answer with all pictures.

        Args:
            store: where the pictures wait, if they are to be fetched; None sends them themselves.
            address: what the name of a picture in the store is put behind.
        """
        data = []
        for file in files:
            if store is None:
                data.append({"b64_json": base64.b64encode(file).decode()})
            else:
                data.append({"url": address + store.add(file, MEDIA_TYPES[self.kind], self.kind)})
        return {"created": self.created, "data": data, **self._about(), **self._last(settings)}

    def partial(self, image: Image.Image, number: int, index: int) -> dict[str, Any]:
        """The event of a picture on its way."""
        file = encoded(image, self.kind, self._compression)
        return {
            "type": f"{self._prefix}.partial_image",
            "b64_json": base64.b64encode(file).decode(),
            "partial_image_index": index,
            "created_at": self.created,
            **self._about(),
            "ddim": {"number": number, "seed": self.wish.seed},
        }

    def completed(self, file: bytes, number: int, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The event of a picture that is done."""
        said = self._last(settings)
        return {
            "type": f"{self._prefix}.completed",
            "b64_json": base64.b64encode(file).decode(),
            "created_at": self.created,
            **self._about(),
            **said,
            "ddim": {"number": number, **said["ddim"]},
        }

    def _about(self) -> dict[str, Any]:
        return {
            "background": "opaque",
            "output_format": self.kind,
            "quality": "auto",
            "size": asked_as(self.wish.size),
        }

    def _last(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What an answer ends with."""
        said = {name: value for name, value in settings.items() if value is not None and name not in _NOT_SAID}
        said |= {"model": self.name, "seed": self.wish.seed}
        if self.wish.notes:
            said["notes"] = self.wish.notes
        identifier = identifier_of(self.wish.asked)
        about = {} if identifier is None else {"safety_identifier": identifier}
        return {**about, "usage": self._usage(), "ddim": said}

    def _usage(self) -> dict[str, Any]:
        """What was read and drawn: tokens of texts, and of pictures one for each latent."""
        width, height = self.wish.size
        each = (width // structure(self.pipe)[0]) * (height // structure(self.pipe)[0])
        prompt, tokenizer = getattr(self.wish.asked, "prompt", None), tokenizer_of(self.pipe)
        text = 0
        if prompt and tokenizer is not None:
            text = len(tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids)
        read = each * ((self.wish.start is not None) + len(self.wish.controls))
        drawn = each * self.wish.asked.n
        return {
            "input_tokens": text + read,
            "output_tokens": drawn,
            "total_tokens": text + read + drawn,
            "input_tokens_details": {"image_tokens": read, "text_tokens": text},
            "output_tokens_details": {"image_tokens": drawn, "text_tokens": 0},
        }


def _own_name(served: str, pipe: DiffusionPipeline) -> str:
    """What a picture calls its model: as `ddim sample` does, if it is a bundled one; else as the server does.

    A model of one's own that is served by the name of a bundled one gets ./ before it, so as not to be taken for that.
    """
    bundled, place = bundled_models(), pipe.loaded_from
    if place is not None and place.name in bundled and not Path(place.name).exists():
        return place.name
    return f"./{served}" if served in bundled else served


_NOT_SAID = ("number", "previews", "preview_every", "deadline", "output_type")  # settings of the engine's requests


def identifier_of(asked: Drawing) -> str | None:
    """By what a client calls its user."""
    identifier: str | None = getattr(asked, "safety_identifier", None)
    return asked.user if identifier is None else identifier


def event(value: Mapping[str, Any]) -> bytes:
    """An event of a stream."""
    kind = value.get("type", "error")
    return f"event: {kind}\ndata: {json.dumps(value)}\n\n".encode()
