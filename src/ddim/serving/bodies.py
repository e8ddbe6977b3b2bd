"""A request's body, read within its bounds: JSON, or the fields and files of a form."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, NamedTuple

import pydantic_core
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from ddim.serving.limits import MIB, Limits
from ddim.serving.refusal import Refusal

__all__ = ["Form", "Room", "media_type", "read_body", "read_form", "read_json"]

_FIELDS, _FILES = 100, 20  # of a form, at most
_DRAINED = 4  # of a body that is too large, how many times the most is read to its end before it is refused


class Form(NamedTuple):
    """A form: its fields, of which those of one name are several, its files by their fields' names, and what these
    files are called."""

    fields: dict[str, list[str]]
    files: dict[str, list[bytes]]
    names: dict[str, list[str]]


class Room:
    """The memory that the bodies of all requests may take together.

    Attributes:
        left: bytes.
    """

    def __init__(self, most: int) -> None:
        self.left = most

    @contextlib.contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Take so many bytes for as long as it lasts.

        Raises:
            Refusal: with status 429, if there are none left.
        """
        if size > self.left:
            raise Refusal(
                "too many large requests are here at once: send it again in a moment",
                status=429,
                code="server_busy",
                headers={"Retry-After": "2"},
            )
        self.left -= size
        try:
            yield
        finally:
            self.left += size


@contextlib.asynccontextmanager
async def read_json(request: Request, limits: Limits, room: Room) -> AsyncIterator[dict[str, Any]]:
    """The object in a body of JSON.

    Raises:
        Refusal: it is none, too large, or takes too long to come.
    """
    if media_type(request) != "application/json":
        raise Refusal("the body must be JSON, with the header Content-Type: application/json", status=415)
    larger = "; a form takes more: pictures are sent as files there"
    async with read_body(request, limits.json_bytes, limits, room, larger) as body:
        try:
            value = pydantic_core.from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise Refusal(f"the body is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise Refusal('the body must be an object, such as {"prompt": "a red heart"}')
        yield value


@contextlib.asynccontextmanager
async def read_form(request: Request, limits: Limits, room: Room) -> AsyncIterator[Form]:
    """The fields and files of a multipart body.

    Raises:
        Refusal: it is none, too large, or takes too long to come.
    """
    if media_type(request) != "multipart/form-data":
        raise Refusal("the body must be a form, with the header Content-Type: multipart/form-data", status=415)
    most = limits.image_bytes + limits.mask_bytes + limits.json_bytes
    async with read_body(request, most, limits, room) as body:
        yield await _parsed(request, body, limits)


def media_type(request: Request) -> str:
    """What a body is, as its header says, such as application/json."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@contextlib.asynccontextmanager
async def read_body(request: Request, most: int, limits: Limits, room: Room, instead: str = "") -> AsyncIterator[bytes]:
    """The bytes of a body; its memory is counted until the end.

    Args:
        most: bytes.
        instead: the end of the sentence that says that there are more.

    Raises:
        Refusal: it is too large, or takes too long to come.
    """
    told = request.headers.get("content-length", "")
    size = int(told) if told.isascii() and told.isdigit() and len(told) < 20 else None
    if size is not None and size > _DRAINED * most:
        raise _too_large(most, instead)
    with room.taken(most if size is None else min(size, most)):
        try:
            async with asyncio.timeout(limits.body_seconds):
                body = await _received(request, most, instead)
        except TimeoutError as error:
            raise Refusal(
                f"the body was not here within {limits.body_seconds:g} seconds", status=408, code="body_timeout"
            ) from error
        except ClientDisconnect as error:
            raise Refusal("the client went away before its request was here", status=400) from error
        yield body


async def _received(request: Request, most: int, instead: str) -> bytes:
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= most:
            body += chunk
        else:  # it goes on to be read, since clients listen to an answer only when they have sent all
            body.clear()
            if size > _DRAINED * most:
                break
    if size > most:
        raise _too_large(most, instead)
    return bytes(body)


def _too_large(most: int, instead: str) -> Refusal:
    return Refusal(f"the body has more than {most} bytes, which is the most that is taken{instead}", status=413)


class _InMemory(MultiPartParser):
    """A parser of forms that writes no file: the body is bounded, and in memory already."""

    spool_max_size = 1 << 40
    is_whole = False

    def on_end(self) -> None:
        """The last boundary was there."""
        self.is_whole = True

    def close(self) -> None:
        """Let go of all files, also of one that was cut off."""
        for file in self._files_to_close_on_error:
            file.close()


async def _parsed(request: Request, body: bytes, limits: Limits) -> Form:
    async def chunks() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), MIB):
            yield body[start : start + MIB]

    parser = _InMemory(request.headers, chunks(), max_files=_FILES, max_fields=_FIELDS, max_part_size=limits.json_bytes)
    form = Form({}, {}, {})
    try:
        for name, value in (await parser.parse()).multi_items():
            if isinstance(value, UploadFile):
                form.files.setdefault(name, []).append(await value.read())
                form.names.setdefault(name, []).append(value.filename or "")
            else:
                form.fields.setdefault(name, []).append(value)
    except MultiPartException as error:
        raise Refusal(f"the body is no form: {error.message}") from error
    except (FormParserError, KeyError, ValueError, UnicodeError) as error:
        raise Refusal("the body is no form: its parts cannot be told apart") from error
    finally:
        parser.close()
    if not parser.is_whole:
        raise Refusal("the body is cut off: its last boundary is missing")
    return form
