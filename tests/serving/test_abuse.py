"""What strangers send: slowly, by halves, too much, or of a kind that nobody asked for."""

from __future__ import annotations

import contextlib
import json
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from evil_pictures import chunk, header, png
from PIL import Image
from serving import Served, eventually, exchange, file_of, received, serving

from ddim.serving.api import Options
from ddim.serving.limits import Limits

JSON = "application/json"


@pytest.fixture(scope="module")
def hurried(models: dict[str, Callable[[], Any]]) -> Iterator[Served]:
    """A server that waits for nobody."""
    limits = Limits(header_seconds=0.4, body_seconds=0.4, json_bytes=10_000, image_bytes=200_000, mask_bytes=10_000)
    with serving(models, Options(limits=limits)) as found:
        yield found


def post(path: str, body: bytes, kind: str = JSON, length: int | None = None, more: str = "") -> bytes:
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n{more}\r\n"
    return head.encode() + body


def form(files: dict[str, bytes], **fields: str) -> tuple[bytes, str]:
    """A form's body and its kind."""
    start, body = '--b\r\nContent-Disposition: form-data; name="', b""
    for name, value in fields.items():
        body += f'{start}{name}"\r\n\r\n{value}\r\n'.encode()
    for name, data in files.items():
        body += f'{start}{name}"; filename="../../x"\r\n\r\n'.encode() + data + b"\r\n"
    return body + b"--b--\r\n", "multipart/form-data; boundary=b"


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error(answer: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return found


def is_well(served: Served) -> bool:
    """Whether it still draws."""
    return bool(served.client().images.generate(model="digits", prompt="", extra_body={"steps": 1}).data)


def until(sock: Any, end: bytes) -> bytes:
    """What comes until these bytes do."""
    found = b""
    while end not in found:
        part = sock.recv(65536)
        assert part, found
        found += part
    return found


CLOSE = "Connection: close\r\n"


# --- slowly, and by halves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"POST /v1/images/gen", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_half_a_request_is_not_waited_for(hurried: Served, sent: bytes) -> None:
    started = time.monotonic()
    assert exchange(hurried, sent) == b""
    assert time.monotonic() - started < 5
    assert is_well(hurried)


def test_letters_now_and_then_buy_no_time(hurried: Served) -> None:
    with hurried.connect() as sock:
        started = time.monotonic()

        def drip() -> None:
            for letter in b"GET /health HTTP/1.1\r\nX-Header: " + b"x" * 1000:
                sock.sendall(bytes([letter]))
                time.sleep(0.05)

        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            drip()
        assert time.monotonic() - started < 5


def test_the_next_request_of_a_connection_is_not_waited_for_either(hurried: Served) -> None:
    with hurried.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert until(sock, b"alive")
        time.sleep(0.6)  # between two requests there is time
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert until(sock, b"alive")
        started = time.monotonic()
        sock.sendall(b"GET /hea")
        assert received(sock) == b""
        assert time.monotonic() - started < 5


def test_a_slow_body_is_given_up(hurried: Served) -> None:
    with hurried.connect() as sock:
        sock.sendall(post("/v1/images/generations", b"", length=1000))
        for _ in range(10):
            sock.sendall(b" ")
            time.sleep(0.06)
        answer = until(sock, b"}}")
    assert status(answer) == 408
    assert error(answer)["code"] == "body_timeout"
    assert is_well(hurried)


def test_a_client_that_leaves_in_the_middle_of_its_body(hurried: Served) -> None:
    with hurried.connect() as sock:
        sock.sendall(post("/v1/images/edits", b"x" * 100, "multipart/form-data; boundary=b", length=5000))
    assert is_well(hurried)


def test_a_client_that_takes_no_answer_is_given_up(models: dict[str, Callable[[], Any]]) -> None:
    limits = Limits(send_seconds=0.5)
    with serving(models, Options(limits=limits, store_bytes=2**28)) as served:
        name = served.running.app.state.server.store.add(b"x" * 50_000_000, "image/png", "png")
        with served.connect() as sock:
            sock.sendall(f"GET /v1/images/files/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            eventually(lambda: bool(served.running.server_state.tasks))
            eventually(lambda: not served.running.server_state.tasks)
        assert is_well(served)


# --- too much --------------------------------------------------------------------------------------------------------


def test_huge_headers(hurried: Served) -> None:
    sent = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 200_000 + b"\r\n\r\n"
    assert status(exchange(hurried, sent)) in (400, 431)
    many = b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 50_000 + b"\r\n"
    assert status(exchange(hurried, many)) in (400, 431)
    assert is_well(hurried)


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_that_are_too_large(hurried: Served, chunked: bool) -> None:
    body = b'{"prompt": "' + b"x" * 30_000 + b'"}'
    if chunked:
        head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        sent = head + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk
    else:
        sent = post("/v1/images/generations", body, more=CLOSE)
    assert status(exchange(hurried, sent)) == 413
    told = post("/v1/images/generations", b"", length=10**15, more=CLOSE)  # which nobody waits for
    with hurried.connect() as sock:
        sock.sendall(told)
        assert status(until(sock, b"}}")) == 413


def test_bodies_share_a_bounded_memory(models: dict[str, Callable[[], Any]]) -> None:
    limits = Limits(all_bytes=1_000_000, body_seconds=5)
    with serving(models, Options(limits=limits)) as served:
        kind = "multipart/form-data; boundary=b"
        with served.connect() as sock:
            sock.sendall(post("/v1/images/edits", b"x", kind, length=900_000))
            eventually(lambda: served.running.app.state.server.room.left < 900_000)
            answer = exchange(served, post("/v1/images/edits", b"x" * 200_000, kind, more=CLOSE))
            assert status(answer) == 429
            assert b"retry-after" in answer.lower()
            assert is_well(served)
        eventually(lambda: served.running.app.state.server.room.left == 1_000_000)


def test_pictures_that_are_bombs(hurried: Served) -> None:
    """Their sizes are looked at before any pixel is decoded."""
    bomb = png(head=header(30_000, 30_000))
    rows = zlib.compress(bytes(20_000 * (6000 // 8 + 1)), 9)
    large = png(head=header(6000, 20_000, 1, 0), data=chunk(b"IDAT", rows))
    assert len(large) < 200_000
    for picture in (bomb, large, b"\x89PNG\r\n\x1a\n" + b"\0" * 50, file_of(Image.new("L", (8, 8)))[:-20]):
        body, kind = form({"image": picture}, prompt="x")
        started = time.process_time()
        answer = exchange(hurried, post("/v1/images/edits", body, kind, more=CLOSE))
        assert status(answer) == 400
        assert error(answer)["param"] == "image"
        assert time.process_time() - started < 2
    good = file_of(Image.new("RGB", (64, 64)))
    body, kind = form({"image": good, "mask": large[:9000]}, prompt="x")
    assert error(exchange(hurried, post("/v1/images/edits", body, kind, more=CLOSE)))["param"] == "mask"


def test_more_connections_than_there_may_be(
    models: dict[str, Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddim.serving.running._CONNECTIONS", 20)
    with serving(models, Options(limits=Limits(header_seconds=1))) as served, contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(served.connect())
        eventually(lambda: len(served.running.server_state.connections) == 20)
        with served.connect() as further:
            assert received(further) == b""
        eventually(lambda: not served.running.server_state.connections)  # as they have said nothing
        assert is_well(served)


# --- of the wrong kind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind", "wanted"),
    [
        (b"", JSON, 400),
        (b"{", JSON, 400),
        (b"[]", JSON, 400),
        (b"null", JSON, 400),
        (b'"x"', JSON, 400),
        (b"[" * 9000, JSON, 400),
        (b'{"prompt": NaN}', JSON, 400),
        (b'{"prompt": "\\ud800"}', JSON, 400),
        (b'{"prompt": "\xff\xfe"}', JSON, 400),
        (b'{"prompt": "x", "n": 1e999}', JSON, 400),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", JSON, 400),
        (b'{"prompt": {"a": []}}', JSON, 400),
        (b'{"prompt": "x"}', "text/plain", 415),
        (b'{"prompt": "x"}', "application/x-www-form-urlencoded", 415),
        (b'{"prompt": "x"}', "", 415),
    ],
)
def test_json_that_is_none(hurried: Served, body: bytes, kind: str, wanted: int) -> None:
    answer = exchange(hurried, post("/v1/images/generations", body, kind, more=CLOSE))
    assert status(answer) == wanted
    assert error(answer)["message"]
    assert b"x-request-id: req_" in answer.lower()


GOOD, KIND = form({"image": file_of(Image.new("RGB", (64, 64)))}, prompt="x", steps="2")


@pytest.mark.parametrize(
    ("body", "kind", "wanted"),
    [
        (GOOD, KIND, 200),
        (b"", KIND, 400),
        (GOOD[:-30], KIND, 400),
        (GOOD, "multipart/form-data", 400),
        (GOOD, "multipart/form-data; boundary=", 400),
        (GOOD, "multipart/form-data; boundary=" + "x" * 500, 400),
        (GOOD, "multipart/form-data; boundary=other", 400),
        (GOOD, KIND + "; charset=nothing", 200),
        (GOOD, JSON, 415),
        (b"--b\r\nno header\r\n\r\nx\r\n--b--", KIND, 400),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--", KIND, 400),
        (b"--b\r\n" * 1000, KIND, 400),
        (form({}, **{f"a{n}": "x" for n in range(200)})[0], KIND, 400),
        (form({f"image{n}": b"x" for n in range(30)})[0], KIND, 400),
        (form({"other": b"x"}, prompt="x")[0], KIND, 400),
        (form({}, prompt="x", image="https://example.org/x.png")[0], KIND, 400),
        (form({}, prompt="x", image="/etc/passwd")[0], KIND, 400),
        (form({}, prompt="x", n="two")[0], KIND, 400),
        (form({}, prompt="x", guidance_interval="[[[")[0], KIND, 400),
        (form({}, prompt="x", guidance_interval='{"a": 1}')[0], KIND, 400),
    ],
)
def test_forms_that_are_none(hurried: Served, body: bytes, kind: str, wanted: int) -> None:
    answer = exchange(hurried, post("/v1/images/edits", body, kind, more=CLOSE))
    assert status(answer) == wanted, answer
    assert wanted == 200 or error(answer)["message"]


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 100, 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"GET /v1/images/generations HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
        (b"DELETE /v1/models/emoji HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
        (b"GET /v1/images/files/../../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"GET /v1/models/..%2f..%2fetc HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"GET /v1/models/\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: close, upgrade\r\n\r\n", 200),
        (b"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    ],
)
def test_requests_that_are_none(hurried: Served, sent: bytes, wanted: int) -> None:
    assert status(exchange(hurried, sent)) == wanted


def test_after_all_this_it_is_well(hurried: Served) -> None:
    assert is_well(hurried)
    assert not hurried.pool.users("digits")
    eventually(lambda: hurried.running.app.state.server.room.left == Limits().all_bytes)
