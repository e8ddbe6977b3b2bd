"""What a thousand rows become, as others read it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image
from tiny_jobs import begun, draw, finished

from ddim.jobs.job import Job
from ddim.jobs.output import is_whole, unpacked

ROWS = 1003


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Jobs of a thousand rows and three, two of which have failed, by their formats."""
    found = {}
    for kind in ("folder", "parquet", "webdataset"):
        found[kind] = job = begun(tmp_path_factory.mktemp(kind), ROWS, kind)
        draw(job, range(ROWS), failing=[7, 1001])
        assert finished(job)
    return found


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_the_manifest_finds_every_picture(jobs: dict[str, Job], kind: str) -> None:
    job = jobs[kind]
    lines = [json.loads(line) for line in (job.out / "manifest.jsonl").read_text().splitlines()]
    assert len(lines) == ROWS - 2
    assert len({line["id"] for line in lines}) == ROWS - 2
    assert all((job.out / line["file"]).is_file() for line in lines)
    assert [line["seed"] for line in lines] == [number for number in range(ROWS) if number not in (7, 1001)]


def test_a_folder_has_a_thousand_pictures_at_most(jobs: dict[str, Job]) -> None:
    job = jobs["folder"]
    assert len(list((job.out / "00000").iterdir())) == 999
    assert len(list((job.out / "00001").iterdir())) == 2
    with Image.open(job.out / "00001" / "00001002.png") as image:
        assert image.getpixel((0, 0)) == 1002 % 256
        assert json.loads(image.info["ddim"])["settings"]["prompt"] == "prompt 1002"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves files open
def test_the_webdataset_library_reads_the_tar_files(jobs: dict[str, Job]) -> None:
    job = jobs["webdataset"]
    import webdataset

    files = [str(path) for path in sorted(job.out.glob("*.tar"))]
    assert len(files) == 2
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode("pil"))
    assert len(samples) == ROWS - 2
    lines = [json.loads(line) for line in (job.out / "manifest.jsonl").read_text().splitlines()]
    for sample, line in zip(samples, lines, strict=True):
        assert sample["__key__"] == line["id"]
        assert sample["json"] == line
        assert sample["txt"] == line["settings"]["prompt"]
        assert sample["png"].convert("L").getpixel((0, 0)) == line["seed"] % 256


def test_pyarrow_and_datasets_read_the_parquet_files(jobs: dict[str, Job]) -> None:
    job = jobs["parquet"]
    import datasets

    files = [str(path) for path in sorted(job.out.glob("*.parquet"))]
    rows = [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]
    lines = [json.loads(line) for line in (job.out / "manifest.jsonl").read_text().splitlines()]
    for row, line in zip(rows, lines, strict=True):
        assert [row[name] for name in ("id", "seed", "sha256")] == [line[name] for name in ("id", "seed", "sha256")]
        assert json.loads(row["settings"]) == line["settings"]
        assert row["prompt"] == line["settings"]["prompt"]
        assert row["image"]["path"] == f"{line['id']}.png"
    table = datasets.Dataset.from_parquet(files[1], cache_dir=str(job.out / ".cache")).cast_column(
        "image", datasets.Image()
    )
    assert table[0]["image"].getpixel((0, 0)) == 1000 % 256
    # few pictures are in memory at a time
    assert pyarrow.parquet.ParquetFile(files[0]).metadata.row_group(0).num_rows == 50


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_what_was_packed_is_unpacked(jobs: dict[str, Job], kind: str) -> None:
    job = jobs[kind]
    found = dict(unpacked(job.format, job.final(1)))
    assert list(found) == ["00001000", "00001002"]
    assert all(is_whole(io.BytesIO(data)) for data in found.values())


def test_a_file_that_is_no_whole_picture_is_known(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    assert is_whole(file)
    for size in (0, 3, 20, len(file.getvalue()) - 1):
        assert not is_whole(io.BytesIO(file.getvalue()[:size]))
