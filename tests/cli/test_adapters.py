"""`--lora PATH[:WEIGHT]`: what it asks for, in every layout, with every command that draws texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_lora
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_lora import known, named
from tiny_sd import tiny_reference

from ddim.cli import main
from ddim.cli.adapters import Adapter, adapter, check_adapter, listed
from ddim.errors import ConfigError
from ddim.pipelines import StableDiffusionPipeline

FAST = ["--steps", "2", "--height", "16", "--width", "16", "--scale", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sd")
    tiny_reference(folder, 1)
    return str(folder)


@pytest.fixture(scope="module")
def loras(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two adapters in diffusers' layout: ink.safetensors and paper.safetensors."""
    folder = tmp_path_factory.mktemp("loras")
    pipe = StableDiffusionPipeline.from_pretrained(model)
    for seed, name in enumerate(("ink", "paper")):
        save_file(named(known(pipe, seed=seed), tiny_lora.present), folder / f"{name}.safetensors")
    return folder


def drawn(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def sample(model: str, out: Path, *options: str) -> bytes:
    assert main(["sample", "a cat", "--model", model, *FAST, *options, "--overwrite", "--out", str(out)]) == 0
    return drawn(out)


# --- what is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("ink.safetensors", Adapter("ink.safetensors", None, 1.0)),
        ("ink.safetensors:0.5", Adapter("ink.safetensors", None, 0.5)),
        ("ink.safetensors:-1", Adapter("ink.safetensors", None, -1.0)),
        (r"C:\loras\ink.safetensors", Adapter(r"C:\loras\ink.safetensors", None, 1.0)),
        (r"C:\loras\ink.safetensors:0.5", Adapter(r"C:\loras\ink.safetensors", None, 0.5)),
        ("C:/loras/ink.safetensors", Adapter("C:/loras/ink.safetensors", None, 1.0)),
        ("owner/name", Adapter("owner/name", None, 1.0)),
        ("owner/name:0.5", Adapter("owner/name", None, 0.5)),
        ("owner/name/ink.safetensors:2", Adapter("owner/name", "ink.safetensors", 2.0)),
        ("./owner/name/ink.safetensors", Adapter("./owner/name/ink.safetensors", None, 1.0)),
    ],
)
def test_a_place_and_a_weight(text: str, asked: Adapter) -> None:
    assert adapter(text) == asked


def test_a_name_with_a_colon_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd:2").mkdir()
    assert adapter("odd:2") == Adapter("odd:2", None, 1.0)
    assert adapter("odd:2:0.5") == Adapter("odd:2", None, 0.5)


