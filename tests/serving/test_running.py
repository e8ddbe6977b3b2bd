"""The process: how it starts, ends in order, is killed, and starts again."""

from __future__ import annotations

import json
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import eventually, opened, process

from ddim.cli import main
from ddim.errors import ConfigError
from ddim.serving.running import listening


@pytest.fixture
def client() -> Iterator[Callable[[int], openai.OpenAI]]:
    """What makes a client of a port; they are closed at the end."""
    made: list[openai.OpenAI] = []

    def make(port: int) -> openai.OpenAI:
        made.append(openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0, timeout=60))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_sigterm_lets_what_runs_finish_and_ends_with_0(tmp_path: Path, client: Callable[[int], openai.OpenAI]) -> None:
    log = tmp_path / "log"
    with process(log, "--port", "0", "--model", "emoji", "--log-prompts") as (running, port):
        draws = client(port).images
        draws.generate(prompt="a red heart", extra_body={"steps": 1})
        answers: list[Any] = []
        is_drawing = threading.Event()
        stream = draws.generate(prompt="a dog", stream=True, partial_images=3, extra_body={"steps": 60})

        def follow() -> None:
            for event in stream:
                answers.append(event)
                is_drawing.set()

        work = threading.Thread(target=follow)
        work.start()
        assert is_drawing.wait(60)
        running.send_signal(signal.SIGTERM)
        eventually(lambda: _is_refused(port))
        assert running.wait(60) == 0
        work.join(60)
        kinds = ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
        assert [event.type for event in answers] == kinds
        assert opened(answers[-1]).size == (64, 64)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    told = [line["message"] for line in lines]
    assert told.index("serving") < told.index("model loaded") < told.index("request") < told.index("ended")
    assert any(line.startswith("max_batch is") for line in told)  # which the engine says
    drawn = next(line for line in lines if line.get("prompt") == "a red heart")
    assert (drawn["status"], drawn["model"], drawn["n"], drawn["level"]) == (200, "emoji", 1, "info")


@pytest.mark.slow  # it starts two processes, after those that the tests above have started
def test_killed_while_it_draws_fifty_pictures_and_started_again(
    tmp_path: Path, client: Callable[[int], openai.OpenAI]
) -> None:
    """Clients see a closed connection and no picture; the next process serves at once, at the same port."""
    log = tmp_path / "log"
    with process(log, "--port", "0", "--model", "digits") as (running, port):
        metrics = f"http://127.0.0.1:{port}/metrics"
        draws = client(port).images
        draws.generate(prompt="", extra_body={"steps": 1})
        failures: list[Exception] = []

        def draw() -> None:
            try:
                client(port).images.generate(prompt="", n=10, extra_body={"steps": 999})
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=draw) for _ in range(5)]  # 50 pictures
        for thread in threads:
            thread.start()
        eventually(lambda: b'ddim_queued{model="digits"} 0.0' not in urllib.request.urlopen(metrics).read())
        running.kill()
        assert running.wait(40) == -signal.SIGKILL
        for thread in threads:
            thread.join(60)
        assert [type(error) for error in failures] == [openai.APIConnectionError] * 5

    with process(log, "--port", str(port), "--model", "digits", "--grace", "600") as (running, again):
        assert again == port
        assert client(port).images.generate(prompt="", extra_body={"steps": 1}).data
        held = client(port).images.generate(prompt="", stream=True, n=10, extra_body={"steps": 999})
        running.send_signal(signal.SIGINT)
        eventually(lambda: _is_refused(port))  # it has heard of that: two signals at once may come as one
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0
        held.close()


def _is_refused(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
    except OSError:
        return True
    return False


def test_ports_and_hosts_that_cannot_be_listened_at(capsys: pytest.CaptureFixture[str]) -> None:
    with listening("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        assert main(["serve", "--port", str(port), "--model", "digits"]) == 1
        assert f"--port {port} cannot be listened at: Address already in use" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--host"):
        listening("no.such.host.invalid", 0)
