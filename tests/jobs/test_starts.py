"""Rows that start from pictures: what is read, what is refused, and that no picture depends on the others."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from evil_pictures import broken, nothings, poisoned
from PIL import Image
from tiny_jobs import written

from ddim.cli import main
from ddim.images import png_text
from ddim.jobs.starts import Named, begun_from
from ddim.pipelines import DiffusionPipeline
from ddim.serving.refusal import Refusal


@pytest.fixture(scope="module")
def pipe(texts: str) -> DiffusionPipeline:
    """It draws pictures of 16x16."""
    return DiffusionPipeline.from_pretrained(texts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of pictures, in which a table is to lie."""
    (tmp_path / "in").mkdir()
    Image.linear_gradient("L").resize((16, 16)).convert("RGB").save(tmp_path / "in" / "a.png")
    Image.radial_gradient("L").resize((64, 32)).save(tmp_path / "in" / "wide.jpg")
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 12, 12))
    mask.save(tmp_path / "in" / "mask.png")
    return tmp_path


def table(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    """A table beside the pictures."""
    path = folder / "in" / name
    if name.endswith(".csv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def generate(prompts: str, out: Path, model: str, *options: str) -> int:
    return main(["generate", prompts, "--out", str(out), "--model", model, *options])


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def difference(one: Path, other: Path) -> int:
    """The most by which two pictures of one size differ in a value of a pixel."""
    with Image.open(one) as first, Image.open(other) as second:
        assert first.size == second.size
        return max(abs(a - b) for a, b in zip(first.tobytes(), second.tobytes(), strict=True))


def mixed(count: int) -> list[dict[str, Any]]:
    """Rows that start from noise, from pictures, and from parts of pictures, of many settings."""
    moments = random.Random(0)
    rows = []
    for number in range(count):
        row = {"prompt": "a heart", "steps": moments.randint(2, 5), "eta": moments.choice([0, 0.5])}
        row |= moments.choice(
            [
                {},
                {"image": "a.png", "strength": moments.choice([0.3, 0.8, 1.0])},
                {"image": "wide.jpg"},
                {"image": "a.png", "mask_image": "mask.png", "strength": 0.9},
            ]
        )
        rows.append({"id": str(number), **row})
    return rows


def test_a_picture_that_starts_from_another_depends_on_no_others(folder: Path, texts: str) -> None:
    rows = mixed(16)
    expected = None
    for batch, order in (("3", 1), ("16", -1)):
        out = folder / f"{batch}"
        assert generate(table(folder, rows[::order]), out, texts, "--format", "parquet", "--batch-size", batch) == 0
        found = {line["id"]: (line["sha256"], line["settings"]) for line in manifest(out)}
        assert {"files", "image"} <= found["1"][1].keys()
        expected = expected or found
        assert found == expected


def test_it_is_the_picture_of_sample_and_says_what_it_was_started_from(folder: Path, texts: str) -> None:
    rows = [
        {"prompt": "a heart", "image": "a.png", "strength": 0.5, "seed": 3, "steps": 4},
        {"prompt": "a heart", "image": "wide.jpg", "seed": 3, "steps": 4},
        {"prompt": "a heart", "image": "wide.jpg", "seed": 3, "steps": 4, "height": 16},
        {"prompt": "a heart", "image": "../in/a.png", "mask_image": "mask.png", "seed": 3, "steps": 4},
    ]
    out = folder / "out"
    assert generate(table(folder, rows), out, texts, "--strength", "0.7") == 0
    sizes = []
    for row, line in zip(rows, manifest(out), strict=True):
        given = [row[name] for name in ("image", "mask_image") if name in row]
        hashes = [hashlib.sha256((folder / "in" / name).read_bytes()).hexdigest()[:24] for name in given]
        assert line["settings"]["files"] == hashes
        assert line["settings"]["strength"] == row.get("strength", 0.7)
        told = json.loads(png_text(out / line["file"], "ddim", 10_000) or "")
        assert told["files"] == hashes
        assert told["settings"]["image"] == row["image"]
        options = ["--image", str(folder / "in" / row["image"])]
        options += ["--mask-image", str(folder / "in" / "mask.png")] if "mask_image" in row else []
        command = ["sample", "a heart", "--model", texts, "--steps", "4", "--seed", "3", "--scale", "1", *options]
        command += ["--height", "16"] if "height" in row else []
        plain, again = folder / "plain.png", folder / "again.png"
        typed = ["--out", str(plain), "--overwrite", "--strength", str(row.get("strength", 0.7))]
        assert main([*command, *typed]) == 0
        assert difference(out / line["file"], plain) <= 1
        recipe = ["sample", "--from", str(out / line["file"]), "--trust", *options]
        assert main([*recipe, "--out", str(again), "--overwrite"]) == 0
        assert difference(out / line["file"], again) <= 1
        with Image.open(out / line["file"]) as image:
            sizes.append(image.size)
    assert sizes == [(16, 16), (24, 8), (32, 16), (16, 16)]


def test_in_a_csv_all_are_texts(folder: Path, texts: str) -> None:
    rows = [{"prompt": "a", "image": "a.png", "strength": "0.5"}, {"prompt": "b", "image": "", "strength": ""}]
    assert generate(table(folder, rows, "rows.csv"), folder / "out", texts, "--steps", "2") == 0
    first, second = manifest(folder / "out")
    assert first["settings"]["strength"] == 0.5
    assert not {"strength", "image", "files"} & set(second["settings"])


def test_bad_pictures_are_failures_of_their_rows(folder: Path, texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside others that are drawn."""
    Image.new("L", (16, 4)).save(folder / "in" / "flat.png")
    rows: list[tuple[dict[str, Any], str]] = [
        ({"image": "a.png"}, ""),
        ({"image": "none.png"}, "image none.png cannot be read: No such file or directory"),
        ({"image": "rows.jsonl"}, "image rows.jsonl cannot be read: "),
        ({"image": "."}, "image . cannot be read: it is a folder"),
        ({"image": 7}, "image: input should be a valid string"),
        ({"image": "a\0.png"}, "image has a zero byte"),
        ({"image": "a.png", "mask_image": "flat.png"}, "mask_image is 16x4 and image 16x16"),
        ({"image": "a.png", "mask_image": "none.png"}, "mask_image none.png cannot be read"),
        ({"mask_image": "mask.png"}, "mask_image says where image is to be painted anew"),
        ({"strength": 0.5}, "strength says how much of image is lost"),
        ({"image": "a.png", "strength": 1.5}, "strength: input should be less than or equal to 1"),
        ({"image": "a.png", "strength": 0}, "strength"),
        ({"image": "a.png", "width": 10**6}, "width: input should be less"),
        ({"image": "a.png"}, ""),
    ]
    prompts = table(folder, [{"prompt": "a", "steps": 2, **row} for row, _ in rows])
    assert generate(prompts, folder / "out", texts) == 1
    lines = (folder / "out" / "errors.jsonl").read_text().splitlines()
    found = {error["row"]: error["error"] for error in map(json.loads, lines)}
    for number, (_, said) in enumerate(rows):
        assert found.get(number, "").startswith(said) if said else number not in found, (number, found.get(number))
    assert len(manifest(folder / "out")) == sum(not said for _, said in rows)


def test_hostile_pictures_are_failures_of_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: DiffusionPipeline
) -> None:
    """They come in by the door that all pictures come in by."""
    monkeypatch.chdir(tmp_path)
    bad = {"other.ico": b""} | broken()
    for name, data in {**bad, **poisoned()}.items():
        (tmp_path / name).write_bytes(data)
    for name in (*bad, *nothings(tmp_path)):
        named = Named(name or ".")
        with pytest.raises(Refusal, match="cannot be read"):
            begun_from(named, tmp_path, "mine", pipe)
    for name in poisoned():
        image = begun_from(Named(name), tmp_path, "mine", pipe).image
        assert image is not None
        assert image.mode == "RGB"


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        ("image", [], "has pictures to start from, and {model} draws no texts"),
        ("mask_image", [], "the column mask_image is for pictures to start from, and "),
        ("id", ["--strength", "0.5"], "{model} draws no texts: leave out --strength"),
    ],
)
def test_what_has_no_use_is_refused_at_once(
    folder: Path, classes: str, capsys: pytest.CaptureFixture[str], column: str, options: list[str], message: str
) -> None:
    assert generate(table(folder, [{column: "a.png"}], "rows.csv"), folder / "out", classes, *options) == 1
    assert message.format(model=classes) in capsys.readouterr().err


def test_a_strength_without_pictures_is_refused(folder: Path, texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(table(folder, [{"prompt": "a"}]), folder / "out", texts, "--strength", "0.5") == 1
    assert "--strength is for pictures to start from, and " in capsys.readouterr().err


# The fast test beside it is test_it_is_the_picture_of_sample_and_says_what_it_was_started_from.
@pytest.mark.slow
def test_the_folder_of_the_table_may_move(folder: Path, texts: str) -> None:
    """What a job is depends on the table's contents, and paths are meant from where it lies."""
    prompts = table(folder, [{"prompt": "a", "image": "a.png", "steps": 2}, {"prompt": "b", "image": "b.png"}])
    assert generate(prompts, folder / "out", texts) == 1
    (folder / "in").rename(folder / "elsewhere")
    (folder / "elsewhere" / "a.png").rename(folder / "elsewhere" / "b.png")
    again = str(folder / "elsewhere" / "rows.jsonl")
    assert generate(again, folder / "out", texts, "--retry-errors") == 0
    assert len(written(folder / "out")) == 2 + 2
