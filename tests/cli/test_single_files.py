"""Models that are one file, files of a variant, and pickles, from the command line."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import original
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import save_tiny
from tiny_clip import vocabulary, write_tokenizer
from tiny_sd import tiny_reference

from ddim.cli import main
from ddim.cli.pickles import converting
from ddim.pipelines import DiffusionPipeline

FAST = ["--steps", "2", "--height", "32", "--width", "32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.safetensors, a Stable Diffusion 1, and the tokenizer that it was trained with."""
    folder = tmp_path_factory.mktemp("single")
    text = {**original.TINY_TEXT, "words": len(vocabulary()[0]), "positions": 77}
    save_file(original.tensors(original.shapes(1, of_text=text)), folder / "tiny.safetensors")
    write_tokenizer(folder / "tokenizer")
    return folder


def errors(capsys: pytest.CaptureFixture[str]) -> str:
    return " | ".join(line for line in capsys.readouterr().err.splitlines() if line.startswith("ddim: "))


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_a_single_file_draws(folder: Path, tmp_path: Path) -> None:
    given = ["--model", str(folder / "tiny.safetensors"), "--tokenizer", str(folder / "tokenizer")]
    made = []
    for more in ([], ["--prediction-type", "epsilon"], ["--prediction-type", "v_prediction"]):
        out = tmp_path / f"{len(made)}.png"
        assert main(["sample", "a cat", *given, *FAST, *more, "--out", str(out)]) == 0
        made.append(pixels(out))
    assert made[0] == made[1] != made[2]
    assert main(["sample", "--from", str(out), *given, "--out", str(tmp_path / "again.png")]) == 0
    assert pixels(tmp_path / "again.png") == made[2]


@pytest.mark.parametrize("words", ["info", "invert"])
@pytest.mark.thin(fast=["info"])
def test_the_other_commands(words: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    model = str(folder / "tiny.safetensors")
    given = {
        "info": [model],
        "invert": [str(tmp_path / "red.png"), "--model", model, "--no-check", "--out", str(tmp_path / "x.safetensors")],
    }[words]
    assert main([*words.split(), *given, "--steps", "1", "--tokenizer", str(folder / "tokenizer")]) == 0
    if words == "info":
        assert "StableDiffusionPipeline" in capsys.readouterr().out


def test_without_a_tokenizer_clips_is_taken_from_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def download(repo: str, name: str, **options: Any) -> str:
        asked.append(repo)
        path = folder / "tokenizer" / name
        if not path.is_file():
            raise EntryNotFoundError(name)
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    command = ["sample", "a cat", "--model", str(folder / "tiny.safetensors"), *FAST, "--out", str(tmp_path / "x.png")]
    assert main(command) == 0
    assert set(asked) == {"openai/clip-vit-large-patch14"}
    capsys.readouterr()
    monkeypatch.setattr("ddim.checkpoint.hub.reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def nothing(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("none")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", nothing)
    assert main(command) == 1
    said = errors(capsys)
    assert "a single file has no tokenizer" in said
    assert "give --tokenizer and a folder that has one" in said


def test_another_models_tokenizer(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "x.png")
    assert main(["sample", "a", "--model", str(folder / "tiny.safetensors"), "--tokenizer", "emoji", "--out", out]) == 1
    assert "the tokenizer of emoji has 4096 tokens, and the text encoder knows 574" in errors(capsys)


def test_a_file_of_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo: str, name: str, **options: Any) -> str:
        asked.append((repo, name, options["revision"]))
        return str(folder / "tiny.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for model in ("owner/name/sub/x.safetensors", "https://huggingface.co/owner/name/blob/main/sub/x.safetensors"):
        given = ["--model", model, "--tokenizer", str(folder / "tokenizer")]
        assert main(["sample", "a", *given, *FAST, "--overwrite", "--out", str(tmp_path / "x.png")]) == 0
    assert asked == [("owner/name", "sub/x.safetensors", "main")] * 2


def test_a_variant_and_a_single_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "a", "--model", str(folder / "tiny.safetensors"), "--variant", "fp16"]) == 1
    assert "--variant chooses among the files of a folder" in errors(capsys)


