"""Several replicas behind one door, here within one process: whatever does not depend on where they are."""

from __future__ import annotations

import io
import json
import re
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import openai
import pytest
from serving import Served, eventually, exchange, file_of, opened, taking_in
from starlette.types import Message, Scope

from ddim.serving.api import Options, create_app
from ddim.serving.front import ReplicaLostError, create_front, of_replica
from ddim.serving.keys import Keys
from ddim.serving.limits import Limits
from ddim.serving.pool import Pool
from ddim.serving.replica import Replica
from ddim.serving.totals import Totals

KEY = "a-key-of-enough-letters"
OPTIONS = Options(
    keys=Keys([KEY]), limits=Limits(n=4, prompt_letters=100, image_bytes=100_000), origins=("https://example.org",)
)


class Here:
    """Two replicas in the event loop of the front, which take turns.

    Attributes:
        lost: a request is lost after so many messages that its replica has sent; None loses none.
    """

    def __init__(self, load: Callable[[str], Any]) -> None:
        pools = [Pool(("digits",), load, max_queue=8) for _ in range(2)]
        self.pool = pools[0]
        options = of_replica(OPTIONS, 2)
        self.replicas = [
            Replica(lambda pool=pool: create_app(pool, options), name, io.StringIO())  # type: ignore[misc]
            for name, pool in zip("ab", pools, strict=True)
        ]
        self.turn = 0
        self.lost: int | None = None
        self.scopes: list[Scope] = []

    async def answer(self, scope: Scope, body: bytes, is_closing: bool) -> AsyncGenerator[list[Message]]:
        self.scopes.append(scope)
        self.turn = 1 - self.turn
        sent = 0
        if self.lost == 0:
            raise ReplicaLostError("it was killed")
        async for messages in self.replicas[self.turn].answer(scope, body, is_closing):
            for message in messages:
                yield [message]
                sent += 1
                if sent == self.lost:
                    raise ReplicaLostError("it was killed")

    async def all(self, method: str, *arguments: Any) -> list[Any]:
        return [await getattr(replica, method)(*arguments) for replica in self.replicas]


@pytest.fixture(scope="module")
def here(models: dict[str, Callable[[], Any]]) -> Here:
    return Here(lambda name: models[name]())


@pytest.fixture(scope="module")
def front(here: Here) -> Iterator[Served]:
    with taking_in(create_front(here, ("digits",), OPTIONS), here.pool) as served:
        yield served
        for replica in here.replicas:  # in whose threads nothing is left to do
            for model in replica._server.pool.loaded:
                model.engine.close(drain=False)


def draw(front: Served, **more: Any) -> Any:
    extra = {"steps": 2, "seed": 7, **more.pop("extra", {})}
    return front.client(api_key=KEY, **more.pop("client", {})).images.generate(prompt="", extra_body=extra, **more)


