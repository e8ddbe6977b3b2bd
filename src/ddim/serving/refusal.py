"""What the server answers where it does not do what was asked for: errors in the form that OpenAI's clients know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Refusal"]

# What an error of a status is of, in OpenAI's words; of 500 and above it is the server's own.
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(Exception):  # noqa: N818 - it is what is answered, and no fault of the program
    """A request is not followed.

    Args:
        message: a whole sentence for the one who wrote the client: what is wrong, and what would do.
        param: the parameter that it is about.
        status: of HTTP; clients have a class of errors each for 400, 401, 403, 404, 409, 422, 429, and 500 and above.
        code: a short word that programs can compare.
        headers: further headers of the answer, such as Retry-After.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code
        self.headers = dict(headers or {})

    def body(self, request_id: str) -> dict[str, Any]:
        """The answer, as JSON has it."""
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": {**error, "request_id": request_id}}
