"""`ddim serve`: what is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ddim import errors
from ddim.cli import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["serve", *map(str, arguments)]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", ""])
def test_other_hosts_need_a_key(capsys: pytest.CaptureFixture[str], host: str) -> None:
    told = refused(capsys, "--host", host)
    assert "give --api-key-file, or --allow-anonymous if everybody may draw" in told


def test_a_file_of_keys_needs_keys(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("\n")
    assert "has no key" in refused(capsys, "--host", "0.0.0.0", "--api-key-file", path)
    assert "given as --api-key-file" in refused(capsys, "--api-key-file", tmp_path / "none")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "emojy"], "did you mean emoji"),
        (["--model", "mine="], "--model mine= must be a model, or a name and a model"),
        (["--model", "=emoji"], "must be a model, or a name and a model"),
        (["--model", "emoji", "--model", "emoji"], "--model emoji is there twice"),
        (["--model", "x=emoji", "--model", "x=digits"], "--model x is there twice"),
        (["--port", "70000"], "--port must be from 0 to 65535"),
        (["--max-batch", "0"], "--max-batch must be 1 or more"),
        (["--max-n", "11"], "--max-n must be from 1 to 10"),
        (["--deadline", "0"], "--deadline must be above 0"),
        (["--grace", "-1"], "--grace must be 0 or more"),
    ],
)
def test_what_cannot_be_served(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert said in refused(capsys, *arguments)


def test_without_the_extra_it_says_how_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str, extra: str) -> None:
        raise errors._missing(module, extra)

    monkeypatch.setattr("ddim.cli.checks.check_installed", missing)
    assert "this needs fastapi, which is not installed: pip install 'ddim[serve]'" in refused(capsys)
