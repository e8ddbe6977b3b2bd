"""What the OpenAPI document says of bodies and answers that FastAPI does not see, as they are read with bounds."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from ddim.serving.pictures import MEDIA_TYPES

__all__ = ["ERRORS", "PICTURE", "form_body", "json_body"]

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


def json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """What the document says of a route whose body is JSON."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}}


def form_body(kind: type[BaseModel], *files: str) -> dict[str, Any]:
    """What the document says of a route whose body is a form with files, of which the first is needed."""
    schema = kind.model_json_schema()
    schema["properties"] = {name: {"type": "string", "format": "binary"} for name in files} | schema["properties"]
    schema["required"] = [*schema.get("required", []), files[0]]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
