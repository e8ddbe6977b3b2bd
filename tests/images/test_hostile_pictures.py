"""Pictures that are broken, or meant to break whoever reads them, at every door: one error that names the file.

Each is answered within the limits of time and memory, and nothing is run, written or fetched.
"""

from __future__ import annotations

import io
import os
import socket
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from evil_pictures import GOOD, broken, nothings, poisoned
from hostile import Rise, contents
from PIL import Image
from tiny import save_tiny

from ddim.cli import main
from ddim.data import captioned_source, hf_dataset, image_folder
from ddim.data.preparation import Choice, Preparation
from ddim.errors import DataError
from ddim.images import read_picture
from ddim.pipelines import DiffusionPipeline
from ddim.pipelines.fitting import read_plain
from ddim.pipelines.inputs import to_tensor

SECONDS, MEBIBYTES = 10, 476  # 500 MB


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of every broken picture."""
    folder = tmp_path_factory.mktemp("evil")
    for name, content in broken().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    return save_tiny(tmp_path_factory.mktemp("pixels"))


@pytest.fixture(autouse=True)
def _nothing_is_run_or_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a picture reached out: {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "system", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def within_limits() -> Iterator[None]:
    rise, start = Rise(), time.process_time()
    yield
    assert time.process_time() - start < SECONDS  # for all pictures of a test together
    assert rise.mib() < MEBIBYTES


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a command that fails."""
    assert main(command) == 1, command
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = [line for line in said.err.splitlines() if line.startswith("ddim: ") and "resized to" not in line]
    assert "Traceback" not in said.err
    return line


def test_there_are_enough() -> None:
    assert len(broken()) > 100
    assert len(poisoned()) > 25


def test_a_broken_picture_is_one_error_that_names_it(evil: Path, within_limits: None) -> None:
    before = contents(evil)
    for name, content in broken().items():
        for picture in (evil / name, content):
            with pytest.raises(DataError, match=r"cannot be read: .") as caught:
                read_picture(picture, str(evil / name))
            assert str(caught.value).startswith(f"{evil / name} cannot")
            assert len(str(caught.value)) < 1200
    assert contents(evil) == before


def test_what_a_picture_hides_is_never_looked_at(within_limits: None) -> None:
    for name, content in poisoned().items():
        picture = np.asarray(read_picture(content, name).convert("RGB"), int)
        assert np.abs(picture - np.asarray(GOOD, int)).max() <= (40 if name.endswith(".gif") else 1), name


def test_only_ordinary_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, within_limits: None) -> None:
    monkeypatch.chdir(tmp_path)
    for name in nothings(tmp_path):
        with pytest.raises(DataError, match=r"cannot be read: .") as caught:
            read_picture(name, name)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500


