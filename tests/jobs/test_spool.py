"""The rows of a job in the form that workers read."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path

import pytest

from ddim.errors import CheckpointError, DataError
from ddim.jobs.prompts import file_digest
from ddim.jobs.spool import Spool, write_spool


def spool(tmp_path: Path, content: str, name: str = "a.jsonl") -> Spool:
    (tmp_path / name).write_text(content)
    write_spool(tmp_path / name, tmp_path / "rows.jsonl")
    return Spool(tmp_path / "rows.jsonl")


def test_rows_are_found_by_their_numbers(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"prompt": "x" * (number % 7), "steps": number + 1}) + "\n" for number in range(50))
    rows = spool(tmp_path, lines)
    assert len(rows) == 50
    for numbers in (range(50), range(17, 23), range(49, 50), range(5, 5)):
        found = list(rows.read(numbers))
        assert [row.number for row in found] == list(numbers)
        assert [row.values["steps"] for row in found] == [number + 1 for number in numbers]
    assert [row.id for row in rows.read(range(7, 9))] == ["00000007", "00000008"]


def test_ids_are_texts(tmp_path: Path) -> None:
    rows = spool(tmp_path, '{"id": 7}\n{"id": "猫"}\n{"id": ""}\n{}\n')
    assert [(row.id, row.name, row.fault) for row in rows.read(range(4))] == [
        ("7", "7", None),
        ("猫", "%E7%8C%AB", None),
        ("00000002", "00000002", None),
        ("00000003", "00000003", None),
    ]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("[1]", "id must be a text or a whole number, not [1]"),
        ("true", "id must be a text or a whole number, not True"),
        ("0.5", "id must be a text or a whole number, not 0.5"),
        (json.dumps("a" * 1001), "id has 1001 letters, and 1000 are the most"),
        ('"\\ud800"', "id has half a character"),
    ],
)
def test_an_id_that_is_none_is_the_fault_of_its_row(tmp_path: Path, given: str, fault: str) -> None:
    rows = list(spool(tmp_path, f'{{"id": "a"}}\n{{"id": {given}}}\n').read(range(2)))
    assert rows[0].fault is None
    assert rows[1].id == "00000001"
    assert rows[1].fault is not None
    assert rows[1].fault.startswith(fault)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "a"}\n{"id": "b"}\n{"id": "a"}\n', "the id 'a' is that of row 0 and of row 2"),
        ('{"id": 5}\n{"id": "5"}\n', "the id '5' is that of row 0 and of row 1"),
        ('{"id": "00000001"}\n{}\n', "the id '00000001' is that of row 0 and of row 1"),
        ("\n \n", "has no rows"),
        ("", "has no rows"),
    ],
)
def test_ids_are_there_once(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        spool(tmp_path, content)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_the_columns_are_known_afterwards(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,prompt,steps\n1,a,\n2,b,5\n")
    assert write_spool(tmp_path / "a.csv", tmp_path / "rows.jsonl") == (2, {"id", "prompt", "steps"})


def test_memory_is_a_few_bytes_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"a prompt of some length, number {number}\n" for number in range(20_000)))
    tracemalloc.start()
    write_spool(tmp_path / "a.txt", tmp_path / "rows.jsonl")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1_500_000


def test_a_spool_that_was_damaged_is_an_error(tmp_path: Path) -> None:
    rows = spool(tmp_path, '{"id": "a"}\n{"id": "b"}\n')
    (tmp_path / "rows.jsonl").write_text('{"id"')
    with pytest.raises(DataError, match="cannot be read"):
        list(rows.read(range(2)))


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(CheckpointError, match="was not written"):
        write_spool(tmp_path / "a.txt", tmp_path / "a.txt" / "rows.jsonl")


def test_a_digest_is_that_of_the_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert file_digest(tmp_path / "a").startswith("e3b0c442")
    with pytest.raises(DataError, match="cannot be read"):
        file_digest(tmp_path / "b")
