"""The OpenAPI document: what it says is so, and nothing that is made by it, or against it, is a fault of the server."""

from __future__ import annotations

import contextlib
import json
import urllib.request
import warnings
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from PIL import Image
from serving import Served, file_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis.core.control import SkipTest

from ddim.serving.parameters import HOW_CONTROLLED, OF_XL, Edit, Generation, Variation

SMALL = file_of(Image.new("L", (8, 8), 128))
ROUTES = {
    "/v1/images/generations": Generation,
    "/v1/images/edits": Edit,
    "/v1/images/variations": Variation,
}


@pytest.fixture(scope="module")
def document(served: Served) -> Any:
    with urllib.request.urlopen(f"{served.url}/openapi.json") as answer:
        return json.load(answer)


def test_it_has_every_route_and_parameter(document: Any) -> None:
    looking = {"/v1/images/files/{name}", "/v1/models", "/v1/models/{name}", "/health", "/ready", "/metrics"}
    assert set(document["paths"]) == {*ROUTES, *looking}
    for route, kind in ROUTES.items():
        contents = document["paths"][route]["post"]["requestBody"]["content"]
        assert set(contents) == {"multipart/form-data", *["application/json"] * (kind is Generation)}
        for content in contents.values():
            schema = content["schema"]
            assert set(schema["properties"]) - {"image", "mask"} == set(kind.model_fields)
            assert all(schema["properties"][name].get("description") for name in kind.model_fields)
            assert schema["additionalProperties"] is False


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.thin(fast=["negative"])
def test_no_request_is_a_fault(served: Served, document: Any, mode: str) -> None:
    """Requests as the document has them, and ones that break it: none is answered with 500 or more."""
    generation = schemathesis.GenerationMode(mode)
    schema = schemathesis.openapi.from_dict(document)
    schema.config.generation.modes = [generation]
    answers: Counter[tuple[str, int]] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()
        count = 15 if operation.method == "post" else 4

        @settings(max_examples=count, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None)
        @given(case=operation.as_strategy(generation_mode=generation))
        def check(case: Any) -> None:
            if mode == "positive" and isinstance(case.body, dict):  # a model that is there, and no thousand steps
                case.body |= {"model": "digits", "steps": 3, "prompt": ""}
                for name in (*OF_XL, *HOW_CONTROLLED, "control_image"):  # which it is not told
                    case.body.pop(name, None)
                if "image" in case.body:
                    case.body["image"] = SMALL
            answer = case.call(base_url=served.url, timeout=20)
            answers[case.operation.path, answer.status_code] += 1
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code", "request_id"}

        with contextlib.suppress(SkipTest):  # where nothing can be wrong
            check()
    assert not [status for _, status in answers if status >= 500], answers
    drawn = {path for path, status in answers if status == 200}
    assert "/v1/images/generations" in drawn if mode == "positive" else not drawn & set(ROUTES), answers
    assert all(sum(answers[route, status] for status in range(600)) >= 10 for route in ROUTES)
