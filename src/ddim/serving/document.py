"""What the OpenAPI document says of bodies and answers that FastAPI does not see, as they are read with bounds."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from ddim.serving.pictures import MEDIA_TYPES

__all__ = ["ERRORS", "PICTURE", "form_body", "json_or_form_body"]

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code", "request_id"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
                "request_id": {"type": "string"},
            },
        }
    },
}

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "What was wrong with it.", "content": {"application/json": {"schema": _ERROR}}},
    "5XX": {"description": "What went wrong here.", "content": {"application/json": {"schema": _ERROR}}},
}

PICTURE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture.",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES.values()},
    }
}


def json_or_form_body(kind: type[BaseModel]) -> dict[str, Any]:
    """What the document says of a route whose body is JSON, or a form, in which pictures for ControlNets are files."""
    content = {"application/json": {"schema": kind.model_json_schema()}, _FORM: {"schema": _form(kind)}}
    return {"requestBody": {"required": True, "content": content}}


def form_body(kind: type[BaseModel], *files: str) -> dict[str, Any]:
    """What the document says of a route whose body is a form with files, of which the first is needed."""
    schema = _form(kind)
    schema["properties"] = dict.fromkeys(files, _FILE) | schema["properties"]
    schema["required"] = [*schema.get("required", []), files[0]]
    return {"requestBody": {"required": True, "content": {_FORM: {"schema": schema}}}}


_FORM = "multipart/form-data"
_FILE = {"type": "string", "format": "binary"}


def _form(kind: type[BaseModel]) -> dict[str, Any]:
    """The parameters in a form: pictures for ControlNets are one file or several."""
    schema = kind.model_json_schema()
    said = schema["properties"]["control_image"]["description"]
    schema["properties"]["control_image"] = {"type": "array", "items": _FILE, "description": said}
    return schema
