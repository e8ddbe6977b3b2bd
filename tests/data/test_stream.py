"""Sources of images and the stream made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddim.data import digits, image_folder, open_source
from ddim.data.preparation import Preparation
from ddim.images.flat import flatten
from ddim.data.stream import Stream
from ddim.errors import DataError

RNG = np.random.default_rng


def picture(size: tuple[int, int] = (20, 10), mode: str = "RGB", value: int = 128) -> Image.Image:
    return Image.new(mode, size, (value,) * len(Image.new(mode, (1, 1)).getbands()) if mode != "P" else value)


def test_digits_are_the_real_ones_split_for_good() -> None:
    train, held_out, every = digits("train"), digits("held-out"), digits("all")
    assert (train.count, held_out.count, every.count) == (1437, 360, 1797)
    images = [torch.stack([s.load(i) for i in range(s.count)]) for s in (train, held_out, every)]
    assert torch.cat(images[:2]).sum() == pytest.approx(images[2].sum().item(), rel=1e-5)
    assert images[2].min() == -1
    assert images[2].max() == 1
    overlap = {im.numpy().tobytes() for im in images[0]} & {im.numpy().tobytes() for im in images[1]}
    assert not overlap
    assert train.labels is not None
    assert set(train.labels) == set(range(10))


def test_the_stream_is_a_function_of_position_and_seed_and_each_epoch_has_every_image() -> None:
    source = digits("held-out")
    stream, again, other = (Stream(source, Preparation(8, 1, random_flip=True), seed) for seed in (3, 3, 4))
    for position in (0, 359, 360, 5000):
        assert torch.equal(stream[position]["image"], again[position]["image"])
    plain = Stream(source, Preparation(8, 1), 3)
    for epoch in (0, 1):
        seen = {plain[epoch * 360 + i]["image"].numpy().tobytes() for i in range(360)}
        assert len(seen) == len({source.load(i).numpy().tobytes() for i in range(360)})  # type: ignore[union-attr]
    assert any(not torch.equal(stream[i]["image"], other[i]["image"]) for i in range(5))


def test_labels_stay_with_their_images(tmp_path: Path) -> None:
    for index, name in enumerate(["blue", "red"]):
        (tmp_path / name).mkdir()
        for copy in range(5):
            picture(value=50 + 100 * index).save(tmp_path / name / f"{copy}.png")
    source = open_source(str(tmp_path), class_conditional=True)
    assert source.class_names == ("blue", "red")
    stream = Stream(source, Preparation(8), 0)
    for position in range(40):
        item = stream[position]
        assert item["label"] == int(item["image"].mean() > 0)


def test_broken_images_are_left_out_with_a_count_and_reasons(tmp_path: Path) -> None:
    picture().save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    cut_in_half(tmp_path / "cut.jpg")
    (tmp_path / "notes.txt").write_text("not an image, not counted")
    with pytest.warns(UserWarning, match=r"left out 2 of 3 images: 2 unreadable \(bad\.png, cut\.jpg\)$") as caught:
        source = image_folder(tmp_path)
    assert caught[0].filename == __file__
    assert source.count == 1


def cut_in_half(path: Path) -> None:
    Image.fromarray(RNG(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path, quality=95)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def test_a_truncated_image_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddim.data.usable.DECODED_AT_START", 0)
    cut_in_half(tmp_path / "cut.jpg")
    source = image_folder(tmp_path)
    with pytest.raises(DataError, match=r"cut\.jpg"):
        source.load(0)


@pytest.mark.parametrize(
    ("name", "message"), [("empty", "no readable images"), ("missing/at/all", "cannot be read as a dataset")]
)
def test_no_images_is_an_error(tmp_path: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path / name), class_conditional=False)


def test_classes_need_folders(tmp_path: Path) -> None:
    picture().save(tmp_path / "loose.png")
    with pytest.raises(DataError, match="outside of sub-folders"):
        image_folder(tmp_path, class_conditional=True)


@pytest.mark.parametrize("size", [(1, 1), (20, 10), (10, 31), (300, 3)])
@pytest.mark.parametrize("center", [True, False])
def test_pictures_of_any_shape_become_the_resolution_asked_for(size: tuple[int, int], center: bool) -> None:
    tensor = Preparation(8, 3, center_crop=center)(picture(size), RNG(0))
    assert tensor.shape == (3, 8, 8)
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor, torch.full((3, 8, 8), 128 / 127.5 - 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("target", ["L", "RGB"])
def test_every_mode_is_flattened(mode: str, target: str) -> None:
    image = Image.fromarray(RNG(0).integers(0, 255, (6, 5, 4), dtype=np.uint8), "RGBA")
    converted = image.convert("L").convert(mode) if mode in ("I;16", "F", "LA") else image.convert(mode)
    assert flatten(converted, target).mode == target
    assert flatten(converted, target).size == (5, 6)


def test_transparency_becomes_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert flatten(clear, "RGB").getpixel((0, 0)) == (255, 255, 255)


def test_crop_takes_the_middle() -> None:
    image = Image.new("RGB", (30, 10), "black")
    image.paste("white", (10, 0, 20, 10))
    assert Preparation(10)(image, RNG(0)).min() == 1


@pytest.mark.parametrize("labels", [["cat", "dog", "cat"], [7, 3, 7]])
def test_a_parquet_file_with_labels(tmp_path: Path, labels: list[object]) -> None:
    datasets = pytest.importorskip("datasets")
    images = [picture(value=v) for v in (10, 200, 20)]
    data = datasets.Dataset.from_dict({"image": images, "label": labels}).cast_column("image", datasets.Image())
    data.to_parquet(str(tmp_path / "d.parquet"))
    source = open_source(str(tmp_path / "d.parquet"), class_conditional=True)
    assert source.count == 3
    assert source.labels is not None
    assert source.labels[0] == source.labels[2] != source.labels[1]
    assert source.class_names == tuple(str(name) for name in sorted(set(labels)))  # type: ignore[type-var]
    assert source.load(1).getpixel((0, 0)) == (200, 200, 200)  # type: ignore[union-attr]
    with pytest.raises(DataError, match="no column 'picture'"):
        open_source(str(tmp_path / "d.parquet"), class_conditional=False, image_column="picture")
