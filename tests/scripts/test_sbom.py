"""The list of what an installation consists of: packages that are needed, bundled files, licences and hashes."""

from __future__ import annotations

import hashlib
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
