"""What a file says of itself in JSON, when it may be from anyone: read within bounds."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["LONGEST", "parse"]

LONGEST = 1 << 20  # bytes of all that a picture says
_DEPTH = 5  # of lists and objects in one another


def parse(text: str, longest: int = LONGEST) -> dict[str, Any]:
    """The object in a text of JSON.

    Raises:
        ValueError, RecursionError: it is none, or a number in it is not finite or has thousands of digits.
    """

    def refuse(name: str) -> float:
        raise ValueError(f"{name[:20]} is no number that is followed")

    def integer(digits: str) -> int:
        return int(digits) if len(digits) <= 1000 else int(refuse(digits))

    def real(digits: str) -> float:
        return float(digits) if len(digits) <= 50 and math.isfinite(float(digits)) else refuse(digits)

    if len(text) > longest:
        raise ValueError("it is too long")
    value = json.loads(text, parse_constant=refuse, parse_int=integer, parse_float=real)
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    level: list[Any] = [value]
    for _ in range(_DEPTH):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [one for each in inner for one in each if isinstance(one, (dict, list))]
    if level:
        raise ValueError("it is nested too deeply")
    return value