@pytest.mark.parametrize("text", ["ink.safetensors:x", "ink.safetensors:", ":0.5", "a:nan", "a:inf", "owner/name:1,5"])
def test_a_weight_that_is_no_number(text: str) -> None:
    with pytest.raises(ConfigError, match="where its weight should be: give a number, such as"):
        adapter(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no.safetensors", "there is no file or folder 'no.safetensors', given as --lora"),
        ("ik.safetensors", "did you mean ./ink.safetensors?"),
        ("./no", "there is no file or folder './no'"),
        ("no", "there is no file or folder 'no'"),
        ("ink.txt", "ink.txt is no .safetensors or .bin file"),
    ],
)
def test_what_can_be_no_adapter(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ink.txt").write_text("")
    Path("ink.safetensors").write_text("")
    with pytest.raises(ConfigError) as error:
        check_adapter(text, "--lora")
    assert said in str(error.value)


def test_several_in_one_option_or_in_several(tmp_path: Path) -> None:
    assert listed([["a"], ["b", "c"]]) == ("a", "b", "c")
    assert listed(None) == ()
    check_adapter(("owner/name", "owner/other:0.5"), "--lora")


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_one_and_several_at_their_weights(model: str, loras: Path, tmp_path: Path) -> None:
    ink, paper = str(loras / "ink.safetensors"), str(loras / "paper.safetensors")
    out = tmp_path / "x.png"
    pictures = {
        "none": sample(model, out),
        "ink": sample(model, out, "--lora", ink),
        "half": sample(model, out, "--lora", f"{ink}:0.5"),
        "off": sample(model, out, "--lora", f"{ink}:0"),
        "both": sample(model, out, "--lora", f"{ink}:0.5", paper),
        "both again": sample(model, out, "--lora", f"{ink}:0.5", "--lora", paper),
    }
    with Image.open(out) as image:
        assert json.loads(image.info["ddim"])["settings"]["lora"] == [f"{ink}:0.5", paper]
    assert pictures["off"] == pictures["none"]
    assert pictures["both"] == pictures["both again"]
    assert len(set(pictures.values())) == 4
    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(ink, "a")
    pipe.load_lora_weights(paper, "b")
    pipe.set_adapters(["a", "b"], [0.5, 1.0])
    expected = pipe("a cat", num_inference_steps=2, height=16, width=16, seed=0).images[0]
    assert pictures["both"] == expected.tobytes()


@pytest.mark.parametrize(
    "names", ["present", "older", "oldest", "kohya", "kohya_original", "comfy", "one_trainer"], ids=str
)
@pytest.mark.thin(every=3)
def test_every_layout(names: str, model: str, loras: Path, tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(model)
    save_file(named(known(pipe, seed=0), getattr(tiny_lora, names)), tmp_path / "x.safetensors")
    ours = sample(model, tmp_path / "a.png", "--lora", str(tmp_path / "x.safetensors"))
    assert ours == sample(model, tmp_path / "b.png", "--lora", str(loras / "ink.safetensors"))


@pytest.mark.parametrize("words", ["interpolate", "edit", "invert"])
def test_the_other_commands(words: str, model: str, loras: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    given = {
        "interpolate": ["a cat", "a dog", "--frames", "2"],
        "edit": [str(tmp_path / "red.png"), "--source", "a cat", "--target", "a dog", "--strength", "1"],
        "invert": [str(tmp_path / "red.png"), "--prompt", "a cat", "--no-check"],
    }[words]
    made: list[Any] = []
    for number, more in enumerate(([], ["--lora", str(loras / "ink.safetensors")])):
        out = tmp_path / f"{number}{'.safetensors' if words == 'invert' else '.png'}"
        assert main([words, *given, "--model", model, "--steps", "2", *more, "--out", str(out)]) == 0
        if words == "invert":
            assert main(["sample", "--trust", "--from", str(out), *more, "--out", str(tmp_path / f"{number}.png")]) == 0
        made.append(drawn(tmp_path / f"{number}.png"))
    if words != "invert":  # there and back again, the adapter is in the noise as well
        assert made[0] != made[1]
    else:
        noises = [(tmp_path / f"{number}.safetensors").read_bytes()[-500:] for number in range(2)]
        assert noises[0] != noises[1]


def test_what_fits_nothing_in_the_model(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {"lora_unet_nothing_of_the_kind.lora_down.weight": torch.zeros(2, 4)}
    save_file(tensors, tmp_path / "x.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    for name, said in (("x", f"is not for {model}"), ("broken", "is not a readable safetensors file")):
        path = tmp_path / f"{name}.safetensors"
        assert main(["sample", "a cat", "--model", model, "--lora", str(path), "--out", str(tmp_path / "x.png")]) == 1
        assert f"--lora {path}" in (line := capsys.readouterr().err.splitlines()[0])
        assert said in line
    assert not (tmp_path / "x.png").exists()


def test_a_folder_in_which_it_is_called_otherwise(
    model: str, loras: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.png"
    assert main(["sample", "a cat", "--model", model, "--lora", str(loras), "--out", str(out)]) == 1
    assert "if it is called otherwise, give --lora the file itself" in capsys.readouterr().err
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "ink.safetensors").write_bytes((loras / "ink.safetensors").read_bytes())
    assert sample(model, out, "--lora", str(tmp_path / "one")) == sample(
        model, out, "--lora", str(loras / "ink.safetensors")
    )


def test_one_of_the_hub(model: str, loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo: str, name: str, **options: Any) -> str:
        asked.append((repo, name))
        return str(loras / "ink.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    expected = sample(model, tmp_path / "x.png", "--lora", str(loras / "ink.safetensors") + ":0.5")
    assert sample(model, tmp_path / "x.png", "--lora", "owner/name:0.5") == expected
    assert sample(model, tmp_path / "x.png", "--lora", "owner/name/ink.safetensors:0.5") == expected
    assert asked == [("owner/name", "pytorch_lora_weights.safetensors"), ("owner/name", "ink.safetensors")]


# --- the words that an adapter was trained on ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_knows", "adapter_knows", "said"),
    [
        (["a", "dog"], None, None),  # what the adapter has seen is not known
        (["a", "dog"], ["cat"], None),
        (["a", "dog"], ["ink"], "ddim: the model has never seen: cat"),
        (None, ["ink"], None),
    ],
)
@pytest.mark.thin(every=2)
def test_words_are_those_of_the_model_and_of_the_adapter(
    model_knows: list[str] | None,
    adapter_knows: list[str] | None,
    said: str | None,
    model: str,
    loras: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "lora").mkdir()
    shutil.copy(loras / "ink.safetensors", tmp_path / "lora")
    for folder, words in (("model", model_knows), ("lora", adapter_knows)):
        if words is not None:
            (tmp_path / folder / "words.json").write_text(json.dumps({"words": words}))
    for lora in (tmp_path / "lora", tmp_path / "lora" / "ink.safetensors"):
        sample(str(tmp_path / "model"), tmp_path / "x.png", "--lora", str(lora))
        lines = [line for line in capsys.readouterr().err.splitlines() if "never seen" in line]
        assert lines == ([said] if said else [])
