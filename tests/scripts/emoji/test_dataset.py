"""The emoji under data/, as its README promises them, and the drawing that made them."""

from __future__ import annotations

import doctest
import hashlib
import io
import re
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from program import SCRIPTS
from program import script as load

pq = pytest.importorskip("pyarrow.parquet")

ROOT = SCRIPTS.parent
PARQUET = ROOT / "data" / "emoji.parquet"
README = ROOT / "data" / "README.md"
TONE = re.compile(r" (with|and) (light|medium light|medium|medium dark|dark) skin tone$")

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    table: Rows = pq.read_table(PARQUET).to_pylist()
    return table


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("resvg_py")
    return load("emoji/dataset")


def test_the_readme_counts_and_signs_what_is_there(rows: Rows) -> None:
    text = README.read_text(encoding="utf-8")
    promised = {
        (style, split): int(count)
        for style, *counts in re.findall(r"^\| (noto|fluent|twemoji) \| (\d+) \| (\d+) \|", text, re.MULTILINE)
        for split, count in zip(("train", "held-out"), counts, strict=True)
    }
    assert Counter((row["style"], row["split"]) for row in rows) == promised
    assert f"{len(rows):,} emoji" in text
    assert hashlib.sha256(PARQUET.read_bytes()).hexdigest() in text


def test_rows_are_sorted_and_each_icon_comes_once(rows: Rows) -> None:
    keys = [(row["style"], row["icon"]) for row in rows]
    assert keys == sorted(set(keys))


def test_every_image_is_a_64x64_rgba_png_that_shows_something(rows: Rows) -> None:
    for row in rows:
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGBA", (64, 64)), row["icon"]
            assert image.getchannel("A").getextrema()[1] > 0, row["icon"]


def test_no_style_holds_the_same_png_twice(rows: Rows) -> None:
    drawn = Counter((row["style"], row["image"]["bytes"]) for row in rows)
    assert max(drawn.values()) == 1


def test_captions_are_plain_words(rows: Rows) -> None:
    for row in rows:
        assert 1 <= len(row["captions"]) <= 5
        assert len(set(row["captions"])) == len(row["captions"])
        assert row["keywords"]
        for caption in row["captions"]:
            assert re.fullmatch(r"""[a-z0-9'"!.-]+( [a-z0-9'"!.-]+)*""", caption), caption


def test_styles_and_tones_share_the_first_caption_and_no_other_emoji_has_it(rows: Rows) -> None:
    names, concepts = defaultdict(set), defaultdict(set)
    for row in rows:
        name = TONE.sub("", row["captions"][0])
        names[row["concept"]].add(name)
        concepts[name].add(row["concept"])
    assert {concept: found for concept, found in names.items() if len(found) > 1} == {}
    assert {name: found for name, found in concepts.items() if len(found) > 1} == {}


@pytest.mark.parametrize(
    ("icon", "caption"),
    [
        ("grinning-face-with-big-eyes", "grinning face with big eyes"),
        ("red-heart", "red heart"),
        ("flag-japan", "flag of japan"),
        ("flag-netherlands", "flag of the netherlands"),
        ("flag-in-hole", "flag in hole"),
        ("waving-hand-medium-dark", "waving hand with medium dark skin tone"),
        ("police-car-light", "police car light"),  # Fluent has a police car: this is not its light tone
        ("pinata", "pinata"),
    ],
)
def test_known_captions(rows: Rows, icon: str, caption: str) -> None:
    assert {row["captions"][0] for row in rows if row["icon"] == icon} == {caption}


def test_only_fluent_has_tones_and_each_comes_with_its_emoji(rows: Rows) -> None:
    toned = [row for row in rows if TONE.search(row["captions"][0])]
    plain = {row["concept"] for row in rows if row["style"] == "fluent" and row not in toned}
    assert len(toned) > 1000
    assert {row["style"] for row in toned} == {"fluent"}
    assert {row["concept"] for row in toned} <= plain
    assert not {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff", "fe0f"} & {
        code for row in rows for code in row["concept"].split("-")
    }


