"""The server's log: a line for each thing, which nobody can break."""

from __future__ import annotations

import io
import json
import logging

import pytest

from ddim.serving.logs import LOG, log_to, tell

EVIL = 'a\n2026-01-01 forged line "quoted" \x1b[2J'


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_line_each(kind: str) -> None:
    stream = io.StringIO()
    before = (LOG.handlers, LOG.propagate)
    with log_to(stream, kind):  # type: ignore[arg-type]
        tell("drew", model="emoji", seconds=0.25, prompt=EVIL, user=None)
        tell("ended", level=logging.ERROR, n=1)
    assert (LOG.handlers, LOG.propagate) == before
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    if kind == "json":
        first, second = map(json.loads, lines)
        assert (first["message"], first["model"], first["seconds"], first["prompt"]) == ("drew", "emoji", 0.25, EVIL)
        assert "user" not in first
        assert second["level"] == "error"
    else:
        assert " drew model=emoji seconds=0.25 prompt=" in lines[0]
        assert "\x1b" not in lines[0]
        assert lines[1].endswith("error: ended n=1")


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_fault_has_its_traceback(kind: str) -> None:
    stream = io.StringIO()
    with log_to(stream, kind):  # type: ignore[arg-type]
        try:
            raise RuntimeError("why")
        except RuntimeError as error:
            tell("failed", error=error)
    assert "RuntimeError: why" in stream.getvalue()
    if kind == "json":
        assert "Traceback" in json.loads(stream.getvalue())["traceback"]
