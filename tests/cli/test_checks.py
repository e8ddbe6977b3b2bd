"""What is found out of a command's options before PyTorch is imported and a model is loaded."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from fresh import python
from PIL import Image
from tiny import save_tiny

from ddim.cli import COMMANDS, checks, load, main
from ddim.images import SUFFIXES
from ddim.plots import style


@pytest.fixture(autouse=True)
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No model is loaded, no training begun and no hub asked; files are relative to an empty folder."""
    from ddim.pipelines import DiffusionPipeline

    for where in ("from_pretrained", "from_single_file"):
        monkeypatch.setattr(DiffusionPipeline, where, lambda *a, **k: pytest.fail("a model was loaded"), raising=False)
    monkeypatch.setattr("ddim.training.run.make_trainer", lambda *_: pytest.fail("a training was begun"))
    monkeypatch.setattr("ddim.plots.schedule.plot_schedule", lambda *_: pytest.fail("a plot was drawn"))
    monkeypatch.setattr("ddim.checkpoint.hub.reachable", lambda: pytest.fail("the hub was asked"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said of a command that cannot work."""
    assert main(list(arguments)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ddim: ")
    return line.removeprefix("ddim: ")


# Of each command, what has to be given.
GIVEN: dict[str, list[str]] = {
    "invert": ["picture.png"],
    "edit": ["picture.png", "--source", "a", "--target", "b"],
    "evaluate": ["digits", "--against", "digits"],
    "optimize": ["digits", "--out", "found"],
    "plot tradeoff": ["results.json"],
    "train pixels": ["--output-dir", "run"],
    "train vae": ["--output-dir", "run", "--train-data-dir", "pictures"],
    "train text-to-image": ["--output-dir", "run", "--train-data-dir", "pictures"],
    "train lora": ["--output-dir", "run", "--train-data-dir", "pictures"],
    "train textual-inversion": [
        *("--output-dir", "run", "--train-data-dir", "pictures"),
        *("--placeholder-token", "<a>", "--initializer-token", "heart"),
    ],
}


@pytest.fixture
def files(tmp_path: Path) -> None:
    """What the commands read."""
    Image.new("L", (8, 8)).save("picture.png")
    Path("results.json").write_text("{}")
    Path("pictures").mkdir()


SAMPLE = [
    (["--steps", "0"], "--steps must be 1 or more, not 0"),
    (["--steps", "1001"], "--steps must be from 1 to 1000, the timesteps that digits was trained on"),
    (["--batch", "0"], "--batch must be 1 or more, not 0"),
    (["--seed", "-1"], "--seed must be 0 or more, not -1"),
    (["--eta", "-0.1"], "--eta must be 0 or more, not -0.1"),
    (["--eta", "nan"], "--eta must be 0 or more, not nan"),
    (["--strength", "1.5"], "--strength must be from 0 to 1, not 1.5"),
    (["--strength", "-0.5"], "--strength must be from 0 to 1, not -0.5"),
    (["--guidance-scale", "nan"], "--guidance-scale must be a finite number, not nan"),
    (["--guidance-scale", "inf"], "--guidance-scale must be a finite number, not inf"),
    (["--guidance-rescale", "1.1"], "--guidance-rescale must be from 0 to 1, not 1.1"),
    (["--guidance-interval", "900", "100"], "--guidance-interval 900 100 is the wrong way round: give 100 900"),
    (["--guidance-interval", "-1", "100"], "--guidance-interval must be 0 or more, not -1"),
    (["--class-labels", "3", "10"], "--class-labels 10 is no class of digits-fast, which knows 0 to 9"),
    (["a cat", "--height", "0"], "--height must be 1 or more, not 0"),
    (["a cat", "--height", "30"], "--height must be a multiple of 4 for emoji-fast, not 30"),
    (["a cat", "--width", "65"], "--width must be a multiple of 4 for emoji-fast, not 65"),
    (["--out", "x.xyz"], "--out x.xyz is not the name of a picture: let it end in .png (or"),
    (["--out", "x"], "--out x is not the name of a picture"),
    (["--out", ""], "--out  is not the name of a picture"),
    (["--out", "picture.png/x.png"], "--out picture.png/x.png cannot be written: picture.png is no folder"),
    (["--out", "picture.png/deep/"], "picture.png is no folder"),
    (["--out", "/proc/no/such/x.png"], "--out /proc/no/such/x.png cannot be written: "),
    (["--out", "/proc/nowhere/"], "cannot be written: "),
    (["--out", "x" * 250 + ".png"], "cannot be written: File name too long"),
    (["--image", "nope.png"], "there is no file or folder 'nope.png', given as --image"),
    (["--image", "pictur.png"], "given as --image: did you mean ./picture.png?"),
    (["--image", "pictures"], "--image pictures is a folder: give a file"),
    (["--image", "results.json"], "--image results.json"),
    (["--image", "picture.png", "--mask-image", "results.json"], "--mask-image results.json"),
    (["--from", "picture.png"], "picture.png is no PNG of `ddim sample` that says how ddim made it"),
    (
        ["--image", "picture.png", "--mask-image", "no.png"],
        "there is no file or folder 'no.png', given as --mask-image",
    ),
    (["--from", "nope.png"], "there is no file or folder 'nope.png', given as --from"),
    (["--lora", "nope.safetensors"], "there is no file or folder 'nope.safetensors', given as --lora"),
    (["--lora", "picture.png"], "--lora picture.png is no .safetensors or .bin file"),
    (["--model", "./nope"], "there is no folder './nope'"),
    (["--model", "digit"], "there is no model digit: did you mean digits?"),
    (["--model", "emojo"], "there is no model emojo: did you mean emoji?"),
    (["--model", "pictures"], "pictures has no model_index.json: it is no pipeline"),
    (["--model", "nope.safetensors"], "there is no file or folder 'nope.safetensors', given as --model"),
    (["--model", "old.ckpt"], "old.ckpt is a pickle, which can run code when it is read"),
    (["--device", "gpu"], "--device gpu is no device: there are cpu, cuda (cuda:0, cuda:1 and so on"),
    (["--device", "gpu:1"], "mps (Apple's) or xpu (Intel's): did you mean cuda:1?"),
    (["--device", "quantum"], "--device quantum is no device"),
    (["--zero-snr", "True"], "--zero-snr True needs a model that predicts v_prediction or sample; digits predicts eps"),
    (["a cat", "--model", "digits"], "digits draws no texts: leave out the prompt"),
    (["a cat", "--class-labels", "1"], "emoji-fast knows no classes: leave out --class-labels"),
    (["--model", "emoji"], "emoji draws what a text says: give one"),
    (["--height", "8"], "digits-fast draws no texts: leave out --height"),
    (["--tokenizer", "emoji"], "--tokenizer is for a --model that is one .safetensors file"),
    (["--prediction-type", "epsilon"], "--prediction-type is for a --model that is one .safetensors file"),
    (["--lora", "found.safetensors:x"], "--lora found.safetensors:x has 'x' where its weight should be"),
    (["--lora", "owner/name"], "digits takes no adapters: leave out --lora"),
    (["a cat", "--strength", "0.8"], "--strength says how much of --image is lost: give one, or leave it out"),
    (["a cat", "--strength=0.8"], "--strength says how much of --image is lost"),
    (["a cat", "--mask-image", "picture.png"], "--mask-image says where --image is to be painted anew: give one"),
    (["--order", "2", "--eta", "0.5"], "--order 2 needs an --eta of 0, not 0.5"),
    (["--order", "2", "--eta", "sigma_hat"], "--order 2 needs an --eta of 0, not sigma_hat"),
    (
        ["a cat", "--negative-prompt", "x", "--guidance-scale", "1"],
        "--negative-prompt changes nothing without guidance",
    ),
    (["a cat", "--guidance-rescale", "0.7", "--guidance-scale", "1"], "--guidance-rescale changes nothing without"),
    (
        ["--guidance-rescale", "0.7"],
        "--guidance-rescale changes nothing without guidance: give a --guidance-scale above",
    ),
    (["--guidance-interval", "1", "9"], "--guidance-interval changes nothing without guidance"),
]


@pytest.mark.parametrize(
    ("options", "said"), SAMPLE, ids=lambda value: " ".join(value) if value[0][:1] == "-" else None
)
@pytest.mark.thin(every=2)
def test_sample(options: list[str], said: str, files: None, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().iterdir())
    assert said in refusal(capsys, "sample", *options)
    assert sorted(Path().iterdir()) == before


OTHERS = [
    ("interpolate", ["--out", "x.xyz"], "; .gif, .webp, .mp4 for an animation), or in / for a folder"),
    ("interpolate", ["--frames", "1"], "--frames must be 2 or more, not 1"),
    ("interpolate", ["--fps", "61", "--out", "x.gif"], "--fps must be from 1 to 60, not 61"),
    ("interpolate", ["--scale", "0"], "--scale must be 1 or more"),
    ("interpolate", ["--batch-size", "0"], "--batch-size must be 1 or more"),
    ("interpolate", ["--images", "no.png", "picture.png"], "there is no file or folder 'no.png', given as --images"),
    ("interpolate", ["--class-labels", "0", "10"], "--class-labels 10 is no class of digits"),
    ("interpolate", ["--steps", "2000"], "--steps must be from 1 to 1000"),
    ("interpolate", ["--model", "emojo"], "did you mean emoji?"),
    ("interpolate", ["--lora", "owner/name"], "digits takes no adapters"),
    ("interpolate", ["--method", "ddim"], "--method says how --images are led up to their noise"),
    ("interpolate", ["a cat", "--seeds", "0", "1", "--between-texts", "linear"], "--between-texts says how to go from"),
    ("interpolate", ["--fps", "12"], "--fps is for animations: let --out end in .gif, .webp, .mp4"),
    (
        "interpolate",
        ["--images", "picture.png", "picture.png", "--negative-prompt", "x", "--model", "emoji"],
        "--negative-prompt changes nothing without guidance",
    ),
    ("invert", ["--out", "noise.png"], "--out noise.png must end in .safetensors"),
    ("invert", ["--out", "pictures"], "--out pictures must end in .safetensors"),
    ("invert", ["--steps", "0"], "--steps must be 1 or more"),
    ("invert", ["--class-label", "1"], "emoji knows no classes"),
    ("invert", ["--class-label", "-1"], "--class-label must be 0 or more"),
    ("invert", ["--guidance-scale", "inf"], "--guidance-scale must be a finite number"),
    ("invert", ["--device", "gpu"], "did you mean cuda?"),
    ("invert", ["--negative-prompt", "x"], "--negative-prompt changes nothing without guidance"),
    ("edit", ["--strength", "0"], "--strength must be above 0 and up to 1, not 0.0"),
    ("edit", ["--eta", "1.5"], "--eta must be above 0 and up to 1, not 1.5"),
    ("edit", ["--source-guidance-scale", "nan"], "--source-guidance-scale must be a finite number"),
    ("edit", ["--batch", "2", "--method", "ddim"], "--batch 2 cannot be"),
    ("edit", ["--model", "digits"], "digits draws no texts"),
    ("edit", ["--eta", "1", "--method", "ddim"], "--eta is for --method cycle, as ddim draws no noise"),
    ("edit", ["--seed", "0", "--method", "fixed-point"], "--seed is for --method cycle"),
    ("edit", ["--guidance-rescale", "0.5", "--guidance-scale", "1"], "--guidance-rescale changes nothing without"),
    ("edit", ["--out", "x.xyz"], "--out x.xyz is not the name of a picture"),
    ("evaluate", ["--out", "picture.png"], "--out picture.png/x cannot be written: picture.png is no folder"),
    ("evaluate", ["--steps", "10", "1001"], "--steps must be from 1 to 1000"),
    ("evaluate", ["--seeds", "0", "-2"], "--seeds must be 0 or more"),
    ("evaluate", ["--samples", "3"], "--samples must be 4 or more"),
    ("evaluate", ["--eta", "0", "-1"], "--eta must be 0 or more"),
    ("evaluate", ["--against", "./no/such"], "there is no file or folder './no/such', given as --against"),
    ("evaluate", ["--against", "digit"], "there is no data digit, given as --against: did you mean digits?"),
    ("evaluate", ["--against", "x.parquet"], "there is no file or folder 'x.parquet'"),
    ("evaluate", ["--features-weights", "x.bin"], "there is no file or folder 'x.bin', given as --features-weights"),
    ("optimize", ["--out", "picture.png"], "picture.png is no folder"),
    ("optimize", ["--steps", "5", "61"], "--steps must be from 1 to the 60 of --reference, not 5 61"),
    ("optimize", ["--reference", "1001"], "--reference must be from 1 to 1000"),
    ("evaluate", ["--features-weights", "picture.png"], "--features-weights is for --features inception"),
    ("optimize", ["--samples", "0"], "--samples must be 1 or more"),
    ("plot schedule", ["--out", "x.txt"], "--out x.txt must end in .png or .svg or .pdf"),
    ("plot schedule", ["--steps", "0"], "--steps must be 1 or more"),
    ("plot schedule", ["--model", "digit"], "did you mean digits?"),
    ("plot trajectory", ["--out", "x.jpg"], "--out x.jpg must end in .png or .svg or .pdf"),
    ("plot trajectory", ["--moments", "0"], "--moments must be 1 or more"),
    ("plot trajectory", ["--class-label", "10"], "--class-label 10 is no class of digits"),
    ("plot tradeoff", ["--out", "x"], "--out x must end in .png or .svg or .pdf"),
    ("train pixels", ["--data", "./none"], "there is no file or folder './none', given as --data"),
    ("train pixels", ["--output-dir", "picture.png"], "picture.png is no folder"),
    ("train pixels", ["--output-dir", ""], "--output-dir is empty"),
    ("train vae", ["--train-data-dir", "pictres"], "given as --train-data-dir: did you mean ./pictures?"),
    ("train vae", ["--train-data-dir", "picture.png"], "--train-data-dir picture.png is a file: give the folder"),
    ("train text-to-image", ["--pretrained-model-name-or-path", "emojo"], "did you mean emoji?"),
    ("train lora", ["--pretrained-model-name-or-path", "./none"], "there is no folder './none'"),
    ("train lora", ["--resume-from-checkpoint", "checkpoint-9"], "there is no checkpoint 'checkpoint-9'"),
]


@pytest.mark.parametrize(("words", "options", "said"), OTHERS, ids=lambda value: None if isinstance(value, str) else "")
@pytest.mark.thin(every=2)
def test_all_other_commands(
    words: str, options: list[str], said: str, files: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().iterdir())
    kind = load(COMMANDS[words].settings)
    several = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(kind)} & set(options)
    given = GIVEN.get(words, [])
    for name in several & set(given):  # the last one counts, of options that are given once
        place = given.index(name)
        given = given[:place] + given[place + 2 :]
    assert said in refusal(capsys, *words.split(), *given, *options)
    assert sorted(Path().iterdir()) == before


def test_a_model_that_is_missing_stands_before_the_options(files: None, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("evaluate", "optimize", "info"):
        assert "there is no model emojo: did you mean emoji?" in refusal(capsys, words, "emojo")
    assert "there is no file or folder 'no.json', given as the results" in refusal(
        capsys, "plot", "tradeoff", "no.json"
    )
    assert "there is no file or folder 'no.png', given as the images" in refusal(capsys, "invert", "no.png")
    assert "the images results.json" in refusal(capsys, "invert", "picture.png", "results.json")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="permissions do not hold root back")
def test_a_place_that_permissions_forbid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir(mode=0o500)
    assert "--out mine/x.png cannot be written: Permission denied" in refusal(capsys, "sample", "--out", "mine/x.png")


def test_a_disk_that_cannot_be_written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions say nothing of it, so it is tried."""

    def refuse(*_: Any) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    for words in ("sample", "interpolate", "info"):
        if words != "info":
            assert "cannot be written: Read-only file system" in refusal(capsys, words)


def test_what_is_tried_leaves_nothing_behind(tmp_path: Path) -> None:
    for out in ("x.png", "new/folder/x.png", "many/"):
        checks.pictures_to()(out, "--out")
    checks.folder_to("a/b/c", "--out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "library", "said"),
    [
        (["plot", "schedule"], "matplotlib", "pip install 'ddim[plot]'"),
        (["evaluate", "digits", "--against", "digits"], "matplotlib", "pip install 'ddim[plot]'"),
        (["train", "pixels", "--output-dir", "run"], "accelerate", "pip install 'ddim[train]'"),
        (["sample", "--backend", "openvino"], "openvino", "pip install 'ddim[fast]'"),
        (["interpolate", "--out", "x.mp4"], "av", "pip install 'ddim[video]'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_library_that_is_not_installed(
    words: list[str], library: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, library, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert refusal(capsys, *words) == f"this needs {library}, which is not installed: {said}"


# --- how early ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "--out", "x.xyz"],
        ["sample", "--steps", "0"],
        ["sample", "a cat", "--steps", "2000"],
        ["sample", "--model", "emojo"],
        ["interpolate", "--out", "x.gif", "--grid", "--seeds", "0", "1", "2", "3"],
        ["train", "text-to-image", "--output-dir", "run", "--train-data-dir", "none"],
        ["sample", "a cat", "--image", "results.json"],
        ["sample", "--from", "picture.png"],
        ["invert", "picture.png", "--class-label", "3"],
    ],
    ids=" ".join,
)
@pytest.mark.thin(every=3)
def test_no_time_is_lost(arguments: list[str], files: None) -> None:
    """PyTorch is not imported, and all takes less than half a second of the processor's time."""
    code = f"import sys, time; from ddim.cli import main; assert main({arguments!r}) == 1\n"
    code += "assert not {'torch', 'huggingface_hub'} & set(sys.modules)\nprint(time.process_time())"
    assert float(python(code)) < 0.5


def test_a_hub_that_cannot_be_reached_is_one_sentence_before_pytorch_is_imported(tmp_path: Path) -> None:
    code = f"""
import os, sys, time
os.environ |= {{"HF_HOME": {str(tmp_path)!r}, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1"}}
from ddim.cli import main
assert main(["sample", "a cat", "--model", "owner/name"]) == 1
assert "torch" not in sys.modules
print(time.process_time())"""
    assert float(python(code)) < 1


# --- the tables ------------------------------------------------------------------------------------------------------


def is_number(kind: Any) -> bool:
    return kind in (int, float) or any(is_number(each) for each in get_args(kind))


@pytest.mark.parametrize("words", [words for words in COMMANDS if not words.startswith(("train", "distill"))])
def test_every_number_has_a_rule(words: str) -> None:
    """Those of training are checked by its settings."""
    kind = load(COMMANDS[words].settings)
    for name, hint in get_type_hints(kind).items():
        if is_number(hint) and name not in ("order",):
            assert (words, name) in checks.OWN or name in checks.RULES, f"{words} {name} may be any number"


def test_every_rule_is_of_an_option() -> None:
    names = {field.name for each in COMMANDS.values() for field in dataclasses.fields(load(each.settings))}
    assert set(checks.RULES) - names <= {"model_config_name_or_path"}
    for words, name in checks.OWN:
        assert name in {field.name for field in dataclasses.fields(load(COMMANDS[words].settings))}


def test_the_endings_are_those_of_the_library() -> None:
    assert checks.ANIMATIONS == SUFFIXES
    assert checks.PLOTS == style.SUFFIXES
    assert {".png", ".jpg", ".webp", ".gif", ".bmp", ".tiff"} <= set(checks.picture_endings())


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("gpu", "cuda"), ("GPU:0", "cuda:0"), ("CPU", "cpu"), ("cuda0", "cuda"), ("metal", "mps"), ("0", None)],
)
def test_what_may_have_been_meant(asked: str, meant: str | None) -> None:
    with pytest.raises(ValueError, match="is no device") as error:
        checks.device(asked, "--device")
    assert str(error.value).endswith(f": did you mean {meant}?" if meant else "xpu (Intel's)")


def test_devices_that_are_not_there_are_told_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny(tmp_path / "model")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    said = refusal(capsys, "sample", "--model", model, "--device", "cuda", "--batch", "1")
    assert said == "--device cuda cannot be used: PyTorch finds cpu here"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    said = refusal(capsys, "sample", "--model", model, "--device", "cuda:2", "--batch", "1")
    assert said == "--device cuda:2 cannot be used: PyTorch finds cpu and cuda:0 and cuda:1 here"
