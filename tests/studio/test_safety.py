"""What a stranger can do to a studio who sends requests of his own: over HTTP, to a real one."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsing import Studio, Visitor, running_studio
from PIL import Image
from serving import eventually

from ddim.studio import users

API = "/gradio_api"
PNG = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(PNG, "PNG")
PICTURE = PNG.getvalue()
PASSWORD = "correct horse"


@pytest.fixture
def client(studio: Studio) -> Iterator[httpx.Client]:
    """A browser that has opened the page, less the browser."""
    with httpx.Client(base_url=studio.url, timeout=30) as made:
        assert made.get("/").status_code == 200
        yield made


@contextmanager
def page_of(client: httpx.Client) -> Iterator[str]:
    """What an open page calls itself."""
    name = secrets.token_hex(5)
    with client.stream("GET", f"{API}/heartbeat/{name}") as answer:
        assert answer.status_code == 200
        beats = answer.iter_bytes()  # kept, since the connection ends with it
        next(beats)
        yield name


def uploaded(client: httpx.Client, data: bytes = PICTURE, name: str = "picture.png") -> str:
    answer = client.post(f"{API}/upload", files={"files": (name, data, "image/png")})
    assert answer.status_code == 200, answer.text
    (path,) = answer.json()
    return str(path)


def file_data(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def listener(client: httpx.Client, api_name: str) -> dict[str, Any]:
    """The one of the page's listeners that has this name."""
    found: dict[str, Any] = next(
        each for each in client.get("/config").json()["dependencies"] if each["api_name"] == api_name
    )
    return found


def join(client: httpx.Client, page: str, function: int, data: list[Any], **more: Any) -> httpx.Response:
    return client.post(
        f"{API}/queue/join", json={"session_hash": page, "fn_index": function, "data": data, "trigger_id": None}, **more
    )


def outcome(client: httpx.Client, page: str) -> str:
    """All that the server says of what a page asked for."""
    with client.stream("GET", f"{API}/queue/data", params={"session_hash": page}) as answer:
        assert answer.status_code == 200
        return "".join(answer.iter_text())


# --- what the page has no use for is not there -----------------------------------------------------------------------

UNUSED = [
    ("GET", f"{API}/proxy=https://example.org/"), ("GET", "/monitoring"), ("GET", "/monitoring/summary"),
    ("GET", "/monitoring/key"), ("GET", f"{API}/deep_link?session_hash=abcdefgh"), ("GET", f"{API}/runs"),
    ("POST", f"{API}/run-history/connect"), ("GET", f"{API}/run-history/buckets"), ("GET", f"{API}/openapi.json"),
    ("POST", f"{API}/call/run"), ("POST", f"{API}/call/v2/run"), ("POST", f"{API}/api/run"), ("POST", f"{API}/run/run"),
    ("GET", f"{API}/call/run/abcdefgh"), ("POST", f"{API}/stream/abcdefgh"), ("POST", f"{API}/stream/abcdefgh/close"),
    ("GET", f"{API}/stream/abcdefgh/1/2/playlist.m3u8"), ("GET", f"{API}/file/etc/passwd"), ("GET", f"{API}/token"),
    ("POST", f"{API}/process_recording"), ("GET", f"{API}/custom_component/x/client/component/index.js"),
    ("GET", f"{API}/startup-events"), ("GET", f"{API}/queue/status"), ("GET", f"{API}/dev/reload"),
    ("POST", f"{API}/vibe-edit/"), ("GET", f"{API}/vibe-code/"), ("GET", "/svelte/x"), ("GET", f"{API}/mcp/"),
    ("OPTIONS", f"{API}/queue/join"), ("PUT", f"{API}/upload"), ("DELETE", "/"), ("TRACE", "/"), ("POST", "/"),
    ("GET", f"{API}//queue/join"), ("GET", "/gradio_api"), ("GET", "/v1/models"), ("GET", "/metrics"),
    ("POST", f"{API}/component_server"),
]  # fmt: skip


def test_what_the_page_has_no_use_for_is_not_there(client: httpx.Client) -> None:
    for method, path in UNUSED:
        assert client.request(method, path).status_code in (404, 405), (method, path)


# --- files -----------------------------------------------------------------------------------------------------------