def test_a_concept_is_on_one_side_of_the_split(rows: Rows) -> None:
    sides = defaultdict(set)
    for row in rows:
        sides[row["concept"]].add(row["split"])
    assert {concept for concept, found in sides.items() if len(found) > 1} == set()
    assert {side for found in sides.values() for side in found} == {"train", "held-out"}
    assert 0.04 < sum(row["split"] == "held-out" for row in rows) / len(rows) < 0.06


def test_each_style_has_its_licence_and_author(rows: Rows) -> None:
    assert {(row["style"], row["license"], row["author"]) for row in rows} == {
        ("noto", "Apache-2.0", "Google"),
        ("fluent", "MIT", "Microsoft"),
        ("twemoji", "CC-BY-4.0", "Twitter and contributors"),
    }


def test_datasets_knows_the_image_column() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features.from_arrow_schema(pq.read_schema(PARQUET))
    assert features["image"] == datasets.Image()
    assert features["captions"] == datasets.List(datasets.Value("string"))


HALF_RED = '<path fill="#f00" fill-opacity=".5" d="M0 0h16v16H0z"/>'  # straight alpha keeps it pure red
LEFT_BLUE = '<path fill="#00f" d="M0 0h8v8H0z"/>'


def draw(script: ModuleType, body: str, **sizes: object) -> np.ndarray:
    svg = script.to_svg({"body": body, **sizes}, {"width": 16, "height": 16})
    png = script.to_png(script.draw(svg))
    assert png == script.to_png(script.draw(svg))
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == "RGBA"
        return np.asarray(image)


def test_alpha_is_straight(script: ModuleType) -> None:
    pixels = draw(script, HALF_RED)
    assert pixels.shape == (64, 64, 4)
    assert np.abs(pixels.astype(int) - [255, 0, 0, 128]).max() <= 1


def test_a_mirrored_icon_is_mirrored(script: ModuleType) -> None:
    np.testing.assert_array_equal(draw(script, LEFT_BLUE, hFlip=True), draw(script, LEFT_BLUE)[:, ::-1])


def test_what_is_not_square_keeps_its_proportions(script: ModuleType) -> None:
    alpha = draw(script, '<path d="M0 0h8v16H0z"/>', width=8)[..., 3]
    assert (alpha[:, 16:48] == 255).all()
    assert (alpha[:, :16] == 0).all()
    assert (alpha[:, 48:] == 0).all()


@pytest.mark.parametrize("kind", ["noise", "left to right", "top to bottom"])
def test_png_is_lossless_whatever_filter_wins(script: ModuleType, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    pixels = {
        "noise": noise,
        "left to right": noise[:, :1] + np.arange(64, dtype=np.uint8)[None, :, None],
        "top to bottom": noise[:1] + np.arange(64, dtype=np.uint8)[:, None, None],
    }[kind]
    with Image.open(io.BytesIO(script.to_png(Image.fromarray(pixels)))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.slow
def test_the_same_rows_give_the_same_file(script: ModuleType, rows: Rows, tmp_path: Path) -> None:
    script.write(rows, tmp_path / "emoji.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["emoji.parquet"]
    assert pq.read_table(tmp_path / "emoji.parquet").equals(pq.read_table(PARQUET), check_metadata=True)
    script.write(rows[:500], tmp_path / "emoji.parquet")
    first = (tmp_path / "emoji.parquet").read_bytes()
    script.write(rows[:500], tmp_path / "emoji.parquet")
    assert (tmp_path / "emoji.parquet").read_bytes() == first


def test_its_examples(script: ModuleType) -> None:
    result = doctest.testmod(script)
    assert result.attempted > 5
    assert result.failed == 0


def test_a_changed_package_is_refused(script: ModuleType, tmp_path: Path) -> None:
    package = script.CLDR
    (tmp_path / package.archive).write_bytes(b"something else")
    with pytest.raises(SystemExit, match="not the pinned"):
        script.fetch(package, tmp_path)


def test_the_split_is_the_script_s(script: ModuleType, rows: Rows) -> None:
    assert all(script.is_held_out(row["concept"]) == (row["split"] == "held-out") for row in rows)
