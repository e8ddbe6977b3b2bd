"""Tables of prompts: four kinds, read row by row, and what is said of broken ones."""

from __future__ import annotations

import dataclasses
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ddim.errors import DataError
from ddim.jobs.prompts import COLUMNS, LONGEST, NOT_OF_ROWS, Found, read_prompts


def rows(path: Path, content: str | bytes) -> list[Found]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_prompts(path))


def values(path: Path, content: str | bytes) -> list[Any]:
    return [found.fault or dict(found.values) for found in rows(path, content)]


def parquet(path: Path, **columns: list[Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


# --- what is read ----------------------------------------------------------------------------------------------------


def test_a_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    found = values(tmp_path / "a.txt", '\ufeffa red heart\r\n\n  \na cat, "black"\nwithout an end')
    assert found == [{"prompt": "a red heart"}, {"prompt": 'a cat, "black"'}, {"prompt": "without an end"}]


def test_a_csv_has_named_columns(tmp_path: Path) -> None:
    found = values(tmp_path / "a.csv", '\ufeffid, prompt,steps\n1,"a, ""b""\nc",5\n\n2,,\r\n3,"d",7')
    assert found == [
        {"id": "1", "prompt": 'a, "b"\nc', "steps": "5"},
        {"id": "2"},
        {"id": "3", "prompt": "d", "steps": "7"},
    ]


def test_jsonl_has_an_object_a_line(tmp_path: Path) -> None:
    found = values(tmp_path / "a.jsonl", '{"prompt": "a\\nb", "steps": null, "eta": "sigma_hat"}\n\n{"id": 3}')
    assert found == [{"prompt": "a\nb", "eta": "sigma_hat"}, {"id": 3}]


def test_parquet_has_columns_and_gaps(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", id=[7, 8], prompt=["a", None], steps=[25.0, float("nan")], eta=[0.5, 1.0])
    found = [dict(found.values) for found in read_prompts(path)]
    assert found == [{"id": 7, "prompt": "a", "steps": 25, "eta": 0.5}, {"id": 8, "eta": 1}]
    assert isinstance(found[0]["steps"], int)


# --- rows that are broken, beside others that are not ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"prompt": ', "is not JSON"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"steps": NaN}', "is not JSON: NaN is no number"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[1, 2]", "is no JSON object, but of the type list"),
        (b'{"prompt": "\xe9"}', "is not in UTF-8: its byte 13 is 0xe9"),
        (b'{"prompt": "' + b"a" * 10_000_000 + b'"}', "is longer than 1 MiB"),
        (b"\0\0\0", "is not JSON"),
    ],
    ids=["cut off", "deep", "NaN", "long number", "list", "latin-1", "10 MB", "zero bytes"],
)
def test_a_broken_line_of_json_is_one_row(tmp_path: Path, line: bytes, fault: str) -> None:
    first, broken, last = values(tmp_path / "a.jsonl", b'{"prompt": "a"}\n' + line + b'\n{"prompt": "b"}\n')
    assert (first, last) == ({"prompt": "a"}, {"prompt": "b"})
    assert broken.startswith(f"line 2 {fault}")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"a,5,6", "line 3: it has 3 cells, and the first line 2"),
        (b"a", "line 3: it has 1 cells, and the first line 2"),
        (b"\xff,5", "line 3 is not in UTF-8"),
        (b"a" * 200_000 + b",5", "line 3 cannot be read: field larger than field limit"),
        (b"a" * 10_000_000 + b",5", "line 3 is longer than 1 MiB"),
    ],
    ids=["more", "fewer", "encoding", "long", "10 MB"],
)
def test_a_broken_line_of_a_csv_is_one_row(tmp_path: Path, line: bytes, fault: str) -> None:
    first, broken, last = values(tmp_path / "a.csv", b"prompt,steps\na,1\n" + line + b"\nb,2\n")
    assert (first["prompt"], last["prompt"]) == ("a", "b")
    assert broken.startswith(fault)


def test_a_broken_line_of_a_text_is_one_row(tmp_path: Path) -> None:
    found = values(tmp_path / "a.txt", b"a\n\xff\n" + b"b" * (LONGEST + 2) + b"\nc")
    assert [each if isinstance(each, str) else each["prompt"] for each in found] == [
        "a",
        "line 2 is not in UTF-8: its byte 1 is 0xff",
        "line 3 is longer than 1 MiB",
        "c",
    ]


def test_huge_lines_are_not_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * 100_000_000 + b"\nb\n")
    tracemalloc.start()
    found = list(read_prompts(path))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 2
    assert most < 8 * LONGEST


