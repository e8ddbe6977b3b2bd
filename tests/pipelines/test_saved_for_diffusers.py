"""What every pipeline saves loads in diffusers' class of the same name, which warns of nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
from tiny import tiny_pipeline
from tiny_control import tiny_control
from tiny_sd import tiny_reference
from tiny_xl import tiny_xl

import ddim
from ddim.pipelines.draws import CONTROLLED

KINDS = [name for name in ddim.__all__ if name.endswith("Pipeline") and name != "DiffusionPipeline"]


class Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """The warnings that diffusers logs."""
    handler, logger = Heard(), logging.getLogger("diffusers")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    yield handler.said
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A text-to-image pipeline of each family, and a ControlNet for it."""
    folder = tmp_path_factory.mktemp("bases")
    made: dict[str, Any] = {}
    for family, reference in (("StableDiffusion", tiny_reference(folder / "1", 1)), ("XL", tiny_xl(folder / "xl"))):
        reference.save_pretrained(folder / family)
        tiny_control(folder / f"{family}-control", reference.unet)
        made[family] = ddim.DiffusionPipeline.from_pretrained(folder / family)
        made[f"{family}, control"] = ddim.ControlNetModel.from_pretrained(folder / f"{family}-control")
    return made


def pipeline(name: str, bases: dict[str, Any]) -> Any:
    if name == "DDIMPipeline":
        return tiny_pipeline()
    family = "XL" if "XL" in name else "StableDiffusion"
    more = {"controlnet": bases[f"{family}, control"]} if "ControlNet" in name else {}
    return getattr(ddim, name).from_pipe(bases[family], **more)


def assert_loads_without_a_word(folder: Path, name: str, heard: list[str]) -> Any:
    heard.clear()
    theirs = getattr(diffusers, name).from_pretrained(folder, local_files_only=True)
    assert heard == []
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    theirs.save_pretrained(folder / "theirs")
    their_index = json.loads((folder / "theirs/model_index.json").read_text(encoding="utf-8"))
    own = {key for key in index if not key.startswith("_")}
    assert own == {key for key in their_index if not key.startswith("_")}
    assert index["_class_name"] == their_index["_class_name"] == name
    return theirs


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.thin(every=3)
def test_what_is_saved_loads_there_without_a_warning(
    name: str, bases: dict[str, Any], heard: list[str], tmp_path: Path
) -> None:
    pipeline(name, bases).save_pretrained(tmp_path)
    assert_loads_without_a_word(tmp_path, name, heard)
    diffusers.DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert heard == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CONTROLLED)
@pytest.mark.thin(every=3)
def test_so_does_one_that_was_given_a_controlnet_or_two(
    name: str, bases: dict[str, Any], heard: list[str], tmp_path: Path
) -> None:
    pipe = pipeline(name, bases)
    net = bases["XL, control" if "XL" in name else "StableDiffusion, control"]
    for number, given in enumerate((net, [net, net])):
        pipe.controlnet = given
        pipe.save_pretrained(tmp_path / str(number))
        assert_loads_without_a_word(tmp_path / str(number), CONTROLLED[name], heard)


def test_that_a_score_is_told_survives_a_pipeline_that_does_not_save_it(heard: list[str], tmp_path: Path) -> None:
    tiny_xl(tmp_path / "refiner", "refiner")
    refiner = ddim.StableDiffusionXLImg2ImgPipeline.from_pretrained(tmp_path / "refiner")
    texts = ddim.StableDiffusionXLPipeline.from_pipe(refiner)
    assert "requires_aesthetics_score" not in texts.config
    back = ddim.StableDiffusionXLImg2ImgPipeline.from_pipe(texts)
    back.save_pretrained(tmp_path / "back")
    theirs = assert_loads_without_a_word(tmp_path / "back", "StableDiffusionXLImg2ImgPipeline", heard)
    assert theirs.config.requires_aesthetics_score is True
