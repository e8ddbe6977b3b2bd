"""The server's log: a line for each thing, which nobody can break."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import openai
import pytest
from serving import eventually, serving

from ddim.serving.api import Options
from ddim.serving.logs import LOG, log_to, tell

EVIL = 'a\n2026-01-01 forged line "quoted" \x1b[2J'


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_line_each(kind: str) -> None:
    stream = io.StringIO()
    before = (LOG.handlers, LOG.propagate)
    with log_to(stream, kind):  # type: ignore[arg-type]
        tell("drew", model="emoji", seconds=0.25, prompt=EVIL, user=None)
        warnings.filterwarnings("always", message="something")
        warnings.warn("something\nis odd", stacklevel=1)
        tell("ended", level=logging.ERROR, n=1)
    assert (LOG.handlers, LOG.propagate) == before
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    if kind == "json":
        first, odd, second = map(json.loads, lines)
        assert (first["message"], first["model"], first["seconds"], first["prompt"]) == ("drew", "emoji", 0.25, EVIL)
        assert "user" not in first
        assert (odd["level"], odd["message"]) == ("warning", "something\nis odd")
        assert second["level"] == "error"
    else:
        assert " drew model=emoji seconds=0.25 prompt=" in lines[0]
        assert "\x1b" not in lines[0]
        assert lines[1].endswith("warning: something is odd")
        assert lines[2].endswith("error: ended n=1")


@pytest.mark.parametrize("logs_prompts", [False, True])
def test_prompts_are_logged_when_told_alone(logs_prompts: bool, models: dict[str, Callable[[], Any]]) -> None:
    """Whatever is done with them: drawn, cut off, refused, or failed with."""
    stream = io.StringIO()
    with log_to(stream), serving(models, Options(logs_prompts=logs_prompts)) as served:
        images = served.client().images
        for given in ({}, {"n": 11}, {"size": "9x9"}, {"extra_body": {"strength": 1}}, {"extra_body": {"blyu": 2}}):
            with contextlib.suppress(openai.BadRequestError):
                images.generate(**{"prompt": "a blyu dog " * 50, "extra_body": {"steps": 1}, **given})  # type: ignore[arg-type]
        with pytest.raises(openai.APIError):
            images.generate(prompt="a blyu dog", extra_body={"steps": 1, "guidance_scale": 1000, "eta": 100})
    assert stream.getvalue().count(" request ") >= 5
    assert ("a blyu dog" in stream.getvalue()) == logs_prompts


# The fast test beside it is test_prompts_are_logged_when_told_alone.
@pytest.mark.slow
def test_the_rate_is_told_while_something_is_drawn(
    models: dict[str, Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddim.serving.api._EVERY", 0.05)
    stream = io.StringIO()

    def told() -> list[Any]:
        lines = map(json.loads, stream.getvalue().splitlines())
        return [line for line in lines if line["message"] == "drawing" and line["model"] == "mine"]

    with log_to(stream, "json"), serving({"mine": models["emoji"]}) as served:
        served.client().images.generate(prompt="x", n=2, extra_body={"steps": 30})
        eventually(lambda: len(told()) > 1)
        count = len(told())
        time.sleep(0.3)
        assert len(told()) <= count + 1  # nothing is said of nothing
    assert max(line["steps_a_second"] for line in told()) > 0
    assert max(line["running"] for line in told()) == 2


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