# What comes in by commands. That these are damaged is known only when they are decoded; of the others, it is before.
LATE = {
    "no deflate.png", "too little deflate.png", "interlace 7.png", "depth 3.png", "kind 9.png", "12 bits.jpg",
    "progressive without tables.jpg", "no colours.jpg", "rubbish.gif", "rubbish.webp", "rubbish.bmp", "cut.avif",
    "palette of 4 GiB.bmp", "rubbish.tif", "rubbish.avif",
}  # fmt: skip
Command = Callable[[str], list[str]]
DOORS: dict[str, Command] = {
    "sample --image": lambda file: ["sample", "a red cat", "--image", file, "--strength", "0.7"],
    "sample --mask-image": lambda file: ["sample", "a red cat", "--image", "good.png", "--mask-image", file],
    "edit": lambda file: ["edit", file, "--source", "a red cat", "--target", "a blue dog"],
    "invert": lambda file: ["invert", "good.png", file],
    "interpolate --images": lambda file: ["interpolate", "--images", "good.png", file],
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.thin(fast=["sample --image", "invert"])
def test_commands_refuse_them_before_a_model_is_loaded(
    door: str,
    evil: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    within_limits: None,
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", refuse)
    GOOD.save("good.png")
    there = [path for path in nothings(tmp_path) if 0 < len(path) < 500]
    before = contents(tmp_path)
    for path in there:
        refused([*DOORS[door](path), "--out", f"out{'.safetensors' if door == 'invert' else '.png'}"], capsys)
    names = [name for name in broken() if name not in LATE]  # one door is tried with all of them, the others with some
    for path in (str(evil / name) for name in (names if door == "edit" else names[::6])):
        line = refused([*DOORS[door](path), "--out", f"out{'.safetensors' if door == 'invert' else '.png'}"], capsys)
        assert f"{path} cannot be read: " in line
    assert contents(tmp_path) == before


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.thin(fast=["invert", "sample --mask-image"])
def test_commands_refuse_damage_that_shows_late(
    door: str,
    evil: Path,
    texts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    GOOD.save("good.png")
    before = contents(tmp_path)
    for name in ("no deflate.png", "rubbish.tif", "rubbish.webp") if door != "edit" else sorted(LATE):
        options = ["--model", texts, "--steps", "2", "--out", f"out{'.safetensors' if door == 'invert' else '.png'}"]
        assert f"{evil / name} cannot be read: " in refused([*DOORS[door](str(evil / name)), *options], capsys)
    assert contents(tmp_path) == before


# --- what comes in by Python ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe(texts: str) -> DiffusionPipeline:
    pipe = DiffusionPipeline.from_pretrained(texts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# The fast test beside it is test_a_broken_picture_is_one_error_that_names_it.
@pytest.mark.slow
def test_a_pipeline_is_given_pictures_that_are_not_decoded_yet(
    evil: Path, pipe: DiffusionPipeline, within_limits: None
) -> None:
    seen = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of the program's own Image.open
        for name in broken().keys() - {"other.ico"}:  # which Pillow decodes as it opens it
            try:
                image = Image.open(evil / name)
            except Exception:
                continue  # Pillow itself refuses it
            with image, pytest.raises(DataError, match=r"cannot be read: ."):
                pipe("a red cat", image=image, num_inference_steps=2)
            with Image.open(evil / name) as image, pytest.raises(DataError, match=r"mask_image cannot be read: ."):
                pipe("a red cat", image=GOOD, mask_image=image, height=16, width=16, num_inference_steps=2)
            with Image.open(evil / name) as image, pytest.raises(DataError):
                pipe.encode(image)
            seen += 1
    assert seen > 25
    with Image.open(io.BytesIO(poisoned()["photoshop.jpg"])) as image:
        assert len(pipe("a red cat", image=image, num_inference_steps=2, strength=0.5, height=16, width=16).images) == 1


# --- what comes in by data --------------------------------------------------------------------------------------------


GOODS = 5


@pytest.fixture(scope="module")
def pictures(evil: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, named as pictures, beside good ones."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(GOODS):
        GOOD.rotate(90 * index).save(folder / f"good-{index}.png")
    for index, path in enumerate(sorted(evil.iterdir())):
        (folder / f"{index:03d}.png").symlink_to(path)
    nothings_here = folder / "nothings"
    nothings_here.mkdir()
    os.mkfifo(nothings_here / "pipe.png")
    (nothings_here / "loop.png").symlink_to(nothings_here / "loop.png")
    (nothings_here / "zero.png").symlink_to("/dev/zero")
    return folder


def test_training_from_a_folder_leaves_them_out(pictures: Path, within_limits: None) -> None:
    with pytest.warns(UserWarning, match=rf"left out {len(broken())} of {len(broken()) + GOODS} images: .* unreadable"):
        source = image_folder(pictures)
    assert source.count == GOODS
    assert source.load(0).size == GOOD.size  # type: ignore[union-attr]


def test_training_from_captions_leaves_them_out(evil: Path, tmp_path: Path, within_limits: None) -> None:
    GOOD.save(tmp_path / "good.png")
    lines = ['{"file_name": "good.png", "text": "a ramp"}']
    for index, content in enumerate(broken().values()):
        (tmp_path / f"{index}.png").write_bytes(content)
        lines.append(f'{{"file_name": "{index}.png", "text": "nothing"}}')
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match=rf"left out {len(broken())} of"):
        source = captioned_source(train_data_dir=tmp_path, minimum=8)
    assert source.captions == [("a ramp",)]


def test_training_from_a_table_leaves_them_out_and_names_them(tmp_path: Path, within_limits: None) -> None:
    good = io.BytesIO()
    GOOD.save(good, "PNG")
    cells = [{"bytes": content, "path": None} for content in (good.getvalue(), *broken().values())]
    place = str(tmp_path / "pictures.parquet")
    pq.write_table(pa.table({"image": cells, "text": ["a ramp"] * len(cells)}), place)
    with pytest.warns(UserWarning, match=rf"left out {len(broken())} of"):
        assert captioned_source(dataset_name=place, minimum=8).count == 1
    source = hf_dataset(place, "image", None)
    assert source.load(0).size == GOOD.size  # type: ignore[union-attr]
    for index in range(1, len(cells)):
        with pytest.raises(DataError, match=rf"image {index} of .*pictures.parquet cannot be read: ."):
            source.load(index)


@pytest.mark.filterwarnings("default")  # which the command shows as a line
def test_evaluation_leaves_them_out(
    pictures: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rise, start = Rise(), time.process_time()
    options = ["--samples", "4", "--steps", "1", "--out", "out"]
    assert main(["evaluate", model, "--against", str(pictures), *options]) == 0
    assert f"left out {len(broken())} of" in capsys.readouterr().err
    assert time.process_time() - start < SECONDS
    assert rise.mib() < MEBIBYTES


# --- pictures as large as they may be ---------------------------------------------------------------------------------


@pytest.mark.slow  # half a minute: the pictures have to be made, too
@pytest.mark.parametrize(
    ("kind", "mode", "size", "options"),
    [
        ("PNG", "RGB", (9400, 9400), {"compress_level": 1}),
        ("PNG", "RGBA", (9400, 9400), {"compress_level": 1}),
        ("PNG", "I;16", (9400, 9400), {"compress_level": 1}),
        ("JPEG", "RGB", (9400, 9400), {}),
        ("JPEG", "RGB", (5400, 5400), {"progressive": True, "subsampling": 0}),
        ("JPEG", "CMYK", (5400, 5400), {"progressive": True}),
        ("WEBP", "RGBA", (5000, 5000), {"lossless": True, "method": 0}),
        ("AVIF", "RGBA", (5000, 5000), {"speed": 10}),
        ("TIFF", "RGB", (5400, 5400), {"compression": "tiff_lzw"}),
        ("GIF", "P", (9400, 9400), {}),
        ("BMP", "RGB", (9400, 9400), {}),
    ],
)
def test_the_largest_pictures_stay_within_the_limits(
    kind: str, mode: str, size: tuple[int, int], options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "large"
    if mode == "I;16":
        Image.new(mode, size, 40_000).save(path, kind, **options)
    else:
        Image.linear_gradient("L").resize(size).convert(mode).save(path, kind, **options)
    decoded = size[0] * size[1] * {"P": 1, "I;16": 2}.get(mode, 4) / 2**20

    def by_pipeline() -> None:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            to_tensor(image, (512, 512), 8, 3, 4)

    for door in (
        lambda: read_picture(path, "x"),
        lambda: read_plain(str(path), str(path), 512),
        lambda: Preparation(512)(read_picture(path, "x", 512), Choice()),
        by_pipeline,
    ):
        rise, start = Rise(), time.process_time()
        door()
        assert time.process_time() - start < SECONDS
        assert rise.mib() < MEBIBYTES
        assert rise.mib() < (5 if kind in ("WEBP", "AVIF") else 3) * decoded
