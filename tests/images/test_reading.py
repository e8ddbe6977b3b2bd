"""Pictures of every format come in as Pillow itself decodes them, whatever the program set in Pillow."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evil_pictures import DATA, chunk, png, saved
from PIL import Image, ImageFile, ImageOps

from ddim.data.preparation import Choice, Preparation
from ddim.errors import DataError
from ddim.images import check_picture, loaded, read_picture, upright
from ddim.images.flat import flatten
from ddim.images.reading import bands, shrunk
from ddim.pipelines.fitting import read_plain

RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8))
TURNED = Image.Exif()
TURNED[0x0112] = 6
TURNED[0x010E] = "a description"
OPTIONS: list[dict[str, Any]] = [
    {}, {"exif": TURNED.tobytes()}, {"lossless": True}, {"progressive": True}, {"subsampling": 0}, {"big_tiff": True},
    {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "packbits"},
    {"compression": "jpeg"}, {"compression": "group4"}, {"save_all": True, "append_images": [NOISE]},
    {"transparency": 3},
]  # fmt: skip


def modes() -> dict[str, Image.Image]:
    made = {mode: NOISE.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F")}
    made["I;16"] = Image.fromarray(RNG.integers(0, 65536, (40, 60), dtype=np.uint16))
    made["RGBA"].putalpha(NOISE.convert("L"))
    return made


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.thin(every=2)
def test_every_kind_of_picture_is_what_pillow_makes_of_it(kind: str) -> None:
    found = 0
    for (mode, image), options in itertools.product(modes().items(), OPTIONS):
        group4 = options.get("compression") == "group4"
        if (group4 and mode != "1") or (options.get("compression") == "jpeg" and mode not in ("L", "RGB")):
            continue
        if kind == "TIFF" and mode == "YCbCr" and "compression" not in options:
            continue  # Pillow 12 writes of these what it finds to be cut off
        try:
            content = saved(kind, image, **options)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, UnboundLocalError, DeprecationWarning):
            continue  # Pillow cannot write this, or soon will not
        with Image.open(io.BytesIO(content)) as expected:
            expected.load()
        picture = read_picture(content, "x")
        assert picture.getexif().get(0x0112, 1) == (6 if options.get("exif") and kind not in ("GIF", "BMP") else 1)
        if kind == "TIFF":
            picture = upright(picture)  # which Pillow does for TIFF alone
        assert (picture.mode, picture.size) == (expected.mode, expected.size)
        assert picture.tobytes() == expected.tobytes()
        assert picture.info.get("transparency") == expected.info.get("transparency")
        assert set(picture.info) <= {"transparency", "exif"}
        assert 0x010E not in picture.getexif()
        found += 1
    assert found > 10


def test_a_picture_is_turned_by_what_its_xmp_says() -> None:
    note = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')
    assert upright(read_picture(png(note), "x")).size == (16, 24)


def test_commands_read_pictures_upright_and_of_8_bits(tmp_path: Path) -> None:
    NOISE.save(tmp_path / "a.jpg", exif=TURNED.tobytes(), quality=100)
    with Image.open(tmp_path / "a.jpg") as image:
        assert read_plain(str(tmp_path / "a.jpg"), "it").tobytes() == ImageOps.exif_transpose(image).tobytes()
    Image.fromarray(np.full((4, 4), 0x8080, np.uint16)).save(tmp_path / "deep.png")
    assert read_plain(str(tmp_path / "deep.png"), "it").getpixel((0, 0)) == 128
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=100)
    red, green, blue = read_plain(str(tmp_path / "c.jpg"), "it").getpixel((0, 0))  # type: ignore[misc]
    assert red > 250
    assert max(green, blue) < 5


def test_pictures_are_made_flat_band_by_band_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for (mode, image), how in itertools.product(modes().items(), ("L", "RGB")):
        if mode == "P":
            image.info["transparency"] = 5
        monkeypatch.setattr("ddim.images.reading._BAND", 1 << 22)
        whole = flatten(image, how)
        monkeypatch.setattr("ddim.images.reading._BAND", 7 * 60)
        assert len(list(bands(image))) == 6
        assert flatten(image, how).tobytes() == whole.tobytes(), mode


def test_large_pictures_are_made_smaller_band_by_band(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = Image.linear_gradient("L").resize((600, 401))
    everyone = {mode: ramp.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F")}
    everyone["I;16"] = Image.fromarray((np.asarray(ramp).astype(np.uint16) + 1) * 200)
    for mode, image in everyone.items():
        assert shrunk(image, 20) is image
        monkeypatch.setattr("ddim.images.reading._LARGE", 1000)
        monkeypatch.setattr("ddim.images.reading._BAND", 600 * 50)
        assert shrunk(image, 150) is image  # with less than twice twice as many
        small = shrunk(image, 50)
        assert small.size == (150, 101)  # by four
        first, second = (
            np.asarray(flatten(each, "L").resize((50, 33), Image.Resampling.LANCZOS), int) for each in (image, small)
        )
        assert np.abs(first - second).max() <= (12 if mode == "1" else 2), mode
        monkeypatch.undo()


def test_a_photo_much_larger_than_needed_is_drafted(tmp_path: Path) -> None:
    photo = Image.linear_gradient("L").resize((1601, 1200), Image.Resampling.BICUBIC).convert("RGB")
    photo.save(tmp_path / "a.jpg", quality=95)
    assert [read_picture(tmp_path / "a.jpg", "x", least).size for least in (None, 400, 300, 150, 16)] == [
        (1601, 1200), (1601, 1200), (801, 600), (401, 300), (201, 150)
    ]  # fmt: skip
    prepare = Preparation(150)
    whole, drafted = (prepare(read_picture(tmp_path / "a.jpg", "x", least), Choice()) for least in (None, 150))
    assert float((whole - drafted).abs().max()) < 0.02
    again = prepare(read_picture(tmp_path / "a.jpg", "x", 150), Choice())
    assert bool((again == drafted).all())


def test_a_long_picture_is_cropped_before_it_is_resized() -> None:
    ramp = np.linspace(0, 255, 4000).astype(np.uint8)[None].repeat(200, 0)
    prepare = Preparation(20, center_crop=False)
    expected = prepare(Image.fromarray(ramp[:, :3000]).resize((300, 20), Image.Resampling.LANCZOS), Choice((0.3, 0.5)))
    for choice in (Choice((0.3, 0.5)), Choice((1.0, 0.5)), Choice((0.0, 0.5))):
        found = prepare(Image.fromarray(ramp), choice)  # 400 x 20, twenty times as long as high
        whole = Image.fromarray(ramp).resize((400, 20), Image.Resampling.LANCZOS)
        left = min(int(choice.crop[0] * 381), 380)
        by_hand = np.asarray(whole.crop((left, 0, left + 20, 20)), np.float32) / 127.5 - 1
        assert np.abs(found[0].numpy() - by_hand).max() <= 1.01 / 127.5
    assert expected.shape == found.shape
    assert prepare(Image.new("L", (30_000, 1)), Choice()).shape == (3, 20, 20)  # whole, it would have 12 million pixels


def test_a_picture_that_was_opened_and_not_decoded_is_checked(tmp_path: Path) -> None:
    for name, content in {"a.png": png(), "a.jpg": saved("JPEG"), "a.webp": saved("WEBP")}.items():
        (tmp_path / name).write_bytes(content)
        with Image.open(tmp_path / name) as image:
            assert loaded(image, "image") is image
            assert image.tobytes() == Image.open(tmp_path / name).tobytes()
    decoded = Image.open(io.BytesIO(saved("PPM")))
    with pytest.raises(DataError, match=r"image cannot be read: it is a file of format PPM .* load\(\)"):
        loaded(decoded, "image")
    decoded.load()  # which says that the program trusts it
    assert loaded(decoded, "image") is decoded
    with (
        Image.open(io.BytesIO(png(data=chunk(b"IDAT", DATA, check=5)))) as image,
        pytest.raises(DataError, match="sum"),
    ):
        loaded(image, "image")
    plain = Image.new("RGB", (3, 3))
    assert loaded(plain, "image") is plain


@pytest.mark.parametrize("most", [None, 100, 1])
@pytest.mark.parametrize("truncated", [False, True])
def test_what_the_program_set_in_pillow_is_neither_changed_nor_followed(
    most: int | None, truncated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, cut = saved("PNG"), saved("JPEG")[:-100]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated)
    assert read_picture(content, "x").size == (24, 16)
    assert check_picture(content, "x") == (24, 16)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF"):
        with pytest.raises(DataError, match=r"x cannot be read: (it is cut off|its .* bytes cannot hold)"):
            read_picture(saved(kind)[: len(saved(kind)) * 2 // 3], "x")
    with pytest.raises(DataError):
        read_picture(cut, "x")
    with pytest.raises(DataError, match="more than 89 megapixels"):
        read_picture(saved("PNG", Image.new("1", (10_000, 10_000))), "x")
    assert (most, truncated) == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