# --- tables that are broken ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{}", "must end in .txt, .csv, .jsonl or .parquet"),
        ("a.csv", b"", "is empty: its first line is to name the columns"),
        ("a.csv", b"id;prompt\n1;a\n", "its first line has no commas"),
        ("a.csv", b"id,id\n1,2\n", "has the column 'id' twice"),
        ("a.csv", b"prompt,setps\na,5\n", "has the column 'setps', which is no setting: did you mean steps?"),
        ("a.csv", b"Prompt\na\n", "has the column 'Prompt', which is no setting: did you mean prompt?"),
        ("a.csv", b"caption\na\n", "did you mean prompt?"),
        ("a.csv", b"num_inference_steps\n5\n", "did you mean steps?"),
        ("a.csv", b"prompt,zzz\na,5\n", "which is no setting: did you mean "),
        ("a.csv", b"prompt,image_path\na,b.png\n", "did you mean image?"),
        ("a.csv", b"prompt,lora\na,b\n", "which is the same for all rows: give it as --lora, and rows that need"),
        ("a.csv", b"prompt,Batch\na,2\n", "the column 'Batch', which is not needed: a row is one picture"),
        ("a.csv", b"prompt,from\na,2\n", "the column 'from', which is for one picture: give what its recipe says"),
        ("a.csv", b'prompt\n"never\nclosed\n', "the row that begins in line 2 cannot be read: unexpected end of data"),
        ("a.csv", b'prompt\n"' + b"never\n" * 30_000, "the row that begins in line 2 cannot be read: field larger"),
        ("a.csv", b'prompt\n"a\n\xff\n"\n', "line 3 is not in UTF-8: its byte 1 is 0xff, in the middle of a row"),
        ("a.csv", b"\xff\xfep\0", "is in UTF-16: save it in UTF-8"),
        ("a.txt", b"\xfe\xff\0p", "is in UTF-16: save it in UTF-8"),
        ("a.jsonl", b'{"prompt": "a"}\n{"promt": "a"}', "line 2, has the column 'promt', which is no setting: did you"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
        ("a.parquet", b"", "cannot be read as Parquet"),
    ],
)
def test_a_broken_table_is_an_error(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as error:
        rows(tmp_path / name, content)
    assert len(str(error.value)) < 500 + len(str(tmp_path))


def test_a_table_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(DataError, match="cannot be read"):
            list(read_prompts(tmp_path / name))
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        list(read_prompts(tmp_path / "b.txt"))


def test_a_column_of_parquet_is_checked_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'cfg', which is no setting: did you mean guidance_scale"):
        list(read_prompts(parquet(tmp_path / "a.parquet", prompt=["a"], cfg=[3.0])))


def test_all_columns_are_settings_of_a_row() -> None:
    from ddim.jobs.rows import Row

    assert set(COLUMNS) - {"id"} <= set(Row.model_fields)


def test_each_setting_of_sample_is_a_column_or_refused_with_the_reason() -> None:
    """Who adds an option to `ddim sample` decides whether a row may say it."""
    from ddim.cli.generate import GenerateSettings
    from ddim.cli.sample import SampleSettings

    settings = {field.name for field in dataclasses.fields(SampleSettings)} - {"class_labels"}  # of a row: class_label
    own = {"id", "class_label", "control_scale"}  # the last is said beside --controlnet, as in PATH=SCALE
    assert set(COLUMNS) - own | set(NOT_OF_ROWS) == settings
    assert not set(COLUMNS) & set(NOT_OF_ROWS)
    of_jobs = {field.name for field in dataclasses.fields(GenerateSettings)}
    assert {name for name, reason in NOT_OF_ROWS.items() if "for all rows" in reason} <= of_jobs
    assert set(COLUMNS) - {"id", "prompt", "image", "mask_image", "control_image", "control_scale"} <= of_jobs


def test_pictures_in_a_table_are_to_be_in_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has pictures themselves in the column image: write them into files"):
        list(read_prompts(parquet(tmp_path / "a.parquet", prompt=["a"], image=[{"bytes": b"x", "path": None}])))


def test_many_rows_take_no_memory(tmp_path: Path) -> None:
    def lines() -> None:
        with path.open("w") as file:
            for number in range(20_000):
                file.write(json.dumps({"prompt": f"prompt {number} " + "x" * 100}) + "\n")

    path = tmp_path / "a.jsonl"
    lines()
    tracemalloc.start()
    count = sum(1 for _ in read_prompts(path))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert most < 500_000
