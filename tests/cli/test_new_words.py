"""`--textual-inversion PATH[=TOKEN]` and `--weights`: what they ask for, with every command that draws texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_sd import tiny_reference

from ddim.cli import main
from ddim.cli.new_words import NewWord, check_word, new_word
from ddim.errors import ConfigError
from ddim.pipelines import StableDiffusionPipeline

FAST = ["--steps", "2", "--height", "16", "--width", "16", "--scale", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sd")
    tiny_reference(folder, 1)
    return str(folder)


@pytest.fixture(scope="module")
def ink(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "ink.safetensors"
    save_file({"<ink>": torch.randn(2, 32, generator=torch.Generator().manual_seed(0))}, path)
    return path


def sample(model: str, out: Path, prompt: str, *options: str) -> bytes:
    assert main(["sample", prompt, "--model", model, *FAST, *options, "--overwrite", "--out", str(out)]) == 0
    with Image.open(out) as image:
        return image.tobytes()


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("ink.pt", NewWord("ink.pt", None, None)),
        ("ink.pt=<a=b>", NewWord("ink.pt=<a", None, "b>")),
        ("x/ink.pt=ink", NewWord("x/ink.pt", None, "ink")),
        ("owner/name=<ink>", NewWord("owner/name", None, "<ink>")),
        ("owner/name/ink.pt=<ink>", NewWord("owner/name", "ink.pt", "<ink>")),
        ("./owner/name/ink.pt", NewWord("./owner/name/ink.pt", None, None)),
    ],
)
def test_a_place_and_a_token(text: str, asked: NewWord) -> None:
    assert new_word(text) == asked


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no.pt", "there is no file or folder 'no.pt', given as --textual-inversion"),
        ("ik.pt=<a>", "did you mean ./ink.pt?"),
        ("ink.txt", "ink.txt is no .safetensors, .pt or .bin file"),
        ("ink.pt=", "such as ink.pt=<ink>"),
        ("=<ink>", "such as ink.pt=<ink>"),
    ],
)
def test_what_can_be_no_word(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ink.txt").write_text("")
    Path("ink.pt").write_text("")
    with pytest.raises(ConfigError) as error:
        check_word(text, "--textual-inversion")
    assert said in str(error.value)
    check_word(("ink.pt=<a>", "owner/name"), "--textual-inversion")


def test_words_and_weights_are_drawn_and_in_the_recipe(
    model: str, ink: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.png"
    plain = sample(model, out, "a cat by <ink>")
    word = ["--textual-inversion", str(ink)]
    drawn = sample(model, out, "a cat by <ink>", *word)
    assert drawn != plain
    again = tmp_path / "again.png"
    assert main(["sample", "--from", str(out), "--model", model, "--out", str(again)]) == 1
    assert "--textual-inversion" in capsys.readouterr().err
    assert main(["sample", "--from", str(out), "--model", model, *word, "--out", str(again)]) == 0
    with Image.open(again) as image:
        assert image.tobytes() == drawn
    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.load_textual_inversion(ink, token="<pen>")
    weighted = sample(
        model, out, "(a cat:0.6) by <pen>", "--textual-inversion", f"{ink}=<pen>", str(ink), "--weights", "a1111"
    )
    assert weighted != sample(model, out, "(a cat:0.6) by <pen>", "--textual-inversion", f"{ink}=<pen>")
    wanted = pipe("(a cat:0.6) by <pen>", 16, 16, 2, seed=0, output_type="pil", weights="a1111").images[0]
    assert wanted.tobytes() == weighted
    sample(model, out, "(a cat:0.6)", "--weights", "a1111")
    assert main(["sample", "--from", str(out), "--model", model, "--out", str(again), "--overwrite"]) == 0
    with Image.open(again) as one, Image.open(out) as other:
        assert one.tobytes() == other.tobytes()


def test_the_other_commands(model: str, ink: Path, tmp_path: Path) -> None:
    word = ["--textual-inversion", str(ink)]
    picture = tmp_path / "a.png"
    sample(model, picture, "a cat")
    shared = ["--model", model, *word, "--steps", "2"]
    for command in (
        ["interpolate", "a cat", "<ink> (cat:1.3)", "--frames", "2", "--weights", "a1111"],
        ["invert", str(picture), "--prompt", "<ink>", "--weights", "compel"],
        ["edit", str(picture), "--source", "a cat", "--target", "<ink>", "--weights", "a1111"],
    ):
        out = tmp_path / ("noise.safetensors" if command[0] == "invert" else f"{command[0]}.png")
        assert main([*command, *shared, "--out", str(out)]) == 0, command
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat by <ink>\n")
    assert main(["generate", str(prompts), *shared, "--out", str(tmp_path / "job")]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--weights", "a1111"], "digits reads no texts: leave out --weights"),
        (["--textual-inversion", "owner/name"], "digits reads no texts: leave out --textual-inversion"),
    ],
)
def test_models_without_texts(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--model", "digits", *options, "--out", "x.png"]) == 1
    assert said in capsys.readouterr().err


def test_what_does_not_fit(
    model: str, ink: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"<a>": torch.zeros(1, 768)}, "wide.safetensors")
    for given, said in (
        (["wide.safetensors"], "--textual-inversion wide.safetensors is not for"),
        ([str(ink), str(ink)], "give another one as PATH=TOKEN"),
        ([f"{ink}=c"], "give another one as PATH=TOKEN"),
    ):
        assert main(["sample", "a", "--model", model, *FAST, "--out", "x.png", "--textual-inversion", *given]) == 1
        assert said in capsys.readouterr().err
    told: dict[str, Any] = {"(a:900)": "from -100 to 100"}
    for prompt, said in told.items():
        assert main(["sample", prompt, "--model", model, *FAST, "--weights", "a1111", "--out", "x.png"]) == 1
        assert said in capsys.readouterr().err
    assert not Path("x.png").exists()