def test_no_file_of_the_machine_is_given_out(client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("a secret")
    own = uploaded(client)
    places = [
        "/etc/passwd", str(tmp_path / "secret.txt"), f"{own}/../../../../../../etc/passwd", "../../etc/passwd",
        f"{Path(own).parent}", f"{Path(own).parent.parent}/../../../etc/passwd", "/proc/self/environ", "etc/passwd",
        "file:///etc/passwd", "https://example.org/", "http://127.0.0.1:1/", "//example.org/x", "\x00", "/" * 5000, "~",
        "%2Fetc%2Fpasswd", "..%2f..%2fetc%2fpasswd", own + "\x00.png", "/dev/zero",
    ]  # fmt: skip
    for place in places:
        for path in (place, place.replace("/", "%2F")):
            with httpx.Client(base_url=client.base_url, cookies=client.cookies) as other:
                answer = other.get(f"{API}/file={path.replace(chr(0), '%00')}")
            assert answer.status_code in (400, 403, 404), (path, answer.status_code, answer.text[:100])
    assert client.get(f"{API}/file={own}").content == PICTURE


def test_no_file_of_the_machine_is_taken_for_an_upload(client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PICTURE)
    function = listener(client, "drop")["id"]
    with page_of(client) as page:
        for place in ("/etc/passwd", str(tmp_path / "secret.png"), "https://example.org/x.png", "secret.png", ""):
            for given in (file_data(place), {"path": place}, [{"a": {"image": file_data(place)}}]):
                answer = join(client, page, function, [given])
                assert answer.status_code == 403, (place, answer.text)
    assert (tmp_path / "secret.png").exists()


def test_files_of_one_visitor_are_not_anothers(studio: Studio, client: httpx.Client) -> None:
    path = uploaded(client)
    with httpx.Client(base_url=studio.url) as other:
        other.get("/")
        assert other.get(f"{API}/file={path}").status_code == 403
        with page_of(other) as page:
            assert join(other, page, listener(other, "drop")["id"], [file_data(path)]).status_code == 403
        assert uploaded(other) != path  # the same file of two visitors is two files
    assert client.get(f"{API}/file={path}").status_code == 200


def test_what_was_uploaded_never_runs_as_the_studios_own_page(client: httpx.Client) -> None:
    for name in ("evil.html", "evil.svg", "evil.js", "evil.png"):
        path = uploaded(client, b"<script>alert(1)</script>", name)
        headers = client.get(f"{API}/file={path}").headers
        assert headers["content-security-policy"].startswith("sandbox; default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name",
    ["../../evil.png", "/etc/evil.png", "a\\..\\b.png", ".bashrc", "x" * 300 + ".png", "\u202egnp.exe", "..", "."],
)
def test_the_name_of_an_upload_leads_nowhere(client: httpx.Client, name: str) -> None:
    folder = Path(uploaded(client)).parent.parent
    path = Path(uploaded(client, name=name))
    assert path.parent.parent == folder
    assert len(path.name) <= 81
    assert not path.name.startswith(".")
    assert client.get(f"{API}/file={path}").content == PICTURE


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_uploads_are_bounded(client: httpx.Client) -> None:
    too_large = b"\0" * 50_000_001
    assert client.post(f"{API}/upload", files={"files": ("a.png", too_large)}).status_code == 413
    many = [("files", (f"{number}.png", PICTURE)) for number in range(21)]
    assert client.post(f"{API}/upload", files=many).status_code == 400
    assert client.post(f"{API}/upload", files={"other": ("a.png", PICTURE)}).status_code == 400
    assert client.post(f"{API}/upload", content=b"x").status_code == 415
    kept = [Path(uploaded(client)) for _ in range(70)]
    assert [each.exists() for each in kept] == [False] * 6 + [True] * 64
    assert len(client.post(f"{API}/upload", files=many[:20]).json()) == 20


def test_bodies_are_bounded(client: httpx.Client) -> None:
    with page_of(client):
        for path in ("queue/join", "run/predict", "cancel", "reset"):
            assert client.post(f"{API}/{path}", content=b" " * 54_000_001).status_code == 413
            assert client.post(f"{API}/{path}", content=b"[" * 100_000).status_code == 400
            assert client.post(f"{API}/{path}", content=b"[]").status_code == 400
        assert client.post("/login", content=b"a" * (2 * 2**20)).status_code == 413


# --- whose page it is ------------------------------------------------------------------------------------------------


def test_nobody_acts_for_anothers_page(studio: Studio, client: httpx.Client) -> None:
    function = listener(client, "drop")["id"]
    with page_of(client) as page, httpx.Client(base_url=studio.url, timeout=30) as other:
        other.get("/")
        assert other.get(f"{API}/heartbeat/{page}").status_code == 403
        assert other.get(f"{API}/queue/data", params={"session_hash": page}).status_code == 403
        assert join(other, page, function, [None]).status_code == 403
        cancel = {"session_hash": page, "fn_index": function, "event_id": "x"}
        assert other.post(f"{API}/cancel", json=cancel).status_code == 403
        stop = listener(client, "stop")["id"]
        data = {"session_hash": page, "fn_index": stop, "data": []}
        assert other.post(f"{API}/run/predict", json=data).status_code == 403
        assert client.post(f"{API}/run/predict", json=data).status_code == 200
        for wrong in (None, 1, "", "../x", "a" * 65, {"a": 1}):
            assert join(other, wrong, function, [None]).status_code == 403  # type: ignore[arg-type]


def test_without_the_cookie_of_an_opened_page_nothing_answers(studio: Studio, client: httpx.Client) -> None:
    path = uploaded(client)
    for cookies in ({}, {next(iter(client.cookies)): "wrong"}):
        with httpx.Client(base_url=studio.url, cookies=cookies) as other:
            assert other.post(f"{API}/upload", files={"files": ("a.png", PICTURE)}).status_code == 403
            assert other.get(f"{API}/file={path}").status_code == 403
            assert other.get("/config").status_code == 403
            assert other.get(f"{API}/heartbeat/abcdefgh").status_code == 403
            assert join(other, "abcdefgh", 0, []).status_code == 403


def test_pages_of_a_browser_are_bounded(client: httpx.Client) -> None:
    function = listener(client, "drop")["id"]
    answers = [join(client, f"page{number:04}", function, [None]).status_code for number in range(66)]
    assert answers == [200] * 64 + [429] * 2


# --- pages of other sites --------------------------------------------------------------------------------------------

FOREIGN = [
    {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:1"}, {"Origin": "http://127.0.0.1"},
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
]  # fmt: skip


def test_a_page_of_another_site_can_ask_for_nothing(client: httpx.Client) -> None:
    function = listener(client, "drop")["id"]
    path = uploaded(client)
    with page_of(client) as page:
        for headers in FOREIGN:
            answers = [
                join(client, page, function, [None], headers=headers),
                client.post(f"{API}/upload", files={"files": ("a.png", PICTURE)}, headers=headers),
                client.get(f"{API}/file={path}", headers=headers),
                client.get("/config", headers=headers),
                client.post("/login", data={"username": "a", "password": "b"}, headers=headers),
                client.get("/logout", headers=headers),
            ]
            for answer in answers:
                assert answer.status_code == 403, (headers, answer.url)
                assert not [each for each in answer.headers if each.startswith("access-control-")]
            opened = client.get(
                "/", headers=headers
            )  # a link from elsewhere opens the page, which nobody else may read
            assert opened.status_code == 200
            assert not [each for each in opened.headers if each.startswith("access-control-")]
            assert "frame-ancestors 'none'" in opened.headers["content-security-policy"]
        for headers in ({"Origin": str(client.base_url).rstrip("/")}, {"Sec-Fetch-Site": "same-origin"}, {}):
            assert join(client, page, function, [None], headers=headers).status_code == 200


def test_a_name_that_was_made_to_mean_this_machine_is_refused(studio: Studio) -> None:
    port = studio.url.rpartition(":")[2]
    for host, status in (
        ("evil.example", 403), (f"evil.example:{port}", 403), ("", 403), ("127.0.0.1.evil.example", 403),
        (f"localhost:{port}", 200), (f"127.0.0.1:{port}", 200), (f"[::1]:{port}", 200), ("192.168.0.7", 200),
    ):  # fmt: skip
        assert httpx.get(studio.url, headers={"Host": host}).status_code == status, host


# --- what goes when somebody goes ------------------------------------------------------------------------------------


def test_uploads_go_with_the_page_whether_they_were_used_or_not(client: httpx.Client) -> None:
    function = listener(client, "drop")["id"]
    with page_of(client) as page:
        unseen, seen = Path(uploaded(client)), Path(uploaded(client))
        assert join(client, page, function, [file_data(str(seen))]).status_code == 200
        assert "process_completed" in outcome(client, page)
        with page_of(client):
            pass
        assert unseen.exists()
    folder = unseen.parents[1]
    eventually(lambda: not list(folder.parent.glob(f"{folder.name}*")), 10)
    assert not unseen.exists()
    assert not seen.exists()


def test_a_hostile_upload_is_a_sentence_in_the_page(studio: Studio, client: httpx.Client) -> None:
    function = listener(client, "drop")["id"]
    with page_of(client) as page:
        for data in (b"", b"no picture", PICTURE[:20], b"\x89PNG\r\n\x1a\n" + b"\xff" * 100):
            join(client, page, function, [file_data(uploaded(client, data))])
            said = outcome(client, page)
            assert '"success":true' in said
            assert "Traceback" not in said


# --- logging in ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio in which ada, bob and eve may be. When it has ended, nothing of it is left."""
    path, folder = tmp_path_factory.mktemp("users") / "users.txt", tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(users, "_COST", (2**4, 8, 1))
        path.write_text("".join(f"{name}:{users._Hash.of(PASSWORD)}\n" for name in ("ada", "bob", "eve")))
    with running_studio("--auth-file", str(path), TMPDIR=str(folder)) as found:
        yield found
    assert [each for each in folder.rglob("*") if each.is_file()] == []


@contextmanager
def logged_in(studio: Studio, name: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=studio.url, timeout=30) as client:
        client.get("/")
        client.post("/login", data={"username": name, "password": PASSWORD})
        yield client


def test_without_a_login_nothing_of_the_studio_answers(locked: Studio) -> None:
    with httpx.Client(base_url=locked.url) as stranger:
        page = stranger.get("/")
        assert '"auth_required":true' in page.text
        assert "Prompt" not in page.text
        assert "emoji" not in page.text
        asked = [
            ("GET", "/config"), ("GET", f"{API}/info"), ("GET", f"{API}/app_id"), ("GET", f"{API}/login_check"),
            ("GET", f"{API}/heartbeat/abcdefgh"), ("GET", f"{API}/queue/data?session_hash=abcdefgh"),
            ("GET", f"{API}/file=/etc/passwd"), ("GET", f"{API}/upload_progress?upload_id=x"),
            ("POST", f"{API}/upload"),
            ("POST", f"{API}/queue/join"), ("POST", f"{API}/run/predict"),
            ("POST", f"{API}/cancel"), ("POST", f"{API}/reset"), ("GET", "/logout"),
        ]  # fmt: skip
        for cookie in ("", "access-token-x=y; access-token-unsecure-x=y"):
            for method, path in asked:
                answer = stranger.request(method, path, headers={"Cookie": cookie})
                assert answer.status_code == 401, (method, path)
        for method, path in UNUSED:
            assert stranger.request(method, path).status_code in (404, 405), (method, path)


def test_who_has_logged_in_may_draw_until_the_logout(locked: Studio) -> None:
    with logged_in(locked, "ada") as ada:
        config = ada.get("/config")
        assert config.status_code == 200
        assert config.json()["username"] == "ada"
        path = uploaded(ada)
        assert Path(path).exists()
        with logged_in(locked, "bob") as bob:
            assert bob.get(f"{API}/file={path}").status_code == 403
        assert ada.get("/logout").status_code in (200, 302)
        assert ada.get("/config").status_code == 401


def test_wrong_passwords_let_nobody_in_and_can_be_tried_ten_times_a_minute(locked: Studio) -> None:
    with httpx.Client(base_url=locked.url, timeout=60) as stranger:
        for _ in range(10):
            assert stranger.post("/login", data={"username": "eve", "password": "wrong"}).status_code == 400
        assert stranger.post("/login", data={"username": "eve", "password": PASSWORD}).status_code == 400
        assert stranger.get("/config").status_code == 401
    with logged_in(locked, "ada") as ada:
        assert ada.get("/config").status_code == 200


# The fast test beside it is test_who_has_logged_in_may_draw_until_the_logout.
@pytest.mark.slow
def test_who_logs_in_by_the_page_sees_it(locked: Studio, visit: Callable[..., Visitor]) -> None:
    visitor = visit(url=locked.url, opens=False)
    visitor.page.goto(locked.url)
    visitor.page.get_by_label("username").fill("ada")
    visitor.page.get_by_label("password").fill(PASSWORD)
    visitor.page.get_by_role("button", name="Login").click()
    visitor.wait(".main-button")
