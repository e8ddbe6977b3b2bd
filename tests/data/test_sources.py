"""Pictures with captions: every layout, everything that can be wrong with one, and that no caption ever shifts."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import re
import tempfile
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ddim.data import Source, captioned_source, usable
from ddim.data.captions import texts_of
from ddim.errors import ConfigError, DataError, MissingExtraError

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def numbered(index: int, size: int = 4) -> Image.Image:
    """A picture that says which it is."""
    return Image.new("RGB", (size, size), (index % 251, index // 251, 99))


def number_of(image: object) -> int:
    assert isinstance(image, Image.Image)
    red, green, _ = image.convert("RGB").getpixel((0, 0))  # type: ignore[misc]
    return int(red) + 251 * int(green)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8))


def write_jsonl(folder: Path, rows: list[dict[str, Any]], name: str = "metadata.jsonl") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(folder: Path, rows: list[dict[str, Any]]) -> None:
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "text"])
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(folder: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")


def write_table(path: Path, images: list[Any], texts: list[Any], image_column: str = "image") -> str:
    """A parquet file as others write it: images as bytes, without the library's own description of the columns."""
    cells = [{"bytes": image, "path": None} if isinstance(image, bytes) else image for image in images]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({image_column: pa.array(cells, kind), "text": texts}), path)
    return str(path)