# --- variants --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has nothing but fp16 files, and another one that has nothing but plain ones."""
    folder = tmp_path_factory.mktemp("halves")
    model = save_tiny(folder / "plain")
    pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float16)
    pipe.save_pretrained(folder / "fp16", variant="fp16")
    return folder


def test_the_variant_that_is_asked_for(halves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sample", "--model", str(halves / "fp16"), "--steps", "1", "--batch", "1"]
    assert main([*command, "--variant", "fp16", "--out", str(tmp_path / "a.png")]) == 0
    assert errors(capsys) == ""


@pytest.mark.filterwarnings("default")
def test_a_folder_that_has_only_fp16_says_so_and_draws(
    halves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", "--model", str(halves / "fp16"), "--steps", "1", "--batch", "1"]
    assert main([*command, "--out", str(tmp_path / "a.png")]) == 0
    assert errors(capsys) == (
        f"ddim: {halves / 'fp16'} has no plain weights but those of the variant fp16, which are loaded: to be silent, "
        "give --variant 'fp16'"
    )


@pytest.mark.filterwarnings("default")
def test_it_is_said_once_for_all_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_reference(tmp_path / "sd", 1)
    DiffusionPipeline.from_pretrained(tmp_path / "sd").save_pretrained(tmp_path / "half", variant="fp16")
    out = str(tmp_path / "x.png")
    assert main(["sample", "a cat", "--model", str(tmp_path / "half"), *FAST, "--out", out]) == 0
    assert errors(capsys).count("those of the variant fp16") == 1


def test_a_variant_that_is_not_there(halves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "x.png")
    assert main(["sample", "--model", str(halves / "fp16"), "--variant", "ema", "--out", out]) == 1
    assert "there are some for --variant 'fp16'" in errors(capsys)
    assert main(["sample", "--model", str(halves / "plain"), "--variant", "fp16", "--out", out]) == 1
    assert "is there one without --variant 'fp16'?" in errors(capsys)


# --- pickles ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="the command is read as a POSIX shell does")
@pytest.mark.parametrize("name", ["old model.ckpt"])
# The fast test beside it is test_that_command_runs_nothing.
@pytest.mark.slow
def test_the_command_that_is_shown_converts_a_pickle(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(folder / "tiny.safetensors")
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / name)
    given = ["--tokenizer", str(folder / "tokenizer"), *FAST, "--out", str(tmp_path / "x.png")]
    assert main(["sample", "a", "--model", str(tmp_path / name), *given]) == 1
    said = errors(capsys)
    assert "is a pickle, which can run code when it is read, so it is not" in said
    words = shlex.split(said.partition("reads tensors and runs nothing: ")[2])
    subprocess.run([sys.executable, *words[1:]], check=True)
    converted = tmp_path / Path(name).with_suffix(".safetensors")
    assert main(["sample", "a", "--model", str(converted), *given]) == 0
    assert all(torch.equal(load_file(converted)[key], value) for key, value in state.items())


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil-was-here"),))


@pytest.mark.skipif(sys.platform == "win32", reason="the command is read as a POSIX shell does")
def test_that_command_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "evil": Evil()}, "x.ckpt")
    words = shlex.split(converting("x.ckpt"))
    done = subprocess.run([sys.executable, *words[1:]], check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "weights_only" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.ckpt"]


def test_an_adapter_that_is_a_pickle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.pt").write_bytes(b"")
    assert main(["sample", "a cat", "--lora", str(tmp_path / "x.pt"), "--out", str(tmp_path / "x.png")]) == 1
    assert "x.pt is a pickle" in errors(capsys)
    shutil.rmtree(tmp_path)
