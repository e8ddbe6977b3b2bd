"""What a release is made of says the same everywhere: versions, licences, extras, addresses, containers."""

from __future__ import annotations

import ast
import functools
import json
import re
import shutil
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trove_classifiers
from packaging.licenses import canonicalize_license_expression
from packaging.requirements import Requirement
from program import script

import ddim
from ddim.cli import main
from ddim.cli.serve import ServeSettings

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
CONTAINERS = ["Dockerfile", "Dockerfile.cuda"]
# What a licence's text is called, where it is not the project's own.
TEXTS = {"MIT": "Fluent-Emoji", "CC-BY-4.0": "Twemoji", "Unicode-3.0": "Unicode-3.0", "Apache-2.0": "Apache-2.0"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_said_once_and_the_newest_of_the_changelog() -> None:
    assert PROJECT["dynamic"] == ["version"]
    headings = re.findall(r"^## (.+)$", read("CHANGELOG.md"), flags=re.MULTILINE)
    for heading in headings:
        assert re.fullmatch(r"Unreleased|\d+\.\d+\.\d+, (unreleased|\d{4}-\d\d-\d\d)", heading), heading
    assert all(", 2" in heading for heading in headings[1:])  # what is not out yet can only be the newest
    numbers = [tuple(map(int, h.partition(",")[0].split("."))) for h in headings if h != "Unreleased"]
    assert numbers == sorted(numbers, reverse=True)
    assert ".".join(map(str, numbers[0])) == ddim.__version__
    assert re.findall(r"^version: (.+)$", read("CITATION.cff"), flags=re.MULTILINE) == [ddim.__version__]


# --- what the package index shows -------------------------------------------------------------------------------------


def test_the_classifiers_are_of_the_index_and_say_which_pythons() -> None:
    classifiers = PROJECT["classifiers"]
    assert len(classifiers) > 8
    for each in classifiers:
        assert each in trove_classifiers.classifiers, f"the package index knows no classifier {each}"
        assert each not in trove_classifiers.deprecated_classifiers, each
        assert not each.startswith("License ::"), "`license` says it, and the index refuses both together"
    assert classifiers == sorted(classifiers)
    said = [each.rpartition(" ")[2] for each in classifiers if re.search(r":: 3\.\d+$", each)]
    assert said == list(script("resolves").PYTHONS)
    assert PROJECT["requires-python"] == f">={said[0]}"
    assert f"Python {said[0]} or later" in read("README.md")
    assert f"version_info < ({said[0].replace('.', ', ')})" in read("Makefile")


def test_the_links_of_the_project_have_names_that_the_index_knows() -> None:
    """By the specification of well-known labels. Before the first release there is but the paper."""
    known = {"homepage", "source", "documentation", "changelog", "issues", "security", "paper"}
    home = script("home").links("https://example.org/x")
    for urls in (PROJECT["urls"], tomllib.loads(home)["project"]["urls"]):
        assert {name.lower() for name in urls} <= known
        assert urls["Paper"] == "https://arxiv.org/abs/2010.02502"
        for page in urls.values():
            assert re.fullmatch(r"https://[\w.-]+/[\w./-]+", page), page


# --- extras ----------------------------------------------------------------------------------------------------------


def needs(extra: str) -> set[str]:
    """The packages of an extra, with those of extras that it names."""
    found: set[str] = set()
    for line in EXTRAS[extra]:
        requirement = Requirement(line)
        found |= (
            {name for other in requirement.extras for name in needs(other)}
            if requirement.name == "ddim"
            else {requirement.name}
        )
    return found


@functools.cache
def asked() -> set[tuple[str, str]]:
    """(module, extra) of each call in the code that imports from an extra or looks for it."""
    found = set()
    for file in Path(ddim.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if re.search(r"\b(require|check_installed)\(", text) else ():
            if isinstance(node, ast.Call) and len(node.args) == 2:
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                words = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                if called in ("require", "check_installed") and len(words) == 2:
                    found.add((words[0].partition(".")[0], words[1]))
    return found


def test_an_extra_that_an_error_names_brings_what_is_missing() -> None:
    packages = {"sklearn": "scikit-learn", "torch_fidelity": "torch-fidelity", "multipart": "python-multipart"}
    packages |= {"python_multipart": "python-multipart", "prometheus_client": "prometheus-client"}
    assert len(asked()) > 8
    for module, extra in asked():
        brought = needs(extra) | ({"pyarrow"} if "datasets" in needs(extra) else set())
        assert packages.get(module, module) in brought, f"{module} is not in the extra {extra}"


def test_all_has_every_extra_that_is_for_users() -> None:
    for extra in set(EXTRAS) - {"docs", "inception", "release", "test"}:  # the second has a licence of its own weights
        assert needs(extra) - {"resvg-py"} <= needs("all"), extra


def test_every_requirement_has_a_lower_bound_that_the_pinned_version_fulfils() -> None:
    pins = dict(re.findall(r"^(\S+?)==(\S+)$", read("constraints.txt"), flags=re.MULTILINE))
    versions = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]:
        requirement = Requirement(line)
        if requirement.name in ("ddim", "setuptools"):
            continue
        assert [part.operator for part in requirement.specifier] == [">="], line
        assert requirement.specifier.contains(versions[re.sub(r"[-_.]+", "-", requirement.name).lower()]), line


# --- licences --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    return script("sbom")


def test_every_bundled_file_has_its_licence_and_the_text_of_it(sbom: ModuleType) -> None:
    rows = sbom.bundled(read("LICENSES.md"))
    for row in rows:
        assert (ROOT / row.path).exists(), row.path
        assert canonicalize_license_expression(row.licence) == row.licence
        for name in re.split(" AND ", row.licence):
            assert (ROOT / "data" / "LICENSES" / f"{TEXTS[name]}.txt").is_file(), name
    files = [
        path.relative_to(ROOT).as_posix()
        for folder in ("src/ddim/weights", "data")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "LICENSES" not in path.parts
    ]
    assert len(files) > 20
    for file in set(files) - {"data/README.md"}:
        assert sbom.row_of(file, rows), f"{file} has no row in LICENSES.md"
    shipped = {row.licence for row in rows if row.path.startswith("src/")}
    assert canonicalize_license_expression(PROJECT["license"]) == " AND ".join(sorted(shipped))


def test_every_model_says_its_licence(sbom: ModuleType) -> None:
    for folder in (ROOT / "src/ddim/weights").iterdir():
        if folder.is_dir() and folder.name != "__pycache__":
            assert "\n## Licence\n" in (folder / "README.md").read_text(encoding="utf-8")
            assert sbom.row_of(f"src/ddim/weights/{folder.name}/", sbom.bundled(read("LICENSES.md")))


# --- addresses and containers ----------------------------------------------------------------------------------------


def test_links_to_the_repository_lead_to_files_that_are_there() -> None:
    home = PROJECT["urls"].get("Source", "https://none")
    pages = [*PROJECT["urls"].values(), *re.findall(r"\]\((https://[^)\s]+)\)", read("README.md"))]
    for page in pages:
        found = re.match(rf"{re.escape(home)}/(?:blob|raw)/main/([^#]+)", page)
        assert found is None or (ROOT / found[1]).exists(), page


@functools.cache
def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, what it is given) of each line of a Dockerfile."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", read(name), flags=re.MULTILINE))
    return [(word, rest) for line in text.splitlines() if line for word, _, rest in [line.partition(" ")]]


