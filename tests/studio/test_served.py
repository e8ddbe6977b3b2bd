"""The studio at the root of `ddim serve`: the API is as it is alone, and the page needs no key of the API's."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from browsing import Studio, running_studio
from serving import opened

KEY = "a-key-that-is-long-enough"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    keys = Path(tmp_path_factory.mktemp("keys")) / "keys.txt"
    keys.write_text(f"{KEY}\n", encoding="utf-8")
    options = ("--model", "digits-fast", "--backend", "eager", "--api-key-file", str(keys))
    with running_studio(*options, command=("serve", "--studio")) as found:
        yield found


def asked(served: Studio, path: str, method: str = "GET", key: str = "") -> tuple[int, Any]:
    request = urllib.request.Request(served.url + path, method=method, headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


# The fast test beside it is test_without_a_login_nothing_of_the_studio_answers of test_safety.py.
@pytest.mark.slow
def test_the_page_and_the_api_are_both_there(served: Studio) -> None:
    status, body = asked(served, "/")
    assert status == 200
    assert b"ddim studio" in body
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["digits-fast"]
        answer = client.images.generate(model="digits-fast", prompt="", extra_body={"class_label": 3, "seed": 1})
    assert answer.data is not None
    assert opened(answer.data[0]).size == (8, 8)
    assert asked(served, "/metrics", key=KEY)[0] == 200
    assert asked(served, "/health")[0] == asked(served, "/docs")[0] == 200


@pytest.mark.parametrize(
    ("path", "method", "key", "status"),
    [
        ("/v1/models", "GET", "", 401),
        ("/v1/models", "GET", "wrong", 401),
        ("/metrics", "GET", "", 401),
        ("/v1/nothing", "GET", KEY, 404),
        ("/v1/images/generations", "GET", KEY, 405),
        ("/v1/models/other", "GET", KEY, 404),
    ],
)
# The fast test beside it is test_without_a_login_nothing_of_the_studio_answers of test_safety.py.
@pytest.mark.slow
def test_the_api_s_errors_are_its_own(path: str, method: str, key: str, status: int, served: Studio) -> None:
    given, body = asked(served, path, method, key)
    assert given == status
    error = json.loads(body)["error"]
    assert error["message"]
    assert error["request_id"].startswith("req_")
