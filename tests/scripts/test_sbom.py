"""The list of what an installation consists of: packages that are needed, bundled files, licences and hashes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from program import script

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    return script("sbom")


def test_the_row_of_a_file_is_the_nearest_one(sbom: ModuleType) -> None:
    rows = sbom.bundled(
        "| files | what | licence | from |\n|---|---|---|---|\n"
        "| `a/` | all | Apache-2.0 | b |\n| `a/words.json` | words | Unicode-3.0 | c |\n"
    )
    assert [row.licence for row in rows] == ["Apache-2.0", "Unicode-3.0"]
    assert sbom.row_of("a/x", rows) == rows[0]
    assert sbom.row_of("a/words.json", rows) == rows[1]
    assert sbom.row_of("b/x", rows) is None


def test_a_bundled_model_is_listed_with_the_hash_of_each_file(sbom: ModuleType) -> None:
    rows = sbom.bundled((ROOT / "LICENSES.md").read_text(encoding="utf-8"))
    digits = sbom.component(next(row for row in rows if row.path.endswith("/digits/")), rows)
    assert digits["licenses"] == [{"expression": "Apache-2.0"}]
    files = {each["name"]: each["hashes"][0]["content"] for each in digits["components"]}
    path = "src/ddim/weights/digits/unet/diffusion_pytorch_model.safetensors"
    assert files[path] == hashlib.sha256((ROOT / path).read_bytes()).hexdigest()
    emoji = sbom.component(next(row for row in rows if row.path.endswith("/emoji/")), rows)
    assert "src/ddim/weights/emoji/words.json" not in {each["name"] for each in emoji["components"]}  # its own row


def test_what_ddim_needs_is_kept_and_tools_are_left_out(sbom: ModuleType) -> None:
    names = set(sbom.needed("ddim", {"all"}))
    assert {"torch", "sympy", "fastapi", "starlette", "gradio"} <= names  # also what these need
    assert not names & {"mypy", "schemathesis", "playwright", "ruff"}
    made = sbom.whole(
        {
            "metadata": {"component": {"bom-ref": "root"}},
            "components": [{"name": "Torch", "bom-ref": "t"}, {"name": "pytest", "bom-ref": "p"}],
            "dependencies": [{"ref": "root", "dependsOn": ["t", "p"]}, {"ref": "p"}, {"ref": "t"}],
        },
        [],
        {"torch"},
    )
    assert [each["name"] for each in made["components"]] == ["Torch"]
    assert made["dependencies"] == [{"ref": "root", "dependsOn": ["t"]}, {"ref": "t", "dependsOn": []}]


def test_every_bundled_file_is_in_the_list_once(sbom: ModuleType) -> None:
    rows = sbom.bundled((ROOT / "LICENSES.md").read_text(encoding="utf-8"))
    listed = Counter(each["name"] for row in rows for each in sbom.component(row, rows)["components"])
    for folder in ("src/ddim/weights", "data"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".safetensors", ".parquet", ".json", ".npz"):
                assert listed.pop(path.relative_to(ROOT).as_posix()) == 1, path
    assert not [name for name in listed if name.endswith(".safetensors")]


@pytest.mark.slow  # ten seconds: the schema, and the packages of the environment; `make sbom` does the same
def test_the_whole_list_follows_cyclonedx(sbom: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cyclonedx", reason="this needs the extra `release`")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert sbom.main(tmp_path / "sbom.json") == 0
    text = (tmp_path / "sbom.json").read_text(encoding="utf-8")
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    made = json.loads(text)
    names = {each["name"] for each in made["components"]}
    assert {"torch", "src/ddim/weights/emoji", "src/ddim/weights/emoji/words.json", "data/emoji.parquet"} <= names
    licences = {each["name"]: each.get("licenses") for each in made["components"]}
    assert [name for name, licence in licences.items() if name.startswith(("src/", "data/")) and not licence] == []
    del made["components"][-1]["licenses"][0]["expression"]
    assert validator.validate_str(json.dumps(made)) is not None  # the schema can say no
