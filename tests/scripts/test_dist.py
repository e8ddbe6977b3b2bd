"""A wheel and a source distribution hold what they should, and what is missing or too many is found."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest
from markdown_it import MarkdownIt
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


KINDS = """[![a](a.png)](docs/a.md) [b](docs/b.md#c) <https://x> [d](mailto:x@y) [e][f] [part](#part)

<picture><source srcset="dark.svg"><img alt="g" src="g.svg"></picture> and <a href="LICENSE">h</a>

```
[code](stays.md)
```

[f]: docs/f.md
"""


def test_relative_links_are_found_and_made_whole(dist: ModuleType) -> None:
    found = ["docs/a.md", "a.png", "docs/b.md#c", "docs/f.md", "#part", "dark.svg", "g.svg", "LICENSE"]
    assert dist.relative_links(KINDS) == found
    home = script("home")
    whole = home.absolute(KINDS, "https://h/x")
    assert dist.relative_links(whole) == []
    assert "[![a](https://h/x/raw/main/a.png)](https://h/x/blob/main/docs/a.md)" in whole
    assert "[code](stays.md)" in whole
    moved = home.absolute(whole, "https://h/other", "https://h/x")
    assert moved == home.absolute(KINDS, "https://h/other")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a wheel's description is made of, which scripts/home has written an address into."""
    home = script("home")
    monkeypatch.setattr(home, "ROOT", tmp_path)
    for name in ("pyproject.toml", "README.md", "CITATION.cff", "CHANGELOG.md", "LICENSE", "LICENSES.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "data" / "LICENSES", tmp_path / "data" / "LICENSES")
    (tmp_path / "src" / "ddim").mkdir(parents=True)
    for name in ("__init__.py", "_version.py"):
        shutil.copy(ROOT / "src" / "ddim" / name, tmp_path / "src" / "ddim")
    assert home.main(["https://example.org/x"]) == 0
    return tmp_path


def test_every_link_of_the_readme_is_whole_and_leads_to_a_file_after_home(dist: ModuleType, clone: Path) -> None:
    page = (clone / "README.md").read_text(encoding="utf-8")
    links = dist.Links(MarkdownIt("commonmark").enable("table").render(page)).found
    assert len(links) > 20
    assert dist.relative_links(page) == []
    urls = tomllib.loads((clone / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    for link in [*links, *urls.values()]:
        where = urlsplit(link)
        assert where.scheme == "https", link
        assert where.netloc, link
        inside = re.fullmatch(r"/x/(?:blob|raw)/main/(.+)", where.path)
        assert inside is None or (ROOT / inside[1]).exists(), link
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} <= set(urls)
    assert 'repository-code: "https://example.org/x"' in (clone / "CITATION.cff").read_text(encoding="utf-8")


def test_home_refuses_what_is_no_address(capsys: pytest.CaptureFixture[str]) -> None:
    home = script("home")
    for words in ([], ["example.org/x"], ["http://example.org/x"], ["https://example.org"], ["https://a/b", "c"]):
        assert home.main(words) == 2
        assert "https://github.com/OWNER/ddim" in capsys.readouterr().err


def _wheel(folder: Path, readme: str) -> Path:
    with zipfile.ZipFile(folder / "ddim-1.whl", "w") as archive:
        archive.writestr("ddim-1.dist-info/METADATA", f"Metadata-Version: 2.4\nName: ddim\n\n{readme}")
    return folder / "ddim-1.whl"


def test_what_is_not_ready_to_be_published_is_said(
    dist: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "ROOT", tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nPaper = "https://p"\n', encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 0.2.0, unreleased\n", encoding="utf-8")
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    links, address, heading, changed = dist.unready(_wheel(tmp_path, "[π](docs/a.md) ![b](b.png)"))
    assert "2 links" in links
    assert "docs/a.md" in links
    assert "scripts/home" in address
    assert "0.2.0, unreleased" in heading
    assert "CHANGELOG.md" in changed
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nSource = "https://h/x"\n', encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 0.2.0, 2027-01-31\n", encoding="utf-8")
    wheel = _wheel(tmp_path, "[π](https://h/x/blob/main/docs/a.md)")
    subprocess.run([*git, "add", "."], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-q", "-m", "all"], cwd=tmp_path, check=True)
    assert list(dist.unready(wheel)) == []
    assert dist.main(["--publish"]) == 2


@pytest.mark.slow  # some seconds: the same by what the package index itself reads
def test_twine_finds_no_fault_in_the_description_after_home(dist: ModuleType, clone: Path) -> None:
    pytest.importorskip("twine", reason="this needs the extra `release`")
    pytest.importorskip("build", reason="this needs the extra `release`")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(clone), str(clone)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = clone.glob("*.whl")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(wheel)], check=True, capture_output=True)
    assert dist.relative_links(dist.description(wheel)) == []


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


# The rooms of the core, and what only holds if the whole repository is there.
ROOMS = ["tests/scheduler", "tests/weights", "tests/scripts", "tests/cli/test_help.py", "tests/cli/test_opening.py"]
ROOMS += [f"tests/test_{name}.py" for name in ("docs", "plan", "readme", "release", "sampling", "step", "structure")]


@pytest.mark.slow  # minutes: what an unpacked source distribution needs for its own tests is in it
def test_the_tests_of_a_source_distribution_pass_in_it(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    # An environment that has it installed, and beside it what is installed here.
    own = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(own)], check=True)
    (site,) = own.glob("lib/python*/site-packages")
    here = [path for path in sys.path if path.endswith("-packages")]
    (site / "others.pth").write_text("\n".join(here), encoding="utf-8")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    python = str(own / "bin" / "python")
    install = ["-m", "pip", "--python", python, "install", "--no-deps", "--no-build-isolation", "--no-index", str(root)]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    where = [python, "-c", "import ddim; print(ddim.__file__)"]
    assert Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout).is_relative_to(site)
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ROOMS]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert int(re.findall(r"(\d+) passed", ran.stdout)[0]) > 500