def given(name: str, instruction: str) -> str:
    """What the last such instruction of a Dockerfile is given, which is the one that holds."""
    return [rest for word, rest in instructions(name) if word == instruction][-1]


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_gets_what_its_build_needs(name: str) -> None:
    let_in = {line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")}
    needed = {"pyproject.toml", "src", PROJECT["readme"], *PROJECT["license-files"]}
    needed |= {rest.split()[0] for word, rest in instructions(name) if word == "COPY"} - {"."}
    for path in needed:
        assert any(path == each or path.startswith(f"{each}/") for each in let_in), path
    default = re.fullmatch(r"EXTRAS=([\w,]+)", given(name, "ARG"))
    assert default
    extras = set(default[1].split(","))
    assert "serve" in extras <= set(EXTRAS)
    assert any('"/src[${EXTRAS}]"' in rest and "-c /tmp/constraints.txt" in rest for _, rest in instructions(name))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServeSettings]:
    """What `ddim serve` was told, which does not run."""
    pytest.importorskip("fastapi", reason="this needs the extra `serve`")
    told: list[ServeSettings] = []
    monkeypatch.setattr("ddim.cli.serve.run_serve", told.append)
    return told


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_starts_by_a_command_that_serves(name: str, served: list[ServeSettings]) -> None:
    program, *words = json.loads(given(name, "ENTRYPOINT"))
    assert program == "ddim"
    assert main([*words, *json.loads(given(name, "CMD"))]) == 0
    assert main(words) == 1  # who leaves out CMD has to say who may draw
    (told,) = served
    assert told.host == "0.0.0.0"
    assert str(told.port) == given(name, "EXPOSE")
    assert f"http://127.0.0.1:{told.port}/ready" in given(name, "HEALTHCHECK")
    assert given(name, "USER") == "1000"


def test_what_the_page_runs_in_containers_is_what_serves(
    served: list[ServeSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = re.findall(r"^docker run .+? (ddim(?:-cuda)?) (--.+)$", read("docs/serving.md"), flags=re.MULTILINE)
    assert {image for image, _ in runs} == {"ddim", "ddim-cuda"}
    (tmp_path / "keys").write_text("a-key\n", encoding="utf-8")
    shutil.copytree(ROOT / "src/ddim/weights/digits", tmp_path / "models/sd15")
    for image, options in runs:
        words = json.loads(given("Dockerfile" if image == "ddim" else "Dockerfile.cuda", "ENTRYPOINT"))[1:]
        inside = [re.sub(r"(^|=)/(?=keys|models)", rf"\1{tmp_path}/", word) for word in options.split()]
        assert main([*words, *inside]) == 0
    assert [told.api_key_file for told in served] == [f"{tmp_path}/keys"] * len(runs)
    pages = read("docs/serving.md")
    for extras in re.findall(r"--build-arg EXTRAS=(\S+)", pages):
        assert set(extras.split(",")) <= set(EXTRAS)


def test_the_list_for_language_models_is_that_of_the_pages() -> None:
    """If not, scripts/llms writes it."""
    assert read("llms.txt") == script("llms").contents()