def listed_pairs(source: Source) -> list[tuple[int, tuple[str, ...]]]:
    assert source.captions is not None
    assert len(source.captions) == source.count
    return [(number_of(source.load(index)), source.captions[index]) for index in range(source.count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, a.png to c.png, and no captions yet."""
    root = tmp_path / "set"
    root.mkdir()
    for index, name in enumerate("abc"):
        numbered(index).save(root / f"{name}.png")
    return root


ROWS = [{"file_name": f"{name}.png", "text": f"picture {index}"} for index, name in enumerate("abc")]
PAIRS = [(index, (f"picture {index}",)) for index in range(3)]


# --- the layouts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_parquet])
def test_a_folder_with_a_metadata_file(folder: Path, write: Callable[..., None]) -> None:
    write(folder, ROWS)
    assert listed_pairs(captioned_source(train_data_dir=folder)) == PAIRS


def test_the_order_is_the_metadata_files(folder: Path) -> None:
    write_jsonl(folder, ROWS[::-1])
    assert listed_pairs(captioned_source(train_data_dir=folder)) == PAIRS[::-1]


def test_a_text_beside_each_picture_has_a_caption_a_line(folder: Path) -> None:
    numbered(3).save(folder / "d.e.PNG")
    for name, text in [("a", "picture 0\n"), ("b", "\n picture 1 \r\n\r\n"), ("c", "one\ntwo\n"), ("d.e", "three")]:
        (folder / f"{name}.txt").write_bytes(text.encode())
    pairs = listed_pairs(captioned_source(train_data_dir=folder))
    assert pairs == [*PAIRS[:2], (2, ("one", "two")), (3, ("three",))]


def test_folders_below_have_metadata_files_of_their_own(tmp_path: Path) -> None:
    for index, name in enumerate(["one", "two/deep"]):
        write_jsonl(tmp_path / name, [{"file_name": "x/same.png", "text": f"picture {index}"}])
        (tmp_path / name / "x").mkdir()
        numbered(index).save(tmp_path / name / "x" / "same.png")
    (tmp_path / "csv").mkdir()
    write_csv(tmp_path / "csv", [{"file_name": "../two/../over.png", "text": "picture 2"}])
    numbered(2).save(tmp_path / "over.png")
    assert sorted(listed_pairs(captioned_source(train_data_dir=tmp_path))) == PAIRS


@pytest.mark.parametrize("column", ["file_name", "picture_file_name"])
def test_columns_may_have_other_names(folder: Path, column: str) -> None:
    write_jsonl(folder, [{column: row["file_name"], "prompt": row["text"], "n": [1]} for row in ROWS])
    source = captioned_source(train_data_dir=folder, image_column="picture", caption_column="prompt")
    assert listed_pairs(source) == PAIRS


def test_the_pictures_of_imagefolder_and_their_captions_are_the_same(tmp_path: Path) -> None:
    """Agreement with the `datasets` library, which defines the layout."""
    for part in ("", "sub"):
        (tmp_path / part).mkdir(exist_ok=True)
        names = [f"{part or 'top'}{index}.png" for index in range(3)]
        for index, name in enumerate(names):
            numbered(index + 10 * len(part)).save(tmp_path / part / name)
        write_jsonl(tmp_path / part, [{"file_name": name, "text": f"of {name}, «é»"} for name in names])
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split="train")
    expected = sorted((number_of(row["image"]), (row["text"],)) for row in theirs)
    assert sorted(listed_pairs(captioned_source(train_data_dir=tmp_path))) == expected


def test_parquet_files_by_name_by_pattern_and_by_folder(tmp_path: Path) -> None:
    home = tmp_path / "odd [1]"
    home.mkdir()
    for part in range(2):
        images = [encoded(numbered(2 * part + index)) for index in range(2)]
        texts = [f"picture {2 * part + index}" for index in range(2)]
        write_table(home / f"train-{part}.parquet", images, texts)
    write_table(home / "test-0.parquet", [encoded(numbered(7))], ["picture 7"])
    (home / "README.md").write_text("is no parquet file")
    pairs = [(index, (f"picture {index}",)) for index in range(4)]
    assert listed_pairs(captioned_source(dataset_name=str(home / "train-1.parquet"))) == pairs[2:]
    assert listed_pairs(captioned_source(dataset_name=home)) == pairs
    assert listed_pairs(captioned_source(dataset_name=home, split="test")) == [(7, ("picture 7",))]
    assert listed_pairs(captioned_source(dataset_name=home, split="train[1:3]")) == pairs[1:3]
    pattern = str(tmp_path / "odd*" / "tr*.parquet")
    assert listed_pairs(captioned_source(dataset_name=pattern)) == pairs
    with pytest.raises(DataError, match=r"no file of a split 'dev'; it has test-0\.parquet, train-0"):
        captioned_source(dataset_name=home, split="dev")


def test_saved_datasets(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))})
    rows = {"image": [numbered(index) for index in range(3)], "text": [["one", "two"], ["three"], [""]]}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.with_format("pandas").save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "two")
    for name in ("one", "two"):
        with pytest.warns(UserWarning, match=r"left out 1 of 3 images: 1 without a caption \(row 2\)"):
            source = captioned_source(dataset_name=str(tmp_path / name))
        assert listed_pairs(source) == [(0, ("one", "two")), (1, ("three",))]
        assert listed_pairs(pickle.loads(pickle.dumps(source))) == listed_pairs(source)
    assert captioned_source(dataset_name=str(tmp_path / "two"), split="test").captions == [("three",)]
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        captioned_source(dataset_name=str(tmp_path / "two"), split="dev")


def test_a_folder_source_can_be_sent_to_a_process_and_does_not_depend_on_the_working_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(folder, ROWS)
    monkeypatch.chdir(folder.parent)
    source = pickle.loads(pickle.dumps(captioned_source(train_data_dir="set")))
    monkeypatch.chdir("/")
    assert listed_pairs(source) == PAIRS


def test_the_hub_is_asked_for_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    data = datasets.Dataset.from_dict({"image": [{"bytes": encoded(numbered(5)), "path": None}], "text": ["five"]})

    def load_dataset(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        return data

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = captioned_source(dataset_name="who/what", dataset_config_name="small", split="test")
    assert asked == [(("who/what", "small"), {"split": "test"})]
    assert listed_pairs(source) == [(5, ("five",))]
    data = data.select([])
    with pytest.raises(DataError, match="who/what is empty"):
        captioned_source(dataset_name="who/what")


# --- captions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (" a cat\n", ("a cat",)),
        ("cafe\u0301", ("caf\u00e9",)),
        ("a\u2028b", ("a\u2028b",)),
        ("🐈", ("🐈",)),
        (["one", "two", "one ", None, ""], ("one", "two")),
        ("", ()),
        (" \t\u00a0\u200b\ufeff\0", ()),
        ("half \ud800", ()),
        (None, ()),
        (5, ()),
        (float("nan"), ()),
        ({"text": "no"}, ()),
        ([], ()),
        ([[["deep"]]], ()),
    ],
)
def test_what_is_a_caption(value: object, texts: tuple[str, ...]) -> None:
    assert texts_of(value) == texts


@given(st.one_of(st.text(), st.lists(st.one_of(st.text(), st.none(), st.integers()))))
def test_captions_are_normal_and_stay_so(value: object) -> None:
    texts = texts_of(value)
    assert texts_of(list(texts)) == texts
    assert all(text == unicodedata.normalize("NFC", text).strip() != "" for text in texts)


def test_a_line_separator_in_a_json_string_is_no_new_line(folder: Path) -> None:
    rows = [{**row, "text": f"{row['text']}\u2028\u0085 more"} for row in ROWS]
    text = "\ufeff" + "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "metadata.jsonl").write_bytes(text.encode())
    assert captioned_source(train_data_dir=folder).captions == [(row["text"],) for row in rows]


def test_quoted_csv_texts_may_have_commas_and_lines(folder: Path) -> None:
    rows = [{**row, "text": f'{row["text"]}, "so"\nto say'} for row in ROWS]
    write_csv(folder, rows)
    assert captioned_source(train_data_dir=folder).captions == [(row["text"],) for row in rows]


# --- pictures that are used as they are ------------------------------------------------------------------------------


def test_pictures_of_every_kind_are_returned_as_they_are(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 4), colour).convert("P") for colour in ("red", "blue")]
    exif = Image.Exif()
    exif[0x0112] = 6
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "animated.gif": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "animated.webp": (numbered(1), {"save_all": True, "append_images": [numbered(2)], "lossless": True}),
        "pages.tiff": (numbered(1), {"save_all": True, "append_images": [numbered(2)]}),
        "turned.jpg": (Image.new("RGB", (5, 4)), {"exif": exif}),
        "sixteen.png": (Image.fromarray(np.full((4, 5), 40_000, dtype=np.uint16)), {}),
        "float.tif": (Image.new("F", (5, 4), 0.5), {}),
        "cmyk.jpg": (Image.new("CMYK", (5, 4), (1, 2, 3, 4)), {}),
        **{f"{mode}.png": (Image.new(mode, (5, 4)), {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    }
    for name, (image, options) in made.items():
        image.save(tmp_path / name, **options)
    write_jsonl(tmp_path, [{"file_name": name, "text": name} for name in made])
    source = captioned_source(train_data_dir=tmp_path)
    assert source.captions == [(name,) for name in made]
    loaded = {name: source.load(index) for index, name in enumerate(made)}
    for name, (image, _) in made.items():
        found = loaded[name]
        assert isinstance(found, Image.Image)
        if not name.startswith(("animated", "sixteen")):
            assert found.mode == image.mode
        assert found.size == image.size
    assert number_of(loaded["animated.webp"]) == number_of(loaded["pages.tiff"]) == 1
    assert loaded["animated.gif"].convert("RGB").getpixel((0, 0)) == (255, 0, 0)  # type: ignore[union-attr,operator]
    assert loaded["sixteen.png"].getpixel((0, 0)) == 40_000  # type: ignore[union-attr]
    assert ImageOps.exif_transpose(loaded["turned.jpg"]).size == (4, 5)  # type: ignore[arg-type]

    cells = [(tmp_path / name).read_bytes() for name in made]
    table = captioned_source(dataset_name=write_table(tmp_path / "t.parquet", cells, list(made)))
    for index, image in enumerate(loaded.values()):
        other = table.load(index)
        assert (other.mode, other.size, other.tobytes()) == (  # type: ignore[union-attr]
            image.mode,  # type: ignore[union-attr]
            image.size,
            image.tobytes(),  # type: ignore[union-attr]
        )


# --- pictures that are left out --------------------------------------------------------------------------------------


def bad_pictures() -> dict[str, tuple[bytes, str]]:
    whole = encoded(noise(), "JPEG", quality=95)
    damaged = bytearray(encoded(noise()))
    damaged[len(damaged) // 2] ^= 255
    large = encoded(Image.new("1", (10_000, 10_000)))
    huge = encoded(Image.new("1", (20_000, 10_000)))
    return {
        "no image": (b"nothing of the kind", "unreadable"),
        "empty": (b"", "unreadable"),
        "cut JPEG": (whole[: len(whole) // 2], "unreadable"),
        "cut PNG": (encoded(noise())[:5000], "unreadable"),
        "damaged PNG": (bytes(damaged), "unreadable"),
        "PostScript": (encoded(noise(), "EPS"), "unreadable"),  # Pillow would start another program
        "PCX": (encoded(noise(), "PCX"), "unreadable"),  # no format that is read
        "a pixel": (encoded(Image.new("RGB", (1, 1))), "with a side of less than 2 pixels"),
        "a line": (encoded(Image.new("RGB", (50, 1))), "with a side of less than 2 pixels"),
        "100 MP": (large, "of more than 89 megapixels"),
        "200 MP": (huge, "of more than 89 megapixels"),
    }


@pytest.fixture(scope="module")
def bad() -> dict[str, tuple[bytes, str]]:
    return bad_pictures()


@pytest.mark.parametrize("kind", list(bad_pictures()))
@pytest.mark.parametrize("layout", ["jsonl", "txt", "table"])
def test_a_bad_picture_is_left_out_with_its_caption(
    folder: Path, bad: dict[str, tuple[bytes, str]], kind: str, layout: str
) -> None:
    content, reason = bad[kind]
    (folder / "b.png").write_bytes(content)
    if layout == "jsonl":
        write_jsonl(folder, ROWS)
    for row in ROWS if layout == "txt" else []:
        (folder / row["file_name"]).with_suffix(".txt").write_text(row["text"])
    place: dict[str, Any] = {"train_data_dir": folder}
    if layout == "table":
        images = [(folder / row["file_name"]).read_bytes() for row in ROWS]
        place = {"dataset_name": write_table(folder / "x.parquet", images, [row["text"] for row in ROWS])}
    name = "row 1" if layout == "table" else "b.png"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = captioned_source(**place)
    assert [str(one.message).split(": ", 1)[1] for one in caught] == [f"left out 1 of 3 images: 1 {reason} ({name})"]
    assert caught[0].filename == __file__
    assert listed_pairs(source) == [PAIRS[0], PAIRS[2]]


def test_reasons_are_grouped_and_long_lists_cut_short(tmp_path: Path) -> None:
    for index in range(120):
        numbered(index).save(tmp_path / f"{index:03}.png")
    for index in range(10, 17):
        (tmp_path / f"{index:03}.png").write_bytes(b"bad")
    rows = [{"file_name": f"{index:03}.png", "text": f"picture {index}" * (index != 30)} for index in range(119)]
    write_jsonl(tmp_path, rows)
    message = (
        "left out 9 of 120 images: 7 unreadable (010.png, 011.png, 012.png, 013.png, 014.png and 2 more), "
        "2 without a caption (030.png, 119.png)"
    )
    with pytest.warns(UserWarning, match=re.escape(message) + "$"):
        source = captioned_source(train_data_dir=tmp_path)
    assert [index for index, _ in listed_pairs(source)] == [i for i in range(119) if not 10 <= i < 17 and i != 30]


def test_a_row_that_leads_nowhere_is_left_out(folder: Path, tmp_path: Path) -> None:
    numbered(9).save(tmp_path / "secret.png")
    (tmp_path / "elsewhere").mkdir()
    numbered(9).save(tmp_path / "elsewhere" / "x.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "dangling.png").symlink_to(folder / "nothing")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe.png")
    outside = [
        *("../secret.png", "x/../../secret.png", str(tmp_path / "secret.png"), "C:\\a.png", "..", "\\\\host\\a.png"),
        *("link.png", "linked/x.png", "../set/../secret.png"),
    ]
    missing = ["gone.png", "dangling.png", "pipe.png", "a.png/b", "A.PNG", "b.png\0", "file://a.png", ".", "\ud800"]
    rows = [{"file_name": name, "text": "nothing"} for name in (*outside, *missing, None, 7, "")]
    write_jsonl(folder, [ROWS[0], *rows, *ROWS[1:]])
    with pytest.warns(UserWarning, match="left out") as caught:
        source = captioned_source(train_data_dir=folder)
    message = str(caught[0].message)
    assert f"{len(outside)} outside of the folder (../secret.png, x/../../secret.png" in message
    assert f"{len(missing)} whose file is missing (gone.png" in message
    assert "A.PNG, but there is a.png" in message
    assert "3 without a file name" in message
    assert "metadata.jsonl, line 20" in message
    assert listed_pairs(source) == PAIRS


def test_names_that_differ_in_case_only_are_different_files(folder: Path) -> None:
    numbered(3).save(folder / "A.png")
    if len(list(folder.iterdir())) < 4:
        pytest.skip("this file system knows no case")
    write_jsonl(folder, [*ROWS, {"file_name": "A.png", "text": "picture 3"}])
    assert listed_pairs(captioned_source(train_data_dir=folder)) == [*PAIRS, (3, ("picture 3",))]


def test_composed_and_decomposed_names_are_the_same(folder: Path) -> None:
    numbered(3).save(folder / "e\u0301.png")
    write_jsonl(folder, [*ROWS, {"file_name": "\u00e9.png", "text": "picture 3"}])
    assert listed_pairs(captioned_source(train_data_dir=folder)) == [*PAIRS, (3, ("picture 3",))]


def test_a_file_listed_twice_has_all_its_captions_and_is_told_of(folder: Path) -> None:
    (folder / "link.png").symlink_to("c.png")
    more = [
        {"file_name": "./a.png", "text": "picture 0"},
        {"file_name": "sub/../b.png", "text": "picture one"},
        {"file_name": "link.png", "text": "the third"},
        {"file_name": "b.png", "text": ""},
    ]
    write_jsonl(folder, [*ROWS, *more])
    with pytest.warns(UserWarning, match=r"set: 3 listed more than once.*\(a\.png, b\.png, c\.png\)$"):
        source = captioned_source(train_data_dir=folder)
    assert listed_pairs(source) == [
        (0, ("picture 0",)),
        (1, ("picture 1", "picture one")),
        (2, ("picture 2", "the third")),
    ]


def test_a_snapshot_in_the_hubs_cache_is_made_of_links(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "datasets--x" / "snapshots" / "abc", tmp_path / "datasets--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_jsonl(folder, ROWS)
    for file in folder.iterdir():
        file.rename(blobs / file.name.encode().hex())
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name.encode().hex())
    assert listed_pairs(captioned_source(train_data_dir=snapshot)) == PAIRS


def test_texts_and_pictures_that_have_no_partner(folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_text("picture 0")
    (folder / "b.txt").write_text(" \n")
    (folder / "lonely.txt").write_text("nobody")
    (folder / ".hidden.txt").write_text("nobody")
    numbered(5).save(folder / "._d.png")
    (tmp_path / "private.txt").write_text("secret")
    numbered(4).save(folder / "e.png")
    (folder / "e.txt").symlink_to(tmp_path / "private.txt")
    message = (
        "left out 4 of 5 images: 2 without a caption (b.png, c.png), 1 outside of the folder (e.png), "
        "1 without an image of its name (lonely.txt)"
    )
    with pytest.warns(UserWarning, match=re.escape(message)):
        source = captioned_source(train_data_dir=folder)
    assert listed_pairs(source) == PAIRS[:1]


def test_only_as_many_as_are_wanted_and_bad_ones_do_not_count(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"bad")
    write_jsonl(folder, ROWS)
    with pytest.warns(UserWarning, match="left out 1 of 2 images"):
        source = captioned_source(train_data_dir=folder, max_train_samples=1)
    assert listed_pairs(source) == PAIRS[1:2]


def test_the_smallest_side_can_be_chosen(folder: Path) -> None:
    numbered(1, size=64).save(folder / "b.png")
    write_jsonl(folder, ROWS)
    with pytest.warns(UserWarning, match=r"2 with a side of less than 64 pixels \(a\.png, c\.png\)"):
        source = captioned_source(train_data_dir=folder, minimum=64)
    assert listed_pairs(source) == PAIRS[1:2]


def test_cells_of_a_table_that_hold_no_picture(tmp_path: Path) -> None:
    numbered(1).save(tmp_path / "in.png")
    (tmp_path / "data").mkdir()
    numbered(0).save(tmp_path / "data" / "in.png")
    paths = ["in.png", "../in.png", str(tmp_path / "in.png"), "https://host/a.png", "gone.png", "\0", "data", ""]
    cells = [{"bytes": None, "path": path} for path in paths]
    name = write_table(tmp_path / "data" / "x.parquet", [*cells, None], [f"picture {i}" for i in range(9)])
    message = (
        "left out 8 of 9 images: 2 outside of the data's folder (row 1, row 2), "
        "1 with only the address of an image (row 3), 3 whose file is missing (row 4, row 5, row 6), "
        "2 without an image (row 7, row 8)"
    )
    with pytest.warns(UserWarning, match=re.escape(message)):
        source = captioned_source(dataset_name=name)
    assert listed_pairs(source) == PAIRS[:1]


# --- what is an error ------------------------------------------------------------------------------------------------


ROW = b'{"file_name": "a.png", "text": "x"}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", ROW + b'\n\n{"file_name": ', r"metadata\.jsonl, line 3: .* not valid JSON"),
        ("metadata.jsonl", ROW + b'\n["b.png", "y"]', "line 2: a JSON list where an object is needed"),
        ("metadata.jsonl", b"[" * 100_000, "line 1: .* not valid JSON"),
        ("metadata.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "line 1: .* not valid JSON"),
        ("metadata.jsonl", b'{"file_name": "a.png",\n"text": "caf\xe9"}', "line 2: this is not UTF-8"),
        ("metadata.jsonl", ROW.decode().encode("utf-16"), "line 1: this is not UTF-8"),
        ("metadata.jsonl", b'{"file": "a.png", "text": "x"}', "no column 'file_name'; it has file, text; .* 'file'"),
        ("metadata.jsonl", b'{"file_name": "a.png", "Texts": "x"}', "it has file_name, Texts; did you mean 'Texts'"),
        ("metadata.csv", b"file_name,text\na.png,x\nb.png,a cat, asleep\n", "line 3: 3 fields where there are 2"),
        ("metadata.csv", b'file_name,text\na.png,"one\n\nb.png,two\n', "csv, line 2: .* not valid CSV"),
        ("metadata.csv", b"file_name,text,text\na.png,one,two\n", "line 1: two columns have the same name"),
        ("metadata.csv", b"file_name,blurb\na.png,one\n", "it has file_name, blurb; did you mean 'blurb'"),
        ("metadata.csv", b"file_name,one,two\na.png,x,y\n", "no column 'text'; it has file_name, one, two$"),
        ("metadata.csv", b"file_name,text\na.png,caf\xe9\n", "line 2: this is not UTF-8"),
        ("metadata.parquet", b"PAR1 no", "cannot be read as parquet"),
        ("a.txt", b"one\ntw\xf6", r"a\.txt, line 2: this is not UTF-8"),
        ("metadata.jsonl", b"", "no image that can be used: 3 without a caption"),
        ("README", b"", r"no image that can be used: 3 without a caption .*a\.txt beside a\.png"),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": 5}', "no image that can be used: 3 without a caption"),
    ],
)
def test_captions_that_cannot_be_read_are_an_error(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        captioned_source(train_data_dir=folder)


def test_two_metadata_files_in_one_folder_are_an_error(folder: Path) -> None:
    write_jsonl(folder, ROWS)
    write_csv(folder, ROWS)
    with pytest.raises(DataError, match="set has 2 metadata files"):
        captioned_source(train_data_dir=folder)


def test_a_metadata_file_elsewhere_is_an_error(folder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "other", ROWS)
    (folder / "metadata.jsonl").symlink_to(tmp_path / "other" / "metadata.jsonl")
    with pytest.raises(DataError, match="a link to a file outside of the folder"):
        captioned_source(train_data_dir=folder)


def test_a_parquet_metadata_file_with_broken_texts_is_an_error(folder: Path) -> None:
    texts = pa.array([b"ok", b"caf\xe9", b"ok"]).view(pa.string())
    pq.write_table(pa.table({"file_name": ["a.png", "b.png", "c.png"], "text": texts}), folder / "metadata.parquet")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        captioned_source(train_data_dir=folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of train_data_dir and dataset_name"),
        ({"train_data_dir": "a", "dataset_name": "b"}, "one of train_data_dir and dataset_name"),
        ({"train_data_dir": "a", "split": "test"}, "are for dataset_name"),
        ({"train_data_dir": "a", "dataset_config_name": "x"}, "are for dataset_name"),
        ({"train_data_dir": "a", "max_train_samples": 0}, "max_train_samples must be 1 or more, not 0"),
        ({"train_data_dir": "a", "minimum": 0}, "minimum must be 1 or more, not 0"),
        ({"dataset_name": ".", "dataset_config_name": "x"}, "is for datasets on the hub"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        captioned_source(**options)


def test_no_data_is_an_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = write_table(tmp_path / "empty.parquet", [], pa.array([], pa.string()))
    full = write_table(tmp_path / "full.parquet", [encoded(numbered(0))], ["one"])
    places = [
        ({"train_data_dir": tmp_path / "nowhere"}, "there is no folder"),
        ({"train_data_dir": folder / "a.png"}, "there is no folder"),
        ({"train_data_dir": tmp_path / "empty"}, "it has no images"),
        ({"dataset_name": tmp_path / "gone.parquet"}, "there is no file"),
        ({"dataset_name": str(tmp_path / "*.gone")}, "there is no file"),
        ({"dataset_name": folder}, "given as train_data_dir"),
        ({"dataset_name": folder / "a.png"}, "cannot be read as a dataset"),
        ({"dataset_name": "no/where"}, "cannot be read as a dataset"),
        ({"dataset_name": empty}, "cannot be read as a dataset: .*: .*"),  # the library cannot
        ({"dataset_name": full, "split": "train[:0]"}, "no data"),
    ]
    for place, message in places:
        with pytest.raises(DataError, match=message):
            captioned_source(**place)  # type: ignore[arg-type]


def test_columns_that_are_missing_or_of_another_kind(tmp_path: Path) -> None:
    name = write_table(tmp_path / "x.parquet", [encoded(numbered(0))], ["one"], image_column="jpg")
    with pytest.raises(DataError, match="no column 'image'; it has jpg, text; did you mean 'jpg'"):
        captioned_source(dataset_name=name)
    with pytest.raises(DataError, match="no column 'caption'; it has jpg, text; did you mean 'text'"):
        captioned_source(dataset_name=name, image_column="jpg", caption_column="caption")
    numbers = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"image": [1, 2], "text": ["one", "two"]}), numbers)
    with pytest.raises(DataError, match=r"column 'image' of .* holds no images"):
        captioned_source(dataset_name=str(numbers))
    features = datasets.Features({"view": datasets.Image(), "text": datasets.Value("string")})
    data = datasets.Dataset.from_dict({"view": [numbered(0)], "text": ["one"]}, features=features)
    data.save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="no column 'image'; it has view, text; did you mean 'view'"):
        captioned_source(dataset_name=tmp_path / "saved")
    with pytest.raises(DataError, match="no image that can be used: 1 without a caption"):
        captioned_source(dataset_name=tmp_path / "saved", image_column="view", caption_column="view")


@pytest.mark.parametrize("layout", ["folder", "table"])
def test_nothing_but_bad_pictures_is_an_error(folder: Path, layout: str) -> None:
    for file in folder.iterdir():
        file.write_bytes(b"bad")
    write_jsonl(folder, ROWS)
    place = {"train_data_dir": str(folder)}
    if layout == "table":
        place = {"dataset_name": write_table(folder / "x.parquet", [b"bad"] * 3, ["one", "two", "three"])}
    with pytest.raises(DataError, match="no image that can be used: 3 unreadable"):
        captioned_source(**place)  # type: ignore[arg-type]


def test_a_folder_needs_no_datasets_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(folder, ROWS)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert captioned_source(train_data_dir=folder).count == 3
    with pytest.raises(MissingExtraError, match=r"pip install 'ddim\[train\]'"):
        captioned_source(dataset_name=str(folder / "x.parquet"))


# --- what is found later ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["folder", "table"])
def test_past_what_is_decoded_at_the_start_a_cut_picture_is_an_error_that_names_it(
    folder: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usable, "DECODED_AT_START", 16)
    cut = encoded(noise(), "JPEG", quality=95)[:2000]
    (folder / "b.png").write_bytes(cut)
    write_jsonl(folder, ROWS)
    place = {"train_data_dir": str(folder)}
    if layout == "table":
        cells = [encoded(numbered(0)), cut]
        place = {"dataset_name": write_table(folder / "x.parquet", cells, ["one", "two"])}
    source = captioned_source(**place)  # type: ignore[arg-type]
    assert number_of(source.load(0)) == 0
    with pytest.raises(
        DataError, match=r"b\.png cannot be read" if layout == "folder" else "image 1 of .* cannot be read"
    ):
        source.load(1)


def test_a_cut_png_is_found_at_the_start_however_many_there_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usable, "DECODED_AT_START", 0)
    (folder / "b.png").write_bytes(encoded(noise())[:5000])
    write_jsonl(folder, ROWS)
    with pytest.warns(UserWarning, match=r"1 unreadable \(b\.png\)"):
        assert listed_pairs(captioned_source(train_data_dir=folder)) == [PAIRS[0], PAIRS[2]]


def test_a_file_that_goes_away_is_an_error_that_names_it(folder: Path) -> None:
    write_jsonl(folder, ROWS)
    table = write_table(folder / "x.parquet", [{"bytes": None, "path": "c.png"}], ["three"])
    source, other = captioned_source(train_data_dir=folder), captioned_source(dataset_name=table)
    (folder / "c.png").unlink()
    with pytest.raises(DataError, match=r"c\.png cannot be read"):
        source.load(2)
    with pytest.raises(DataError, match=r"image 0 of .* whose file is missing"):
        other.load(0)


# The fast test beside it is test_a_bad_picture_is_left_out_with_its_caption.
@pytest.mark.slow
def test_a_slow_check_shows_how_far_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(folder, ROWS)
    captioned_source(train_data_dir=folder)
    assert capsys.readouterr().err == ""
    inspect = usable._inspect

    def slowly(*args: Any) -> int:
        __import__("time").sleep(0.6)
        return inspect(*args)

    monkeypatch.setattr(usable, "_inspect", slowly)
    captioned_source(train_data_dir=folder)
    assert re.search(r"checking images: .*\d/3", capsys.readouterr().err)


# --- no caption ever shifts ------------------------------------------------------------------------------------------

KINDS = ["good", "good", "unreadable", "cut", "tiny", "empty", "null", "unlisted", "missing", "twice"]
CUT = encoded(noise(), "JPEG")[:1500]


def write_folder(root: Path, kinds: list[str], layout: str) -> None:
    rows: list[dict[str, Any]] = []
    for index, kind in enumerate(kinds):
        path = root / f"{index:02}.png"
        content = {"unreadable": b"bad", "cut": CUT, "tiny": encoded(numbered(index, 1))}
        if kind != "missing":
            path.write_bytes(content.get(kind) or encoded(numbered(index)))
        texts = {"empty": " ", "null": None}
        if kind == "unlisted":
            continue
        row = {"file_name": path.name, "text": texts.get(kind, f"picture {index}")}
        again = [{"file_name": path.name, "text": f"again {index}"}] * (kind == "twice")
        rows += [row, *again]
        if layout == "txt":
            path.with_suffix(".txt").write_text("\n".join(one["text"] or "" for one in (row, *again)))
    if layout != "txt" and rows:
        {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}[layout](root, rows)


def write_rows(root: Path, kinds: list[str]) -> str:
    content = {"unreadable": b"bad", "cut": CUT, "missing": {"bytes": None, "path": "gone.png"}, "unlisted": None}
    images: list[Any] = []
    texts: list[Any] = []
    for index, kind in enumerate(kinds):
        images.append(content.get(kind, encoded(numbered(index, 1 if kind == "tiny" else 4))))
        listed = [f"picture {index}"] + [f"again {index}"] * (kind == "twice")
        texts.append(None if kind == "null" else [] if kind == "empty" else listed)
    return write_table(root / "x.parquet", images, pa.array(texts, pa.list_(pa.string())))


@pytest.mark.parametrize("layout", ["jsonl", "csv", "parquet", "txt", "table"])
@settings(max_examples=25)
@given(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=12))
@pytest.mark.thin(every=2)
def test_a_caption_stays_with_its_picture_whatever_is_bad_around_it(
    tmp_path: Path, layout: str, kinds: list[str]
) -> None:
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    expected = [
        (index, (f"picture {index}", f"again {index}") if kind == "twice" else (f"picture {index}",))
        for index, kind in enumerate(kinds)
        if kind in ("good", "twice")
    ]
    if layout == "table":
        place = {"dataset_name": write_rows(root, kinds)}
    else:
        write_folder(root, kinds, layout)
        place = {"train_data_dir": str(root)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not expected:
            with pytest.raises(DataError, match="no image that can be used"):
                captioned_source(**place)  # type: ignore[arg-type]
            return
        source = captioned_source(**place)  # type: ignore[arg-type]
    assert listed_pairs(source) == expected
    told = "".join(str(one.message) for one in caught)
    lost = len(kinds) - len(expected)
    assert (f"left out {lost} of {len(kinds)} images" in told) == (lost > 0)
    assert ("1 listed more than once" in told) == (layout in ("jsonl", "csv", "parquet") and kinds.count("twice") == 1)
