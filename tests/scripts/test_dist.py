"""A wheel and a source distribution hold what they should, and what is missing or too many is found."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from program import script

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def dist() -> ModuleType:
    return script("dist")


def test_what_is_missing_and_what_is_too_many_is_said(dist: ModuleType, tmp_path: Path) -> None:
    wheel, sdist = tmp_path / "a.whl", tmp_path / "a.tar.gz"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("ddim/__init__.py", "")
        archive.writestr("tests/test_a.py", "")
    with tarfile.open(sdist, "w:gz") as archive:
        entry = tarfile.TarInfo("ddim-1/README.md")
        archive.addfile(entry, io.BytesIO())
    assert list(dist.differences("a.whl", dist.in_wheel(wheel), {"ddim/__init__.py", "ddim/py.typed"})) == [
        "a.whl lacks ddim/py.typed: name it in MANIFEST.in, or in package-data of pyproject.toml",
        "a.whl holds tests/test_a.py, which is not to be in it: remove it, or add it to git",
    ]
    assert dist.in_sdist(sdist) == {"README.md"}


def test_a_wheel_is_the_package_with_its_licences(dist: ModuleType) -> None:
    files = {"README.md", "tests/test_plan.py", "src/ddim/plan.py", "src/ddim/weights/a/unet/x.safetensors"}
    wanted = dist.wanted_in_wheel(files, "1.2.3")
    assert {"ddim/plan.py", "ddim/weights/a/unet/x.safetensors", "ddim-1.2.3.dist-info/licenses/LICENSE"} <= wanted
    assert "ddim-1.2.3.dist-info/licenses/data/LICENSES/Unicode-3.0.txt" in wanted  # for the emoji model's words
    assert not [name for name in wanted if "README" in name or "tests" in name]


def test_relative_links_are_found_and_made_whole(dist: ModuleType) -> None:
    page = "[![a](a.png)](docs/a.md) [b](docs/b.md#c) <https://x> [d](mailto:x@y)"
    assert dist.relative_links(page) == ["a.png", "docs/a.md", "docs/b.md#c"]
    whole = script("home").absolute(page, "https://h/x")
    assert dist.relative_links(whole) == []
    assert "[![a](https://h/x/raw/main/a.png)](https://h/x/blob/main/docs/a.md)" in whole


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, built as scripts/dist builds them. Half a minute."""
    pytest.importorskip("build", reason="this needs the extra `release`")
    if not (ROOT / ".git").exists():
        pytest.skip("this is no repository")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.mark.slow  # half a minute; `make dist` does the same
def test_what_is_built_is_the_repository_and_the_package(dist: ModuleType, built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    files = dist.tracked()
    assert dist.in_sdist(sdist) == files | dist.ADDED
    assert dist.in_wheel(wheel) == dist.wanted_in_wheel(files, wheel.name.split("-")[1])


@pytest.mark.slow  # a minute: what an unpacked source distribution needs for its own tests is in it
def test_the_tests_of_a_source_distribution_pass_in_it(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    monkeypatch.setenv("PYTHONPATH", str(root / "src"))
    some = [
        "tests/test_release.py",
        "tests/test_docs.py",
        "tests/test_readme.py",
        "tests/test_plan.py",
        "tests/weights",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *some]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:]