def read(front: Served, path: str, key: str | None = KEY) -> tuple[int, str]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(front.url + path, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_whoever_draws_it_is_the_same_picture(front: Served, here: Here) -> None:
    first, second = draw(front), draw(front)
    assert first.data[0].b64_json == second.data[0].b64_json
    assert len({scope["ddim"]["request"] for scope in here.scopes}) == len(here.scopes)
    assert all(len(replica._server.pool.loaded) == 1 for replica in here.replicas)


def test_keys_are_looked_at_where_requests_come_in_and_go_no_further(front: Served, here: Here) -> None:
    before = len(here.scopes)
    with pytest.raises(openai.AuthenticationError, match="needs a key"):
        front.client(api_key="another-key-of-letters").images.generate(prompt="")
    assert read(front, "/metrics", key=None)[0] == 401
    assert len(here.scopes) == before
    draw(front)
    assert not {b"authorization", b"origin"} & {name.lower() for name, _ in here.scopes[-1]["headers"]}


def test_pages_of_other_sites_may_draw_where_they_are_allowed(front: Served) -> None:
    request = urllib.request.Request(
        f"{front.url}/v1/models", headers={"Authorization": f"Bearer {KEY}", "Origin": "https://example.org"}
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.headers.get_all("Access-Control-Allow-Origin") == ["https://example.org"]
        assert len(answer.headers.get_all("X-Request-Id")) == 1
        assert [model["id"] for model in json.load(answer)["data"]] == ["digits"]


def test_limits_are_those_of_one_server(front: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="prompt"):
        front.client(api_key=KEY).images.generate(prompt="x" * 101)
    with pytest.raises(openai.BadRequestError, match="n"):
        draw(front, n=5)
    sent = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {KEY}\r\n"
    large = b"Content-Type: application/json\r\nContent-Length: 900000000\r\n\r\n"
    assert exchange(front, sent.encode() + large + b"{").startswith(b"HTTP/1.1 413")
    assert read(front, "/v1/nothing")[0] == 404
    assert read(front, "/openapi.json")[1].startswith("{")


def test_forms_come_through(front: Served) -> None:
    picture = opened(draw(front).data[0])
    client = front.client(api_key=KEY)
    with pytest.warns(DeprecationWarning, match="deprecated"):  # the client's own
        varied = client.images.create_variation(image=("a.png", file_of(picture)), extra_body={"steps": 2})
    assert opened(varied.data[0]).size == picture.size  # type: ignore[index]


def test_a_full_queue_is_answered_with_429_and_when_to_come_again(front: Served) -> None:
    """Eight pictures may wait for each of the replicas, beside those that are drawn."""
    streams = [draw(front, stream=True, n=4, extra={"steps": 999}) for _ in range(12)]
    with pytest.raises(openai.RateLimitError) as caught:
        draw(front, n=4)
    assert caught.value.response.headers["retry-after"]
    for stream in streams:
        stream.close()
    eventually(lambda: 'ddim_running{model="digits"} 0.0' in read(front, "/metrics")[1])


def test_pictures_are_found_whoever_keeps_them(front: Served) -> None:
    for _ in range(2):
        (picture,) = draw(front, response_format="url").data
        for _ in range(2):
            with urllib.request.urlopen(picture.url) as answer:
                assert answer.read(4) == b"\x89PNG"
                assert answer.headers["Content-Type"] == "image/png"
    assert read(front, "/v1/images/files/none.png", key=None)[0] == 404


def test_metrics_are_those_of_all(front: Served) -> None:
    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", read(front, "/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else 0.0

    drawn = 'ddim_images_total{model="digits"}'
    answered = 'ddim_requests_total{model="digits",route="generations",status="200"}'
    timed = 'ddim_request_seconds_count{model="digits",route="generations"}'
    before = [value(name) for name in (drawn, answered, timed)]
    for _ in range(4):
        draw(front)
    assert [value(name) for name in (drawn, answered, timed)] == [each + 4 for each in before]
    assert value('ddim_max_batch{model="digits"}') == 2 * 16
    assert value("ddim_models_loaded") == 2


def test_the_counts_of_a_replica_that_is_gone_stay() -> None:
    def said(images: int, running: int, created: float) -> bytes:
        return (
            f"# HELP a_total drawn\n# TYPE a_total counter\na_total{{model=\"x\"}} {images}.0\n"
            f"# HELP a_created drawn\n# TYPE a_created gauge\na_created{{model=\"x\"}} {created}\n"
            f"# HELP b now\n# TYPE b gauge\nb {running}.0\n"
        ).encode()  # fmt: skip

    totals = Totals()
    alone = Totals().text({"r": said(3, 1, 5.0)})
    assert alone == said(3, 1, 5.0)
    assert totals.text({"r": said(3, 1, 5.0), "s": said(4, 2, 6.0)}) == said(7, 3, 5.0)
    assert totals.text({"s": said(5, 2, 6.0), "t": said(1, 1, 9.0)}) == said(9, 3, 5.0)


def test_a_lost_replica_is_answered_with_what_clients_retry(front: Served, here: Here) -> None:
    here.lost = 0
    try:
        with pytest.raises(openai.InternalServerError) as caught:
            draw(front)
        assert caught.value.status_code == 503
        assert caught.value.body["code"] == "replica_lost"  # type: ignore[index]
        assert caught.value.response.headers["retry-after"] == "1"
        here.lost = 2  # the head of an answer was sent already: the connection closes
        with pytest.raises(openai.APIConnectionError):
            draw(front)
        here.lost = 4
        stream = draw(front, stream=True, partial_images=2, extra={"steps": 10})
        with pytest.raises(openai.APIError, match="send it again"):
            list(stream)
    finally:
        here.lost = None


def test_it_is_ready_when_one_of_them_is(front: Served) -> None:
    eventually(lambda: read(front, "/ready", key=None)[0] == 200)
    assert json.loads(read(front, "/ready", key=None)[1]) == {"status": "ready", "models": ["digits"]}
    assert read(front, "/health", key=None) == (200, '{"status":"alive"}')


def test_a_client_that_goes_away_is_not_drawn_for(front: Served) -> None:
    def running() -> bool:
        return 'ddim_running{model="digits"} 0.0' not in read(front, "/metrics")[1]

    stream = draw(front, stream=True, n=2, extra={"steps": 999})
    eventually(running)
    stream.close()
    eventually(lambda: not running())


def test_what_ends_takes_no_more(here: Here) -> None:
    app = create_front(here, ("digits",), Options())
    with taking_in(app, here.pool) as front:
        app.state.server.is_closing = True
        with pytest.raises(openai.InternalServerError, match="about to end"):
            draw(front)
        assert read(front, "/ready")[0] == 503
