"""Options as they are typed: their names, and errors in these words rather than in the library's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, get_type_hints

import tyro

# What the library calls the things that options of other names set.
LIBRARY = {
    "batch_size": "batch",
    "class_labels": "class_label",
    "num_images_per_prompt": "batch",
    "num_inference_steps": "steps",
    "pretrained_model_link_or_path": "model",
    "pretrained_model_name_or_path": "model",
    "rescale_betas_zero_snr": "zero_snr",
    "timestep_spacing": "spacing",
    "torch_dtype": "dtype",
}


def typed(kind: type, field: str) -> str:
    """How an option of a command's settings is typed, or what an argument without a name is called.

    Args:
        kind: the dataclass of the settings.
        field: the option's name in it.
    """
    metadata = getattr(_hints(kind)[field], "__metadata__", ())
    if tyro.conf.Positional[int].__metadata__[0] in metadata:  # type: ignore[attr-defined]
        return f"the {field}"
    named = [name for each in metadata if (name := getattr(each, "name", None))]
    return "--" + str(named[0] if named else field).replace("_", "-")


@lru_cache(maxsize=32)
def _hints(kind: type) -> dict[str, Any]:
    """The types of all fields, kept: they are asked for once a field, and finding them takes half a millisecond."""
    return get_type_hints(kind, include_extras=True)


# The fields that were typed, of the command that runs; None where it was called from Python.
NOW: ContextVar[frozenset[str] | None] = ContextVar("NOW", default=None)


def given(kind: type, arguments: Sequence[str]) -> frozenset[str]:
    """The options that were typed, by the names of their fields, also those with the value that they have anyway.

    Args:
        kind: the dataclass of the settings.
        arguments: what was typed after the command.
    """
    words = {word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")}
    return frozenset(
        field
        for field in kind.__dataclass_fields__  # type: ignore[attr-defined]
        if (flag := typed(kind, field)) in words or f"--no-{flag[2:]}" in words
    )


def typed_fields(settings: Any) -> frozenset[str]:
    """The fields that the user typed, whatever their values; from Python, those that differ from the defaults.

    Args:
        settings: the settings of the command that runs, a dataclass.
    """
    found = NOW.get()
    if found is None:
        found = frozenset(
            field.name for field in dataclasses.fields(settings) if getattr(settings, field.name) != field.default
        )
    return found | ({"prompt"} if getattr(settings, "prompt", None) is not None else set())


def in_typed_words(text: str, settings: object) -> str:
    """An error's text in which the library's names of settings are those of a command's options.

    Args:
        text: such as "num_inference_steps must be a positive int" or "pass variant='fp16'".
        settings: the command's settings, a dataclass.
    """
    kind = type(settings)
    fields = getattr(kind, "__dataclass_fields__", {})

    def option(match: re.Match[str]) -> str:
        word, rest = match[1], match[2]
        field = word if word in fields else LIBRARY.get(word, "")
        if field not in fields or (field == "prediction_type" and not _of_single_file(settings)):
            return match[0]
        return typed(kind, field) + (" " if rest == "=" and text[match.end() : match.end() + 1].strip() else rest[1:])

    # Names of several words wherever they stand, but in paths; of one word only where they are no word of a sentence.
    text = re.sub(r"(?<![\w./\\-])([a-z]+(?:_[a-z]+)+|[a-z]+(?==))(=?)(?![\w/\\]*[/\\]|\.\w)", option, text)
    return re.sub(r"^([a-z]+)( )(?=(?:must|has|have|is|needs?) )", _first(kind), text)


def _of_single_file(settings: Any) -> bool:
    """Whether --prediction-type says what the model predicts, or in training is to predict; else its config does."""
    return not hasattr(settings, "tokenizer") or str(settings.model).endswith(".safetensors")


def _first(kind: type) -> Any:
    fields = getattr(kind, "__dataclass_fields__", {})
    return lambda match: f"{typed(kind, match[1])} " if match[1] in fields else match[0]
