"""How much a client may send and ask for, and how long it may take: looked at before anything is decoded or drawn."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """The bounds of requests.

    Attributes:
        json_bytes: of a body in JSON.
        image_bytes: of the file of a picture.
        mask_bytes: of the file of a mask.
        image_pixels: of a picture, whatever its file's size.
        all_bytes: of all bodies that are being read or waiting to be drawn, together.
        prompt_letters: of a prompt, and of a negative one.
        side: the most pixels of a side; None is twice what the model draws.
        n: the most pictures of a request.
        header_seconds: within which a request's headers have to be here.
        body_seconds: within which its body has to be here.
        send_seconds: within which a client has to take each part of the answer.
        deadline: the seconds after which a request that is not done is given up.
    """

    json_bytes: int = MIB
    image_bytes: int = 50_000_000
    mask_bytes: int = 4_000_000
    image_pixels: int = 25_000_000
    all_bytes: int = 256 * MIB
    prompt_letters: int = 32_000
    side: int | None = None
    n: int = 10
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    send_seconds: float = 60.0
    deadline: float = 600.0
