"""The words that the emoji model has seen: those of its captions, and near to others what has their keywords."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
from program import SCRIPTS
from program import script as load

from ddim.checkpoint.hub import BUNDLED
from ddim.pipelines.words import read_word_file

pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS / "emoji"))
        yield load("emoji/words")


@pytest.mark.slow  # some seconds: every word against every drawing
def test_the_shipped_list_is_what_the_script_makes(script: ModuleType) -> None:
    assert script.word_list() == read_word_file(BUNDLED / "emoji" / "words.json")


def test_what_is_near(script: ModuleType) -> None:
    """First what has the word as a keyword, then what is alike but for its name, then people."""
    concepts = [
        script.Concept("crossed swords", {"crossed", "swords", "weapon"}, {"crossed", "swords"}),
        script.Concept("crossed flags", {"crossed", "flags"}, {"crossed", "flags"}),
        script.Concept("dagger", {"dagger", "knife", "weapon"}, {"dagger"}),
        script.Concept("person fencing", {"fencing", "person", "sword"}, {"person", "fencing"}),
        script.Concept("hot beverage", {"coffee", "tea"}, {"hot", "beverage"}),
    ]
    found = script.near(["sword", "coffee", "nothing"], concepts)
    assert found == {"sword": ("crossed swords", "dagger", "person fencing"), "coffee": ("hot beverage",)}
