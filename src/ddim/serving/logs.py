"""The server's log: a line for each thing that happened, as text for people or as JSON for programs."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from typing import IO, Any, Literal

__all__ = ["LOG", "LogFormat", "log_to", "tell"]

LogFormat = Literal["text", "json"]

LOG = logging.getLogger("ddim.serving")

_FIELDS = "fields"  # of a record, the values that belong to it, by name


def tell(message: str, *, level: int = logging.INFO, error: BaseException | None = None, **fields: Any) -> None:
    """Log what happened, with the values that belong to it; those that are None are left out.

    Args:
        message: a few words that are the same whenever the same happens.
        error: with whose traceback.
    """
    LOG.log(
        level,
        message,
        exc_info=error,
        extra={_FIELDS: {name: value for name, value in fields.items() if value is not None}},
    )


@contextlib.contextmanager
def log_to(stream: IO[str] | None = None, kind: LogFormat = "text") -> Iterator[None]:
    """Write the server's log, and what uvicorn and warnings have to say, to a stream, which is stderr unless told."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(_AsJSON() if kind == "json" else _AsText())
    loggers = {LOG: logging.INFO, logging.getLogger("uvicorn"): logging.WARNING}
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]
    for logger, level in loggers.items():
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            # It quotes the prompt, which is nobody's here; the answer says so to whom it concerns.
            warnings.filterwarnings("ignore", message="the text encoder reads")
            warnings.showwarning = lambda message, *_: tell(str(message), level=logging.WARNING)
            yield
    finally:
        for logger, handlers, propagates, level in before:
            logger.handlers, logger.propagate = handlers, propagates
            logger.setLevel(level)


class _AsText(logging.Formatter):
    """`2026-01-31 12:00:00 drew  model=emoji seconds=0.31`, with what is no plain word in quotes."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {name}={_word(value)}" for name, value in getattr(record, _FIELDS, {}).items())
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        line = f"{when} {level}{' '.join(record.getMessage().split())}{fields}"
        return line if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"


def _word(value: Any) -> str:
    """A value in one word, in which nothing can begin a new line."""
    if isinstance(value, str):
        return value if value.isprintable() and value.isascii() and " " not in value and value else json.dumps(value)
    return json.dumps(value)


class _AsJSON(logging.Formatter):
    """One object in a line."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {"time": when, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, _FIELDS, {})
        if record.exc_info is not None:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
