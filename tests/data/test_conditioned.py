"""Pictures with what they are conditioned on: each finds its own, and what has none is left out."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ddim.data import Source, captioned_source
from ddim.errors import ConfigError, DataError

pq = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def plain(number: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (number, 0, 0))


def numbers(source: Source) -> list[tuple[int, int]]:
    """The number of each picture, and of its condition."""
    assert source.conditions is not None
    loaded: list[Any] = [(source.load(i), source.conditions(i)) for i in range(source.count)]
    return [(image.getpixel((0, 0))[0], condition.getpixel((0, 0))[0]) for image, condition in loaded]


def folder(path: Path, rows: list[dict[str, Any]], conditions: Path) -> Path:
    """Pictures 0 to 3 with the rows as metadata, and their conditions 100 to 103 in another folder."""
    path.mkdir()
    conditions.mkdir(parents=True)
    for number in range(4):
        plain(number).save(path / f"{number}.png")
        plain(100 + number).save(conditions / f"{number}.{'webp' if number == 3 else 'png'}", lossless=True)
    (path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("column", ["conditioning_image", "conditioning_image_file_name"])
def test_a_column_of_a_folders_metadata(tmp_path: Path, column: str) -> None:
    rows = [{"file_name": f"{n}.png", "text": "a", column: f"conditions/{n}.png"} for n in (2, 0, 1)]
    data = folder(tmp_path / "data", [*rows, {"file_name": "3.png", "text": "a"}], tmp_path / "data" / "conditions")
    with pytest.warns(UserWarning, match="left out 2 of 5 images: 1 without a condition .*, 1 without a caption"):
        source = captioned_source(train_data_dir=data, conditioning_image_column="conditioning_image")
    assert numbers(source) == [(2, 102), (0, 100), (1, 101)]
    assert numbers(source.at_least(4)) == numbers(source)


def test_another_folder_with_the_same_names(tmp_path: Path) -> None:
    rows = [{"file_name": f"{n}.png", "text": "a"} for n in range(4)]
    data = folder(tmp_path / "data", rows, tmp_path / "conditions")
    source = captioned_source(train_data_dir=data, conditioning_data_dir=tmp_path / "conditions")
    assert numbers(source) == [(n, 100 + n) for n in range(4)]
    (tmp_path / "conditions" / "1.png").unlink()
    (tmp_path / "conditions" / "2.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="without a condition .1.png.*with a condition that is unreadable .2.png"):
        source = captioned_source(train_data_dir=data, conditioning_data_dir=tmp_path / "conditions")
    assert numbers(source) == [(0, 100), (3, 103)]
    plain(0).save(tmp_path / "conditions" / "0.bmp")
    with pytest.raises(DataError, match="both 0.bmp and 0.png"):
        captioned_source(train_data_dir=data, conditioning_data_dir=tmp_path / "conditions")


@pytest.mark.parametrize("where", ["../secret.png", "/etc/passwd", "missing.png", 7])
def test_a_condition_outside_of_the_folder_is_not_read(tmp_path: Path, where: object) -> None:
    plain(9).save(tmp_path / "secret.png")
    rows = [{"file_name": f"{n}.png", "text": "a", "cond": where if n else "c/0.png"} for n in range(4)]
    data = folder(tmp_path / "data", rows, tmp_path / "data" / "c")
    with pytest.warns(UserWarning, match="condition"):
        source = captioned_source(train_data_dir=data, conditioning_image_column="cond")
    assert numbers(source) == [(0, 100)]


def as_cell(image: Image.Image | None) -> dict[str, bytes] | None:
    if image is None:
        return None
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue()}


def test_a_column_of_a_table(tmp_path: Path) -> None:
    columns = {
        "image": [as_cell(plain(n)) for n in range(4)],
        "pose": [as_cell(None if n == 1 else plain(100 + n)) for n in range(4)],
        "text": ["a", "b", "c", ""],
    }
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")
    name = str(tmp_path / "data.parquet")
    with pytest.warns(UserWarning, match="1 with a condition without an image .row 1., 1 without a caption .row 3."):
        source = captioned_source(dataset_name=name, conditioning_image_column="pose")
    assert numbers(source) == [(0, 100), (2, 102)]
    with pytest.raises(DataError, match="no column 'pse'; it has image, pose, text; did you mean 'pose'"):
        captioned_source(dataset_name=name, conditioning_image_column="pse")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert captioned_source(dataset_name=name).conditions is None


def test_what_does_not_go_together_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="conditioning_data_dir is for train_data_dir"):
        captioned_source(dataset_name="x.parquet", conditioning_data_dir=tmp_path)
    with pytest.raises(ConfigError, match="not both"):
        captioned_source(train_data_dir=tmp_path, conditioning_data_dir=tmp_path, conditioning_image_column="a")
    plain(0).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("a")
    with pytest.raises(DataError, match=r"no metadata.jsonl, whose entries cond .* or give conditioning_data_dir"):
        captioned_source(train_data_dir=tmp_path, conditioning_image_column="cond")
    with pytest.raises(DataError, match="there is no folder"):
        captioned_source(train_data_dir=tmp_path, conditioning_data_dir=tmp_path / "nowhere")
