"""The command line, used as a person would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import save_tiny

from ddim.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny class-conditional pipeline of three classes and a null class."""
    return save_tiny(tmp_path_factory.mktemp("model"), num_class_embeds=4)


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("plain"))


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def note(path: Path) -> dict[str, object]:
    with Image.open(path) as image:
        return json.loads(image.info["ddim"])  # type: ignore[no-any-return]


def test_help_is_instant_and_imports_no_torch() -> None:
    code = "import sys; from ddim.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    code += "import time; assert time.process_time() < 0.5"  # not the clock's: the machine may be busy
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "sample" in done.stdout
    assert "train" in done.stdout


def test_the_module_and_the_version() -> None:
    done = subprocess.run([sys.executable, "-m", "ddim", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("ddim ")


def test_a_grid_by_default_with_a_note_of_how_it_was_made(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "grid.png"
    assert main(["sample", "--model", model, "--steps", "2", "--seed", "3", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert size(out) == (3 * 258 - 2, 256)
    assert note(out)["settings"]["seed"] == 3  # type: ignore[index]
    assert note(out)["image"] is None


def test_a_folder_gets_a_file_for_each_image(model: str, tmp_path: Path) -> None:
    arguments = ["sample", "--model", model, "--steps", "2", "--class-labels", "2", "0", "--batch", "3"]
    assert main([*arguments, "--out", str(tmp_path / "many") + "/"]) == 0
    files = sorted((tmp_path / "many").iterdir())
    assert [file.name for file in files] == ["00000.png", "00001.png", "00002.png"]
    assert size(files[0]) == (8, 8)
    assert [note(file)["image"] for file in files] == [0, 1, 2]


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_a_picture_is_made_again_from_itself(model: str, tmp_path: Path) -> None:
    options = ["--steps", "3", "--eta", "0.5", "--spacing", "trailing", "--seed", "5", "--class-labels", "2", "1"]
    main(["sample", "--model", model, *options, "--batch", "4", "--out", str(tmp_path / "many") + "/"])
    main(["sample", "--model", model, *options, "--batch", "4", "--out", str(tmp_path / "grid.png")])
    for name in ("many/00000.png", "many/00003.png", "grid.png"):
        arguments = [
            "sample",
            "--trust",
            "--from",
            str(tmp_path / name),
            "--out",
            str(tmp_path / "again.png"),
            "--overwrite",
        ]
        assert main(arguments) == 0
        assert pixels(tmp_path / "again.png") == pixels(tmp_path / name)
    assert main(["sample", "--trust", "--from", str(tmp_path / "again.png"), "--out", str(tmp_path / "twice.png")]) == 0
    assert pixels(tmp_path / "twice.png") == pixels(tmp_path / "grid.png")


@pytest.mark.parametrize("content", [b"no picture", None])
def test_a_picture_that_does_not_say_how_it_was_made(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.png"
    if content is None:
        Image.new("L", (8, 8)).save(path)
    else:
        path.write_bytes(content)
    assert main(["sample", "--trust", "--from", str(path)]) == 1
    assert "says how ddim made it" in capsys.readouterr().err


def test_options_of_another_kind_of_model_are_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "a red heart", "--model", model]) == 1
    assert "draws no texts" in capsys.readouterr().err


def test_the_seed_decides_the_picture(model: str, tmp_path: Path) -> None:
    pictures = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / f"{number}.png"
        main(["sample", "--model", model, "--steps", "2", "--eta", "1", "--seed", str(seed), "--out", str(out)])
        with Image.open(out) as image:
            pictures.append(image.tobytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_sampler_options_reach_the_sampler(unconditional: str, tmp_path: Path) -> None:
    options = ["--spacing", "trailing", "--eta", "sigma_hat", "--dtype", "bfloat16", "--device", "cpu", "--batch", "4"]
    out = tmp_path / "x.webp"
    assert main(["sample", "--model", unconditional, "--steps", "3", *options, "--out", str(out)]) == 0
    assert size(out) == (4 * 258 - 2, 256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps must be 1 or more, not 0"),
        (["--steps", "5000"], "num_train_timesteps"),
        (["--zero-snr", "True", "--spacing", "trailing"], "v_prediction"),
        (["--eta", "1.5"], "eta"),
        (["--seed", "-1"], "seed"),
        (["--class-labels", "9"], "--class-labels 9 is no class"),
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--out", "/proc/no/such/place.png"], "/proc"),
        (["--out", "x.nope"], "nope"),
        (["--guidance-rescale", "7"], "--guidance-rescale"),
        (["--device", "quantum"], "quantum"),
    ],
)
def test_what_cannot_work_is_one_line_and_status_1(
    model: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["sample", "--model", model, "--steps", "2", "--out", str(tmp_path / "x.png"), *options]
    assert main(arguments) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ddim: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not list(tmp_path.iterdir())


def test_labels_for_a_model_without_classes(unconditional: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--model", unconditional, "--class-labels", "1"]) == 1
    assert "knows no classes" in capsys.readouterr().err


def test_info_says_what_a_model_is(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", model, "--steps", "4"]) == 0
    out = capsys.readouterr().out
    for expected in ("DDIMPipeline", "UNet2DModel", "parameters", "num_class_embeds = 4", "SamplingPlan: 4 steps"):
        assert expected in out


@pytest.mark.parametrize("suffix", ["png", "svg", pytest.param("pdf", marks=pytest.mark.slow)])
@pytest.mark.thin(fast=["svg"])
def test_the_schedule_is_plotted(tmp_path: Path, suffix: str, model: str) -> None:
    for extra in ([], ["--zero-snr"], ["--model", model, "--steps", "300"]):
        out = tmp_path / f"{len(extra)}.{suffix}"
        assert main(["plot", "schedule", "--out", str(out), *extra]) == 0
        assert out.stat().st_size > 5000


def test_a_plot_of_an_unknown_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "schedule", "--out", str(tmp_path / "x.txt")]) == 1
    assert ".svg" in capsys.readouterr().err


def test_training_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--class-conditional --block-out-channels 8 16 --layers-per-block 1 --attention-head-dim 8"
    options += " --train-batch-size 4 --max-train-steps 2 --validation-steps 0 --report-to none"
    assert main(["train", "pixels", "--output-dir", str(tmp_path / "run"), *options.split()]) == 0
    assert capsys.readouterr().out.strip().endswith(str(tmp_path / "run"))
    assert main(["info", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--train-batch-size", "0"], "--train-batch-size must be 1 or more, not 0"),
        (["--learning-rate", "nan"], "--learning-rate must be positive, not nan"),
        (["--attention-levels", "7"], "--attention-levels has 7, but --block-out-channels has the levels 0 to 2"),
    ],
)
def test_settings_of_training_are_refused_as_they_are_typed(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "pixels", "--output-dir", str(tmp_path / "run"), *options]) == 1
    assert capsys.readouterr().err == f"ddim: {said}\n"


def test_pictures_to_train_on_must_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "lora", "--output-dir", str(tmp_path / "run")]) == 1
    assert "give --dataset-name or --train-data-dir, but not both" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_runs_out_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("ddim.cli.sample.open_pipeline", fail)
    assert main(["sample"]) == 1
    assert capsys.readouterr().err == (
        "ddim: there is not enough memory: give less to do at a time by --batch, --height, --width, --dtype\n"
    )


def test_other_errors_of_pytorch_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("ddim.cli.sample.open_pipeline", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["sample"])
