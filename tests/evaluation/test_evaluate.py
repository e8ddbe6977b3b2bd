"""`ddim evaluate`: what it draws, that it goes on where it was killed, and what it refuses."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clusters import two_nodes
from PIL import Image
from tiny import tiny_pipeline, tiny_unet

from ddim import DDIMScheduler, DiffusionPipeline
from ddim.checkpoint import read_tensors
from ddim.cli import main
from ddim.cli.evaluate import EvaluateSettings, open_grid, open_parts
from ddim.cli.evaluating import _Drawer, say_threads
from ddim.data import digits
from ddim.evaluation import FeatureStatistics, frechet_distance, load_features
from ddim.evaluation.drawing import DenoiserFor, conditions, draw_numbered, make_plan, open_data, run_plan
from ddim.evaluation.grid import Grid, summarize
from ddim.evaluation.state import Batch, Cell, Folder, digest
from ddim.noise import Generators, gaussian_noise, seeded_generators
from ddim.pipelines import DDIMPipeline
from ddim.plan import SamplingPlan
from ddim.serving.cluster import joined

CONFIG: dict[str, Any] = {"in_channels": 1, "out_channels": 1, "num_class_embeds": 11}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny, untrained pipeline of ten classes."""
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(**CONFIG).save_pretrained(folder)
    return str(folder)


def evaluate(model: str, out: Path, *options: str) -> int:
    usual = ["--steps", "2", "3", "--eta", "0", "1", "--samples", "20", "--batch", "8"]
    return main(["evaluate", model, "--against", "digits:held-out", "--out", str(out), *usual, *options])


def figures(out: Path) -> list[dict[str, Any]]:
    """The cells of results.json without what the clock says."""
    cells = json.loads((out / "results.json").read_text(encoding="utf-8"))["cells"]
    return [{k: v for k, v in cell.items() if "seconds" not in k} for cell in cells]


@pytest.fixture(scope="module")
def undisturbed(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "whole"
    assert evaluate(model, out) == 0
    return out


# --- what is written -------------------------------------------------------------------------------------------------


def test_results_as_json_csv_and_plots(undisturbed: Path) -> None:
    results = json.loads((undisturbed / "results.json").read_text(encoding="utf-8"))
    assert [(cell["eta"], cell["steps"]) for cell in results["cells"]] == [(0.0, 2), (0.0, 3), (1.0, 2), (1.0, 3)]
    assert results["distance"] == "Fréchet distance of digits features"  # and not FID
    assert results["settings"]["samples"] == 20
    assert {"ddim", "torch", "python"} <= set(results["versions"])
    assert all(
        cell["seconds"] > 0 and cell["cpu_seconds"] > 0 and cell["frechet_error"] > 0 for cell in results["cells"]
    )
    with (undisturbed / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["frechet"]) for row in rows] == [cell["frechet"] for cell in results["cells"]]
    for name in ("tradeoff.png", "tradeoff.svg"):
        assert (undisturbed / name).stat().st_size > 5000
    assert not [path for path in (undisturbed / "cells").iterdir() if path.is_dir()]  # batches are gone


def test_its_folder_is_what_plot_tradeoff_takes(undisturbed: Path, tmp_path: Path) -> None:
    assert main(["plot", "tradeoff", str(undisturbed), "--out", str(tmp_path / "x.png")]) == 0
    drawn = [Image.open(path).tobytes() for path in (tmp_path / "x.png", undisturbed / "tradeoff.png")]
    assert drawn[0] == drawn[1]


def test_the_figures_are_those_of_the_pipeline_s_own_pictures(model: str, undisturbed: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    labels = [number % 10 for number in range(20)]
    pictures = pipe(class_labels=labels, num_inference_steps=3, eta=1.0, seed=0, output_type="pt").images * 2 - 1
    features = load_features("digits")
    kept = read_tensors(undisturbed / "cells" / "eta-1_steps-3_seed-0.safetensors")["features"]
    torch.testing.assert_close(kept, features(pictures), rtol=0, atol=1e-4)
    source = open_data(
        "digits:held-out", captioned=False, labelled=False, image_column="", label_column="", caption_column=""
    )
    real = features(torch.stack([source.load(i) for i in range(source.count)]))  # type: ignore[arg-type]
    distance = frechet_distance(FeatureStatistics.of(features(pictures)), FeatureStatistics.of(real))
    assert figures(undisturbed)[3]["frechet"] == pytest.approx(distance, rel=1e-4)


# --- going on --------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_to_the_same_figures(
    model: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    drawn: list[tuple[int, range]] = []
    stops = [2, 4, 7]  # in the first cell, in the second, in the third

    def counting(pipe: Any, plan: SamplingPlan, seed: int, numbers: range, *rest: Any, **more: Any) -> torch.Tensor:
        if len(plan) == 1:  # before the clock starts
            return draw_numbered(pipe, plan, seed, numbers, *rest, **more)
        if len(drawn) in stops:
            stops.remove(len(drawn))
            raise KeyboardInterrupt
        drawn.append((len(plan), numbers))
        return draw_numbered(pipe, plan, seed, numbers, *rest, **more)

    monkeypatch.setattr("ddim.evaluation.grid.draw_numbered", counting)
    for _ in range(3):
        assert evaluate(model, out) == 130
    assert evaluate(model, out) == 0
    assert len(drawn) == 12  # 4 cells of 3 batches: none was drawn twice
    assert len(set(drawn)) == 6
    assert figures(out) == figures(undisturbed)
    drawn.clear()
    assert evaluate(model, out) == 0  # once more: nothing to do
    assert not drawn


@pytest.mark.slow  # repeats the interruption above, and that what a killed process was writing is whole
def test_a_killed_process_goes_on_to_the_same_figures(model: str, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = "import sys, torch; torch.set_num_threads(1); from ddim.cli import main; sys.exit(main(sys.argv[1:]))"
    options = [
        "--steps",
        "2",
        "3",
        "--eta",
        "0",
        "1",
        "--samples",
        "20",
        "--batch",
        "8",
        "--against",
        "digits:held-out",
    ]
    process = subprocess.Popen([sys.executable, "-c", code, "evaluate", model, *options, "--out", str(out)])
    deadline = time.monotonic() + 120
    while not list(out.glob("cells/*/00000.safetensors")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert evaluate(model, out) == 0
    assert figures(out) == figures(undisturbed)


def test_a_run_that_was_killed_between_its_last_batch_and_its_figures(
    model: str, undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / "cells" / "eta-0_steps-3_seed-0.json").unlink()
    assert evaluate(model, tmp_path / "run") == 0
    assert figures(tmp_path / "run") == figures(undisturbed)


# The fast test beside it is test_an_interrupted_run_goes_on_to_the_same_figures.
@pytest.mark.slow
def test_a_wider_grid_keeps_what_is_there(model: str, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    before = (tmp_path / "run" / "cells" / "eta-0_steps-3_seed-0.json").read_bytes()
    assert evaluate(model, tmp_path / "run", "--eta", "sigma_hat", "--seeds", "0", "1") == 0
    assert (tmp_path / "run" / "cells" / "eta-0_steps-3_seed-0.json").read_bytes() == before
    found = [(cell["eta"], cell["steps"], cell["seed"]) for cell in figures(tmp_path / "run")]
    assert len(found) == 8
    assert found[-1] == ("sigma_hat", 3, 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--samples", "21"], "samples was 20, is 21"),
        (["--batch", "7"], "batch was 8, is 7"),
        (["--spacing", "trailing"], "spacing was None, is 'trailing'"),
        (["--guidance-scale", "2"], "--guidance-scale was 1.0, is 2.0"),
        (["--against", "digits"], "against was 'digits:held-out', is 'digits'"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    model: str, undisturbed: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (undisturbed / "results.json").read_bytes()
    assert evaluate(model, undisturbed, *options) == 1
    error = capsys.readouterr().err
    assert told in error
    assert "give another --out" in error
    assert (undisturbed / "results.json").read_bytes() == before


def test_another_model_under_the_same_name_is_refused(
    undisturbed: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "settings.json").read_text(encoding="utf-8"))
    tiny_pipeline(1, **CONFIG).save_pretrained(tmp_path / "model")
    (tmp_path / "run" / "settings.json").write_text(json.dumps({**settings, "model": str(tmp_path / "model")}))
    assert evaluate(str(tmp_path / "model"), tmp_path / "run") == 1
    assert "digest was" in capsys.readouterr().err


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps must be 1 or more"),
        (["--steps", "5", "5"], "none of them twice"),
        (["--samples", "3"], "--samples must be 4 or more"),
        (["--batch", "0"], "--batch must be 1 or more"),
        (["--seed", "-1"], "--seeds must be 0 or more"),
        (["--steps", "5000"], "num_train_timesteps"),
        (["--eta", "1.5"], "eta"),
        (["--features", "emoji"], "emoji features are for pictures"),
        (["--features", "vgg"], "none of digits, emoji, inception"),
        (["--features", "inception"], "--features-weights"),
        (["--against", "/no/such/folder"], "/no/such/folder"),
        (["--guidance-rescale", "3"], "--guidance-rescale"),
    ],
)
def test_what_cannot_work_is_one_line_and_nothing_is_drawn(
    model: str, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(model, tmp_path / "x", *options) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ddim: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not list(tmp_path.glob("x/cells/*"))


def test_data_must_be_named(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", model]) == 1
    assert "--against" in capsys.readouterr().err


# --- conditions and drawing ------------------------------------------------------------------------------------------


def test_labels_in_turn_or_as_in_the_data() -> None:
    pipe = tiny_pipeline(**CONFIG)
    source = open_data(
        "digits:held-out", captioned=False, labelled=True, image_column="", label_column="", caption_column=""
    )
    turn = conditions(pipe, None, "turn", (1.0, 0.0))
    assert turn(5, range(8, 13))["class_labels"] == [8, 9, 0, 1, 2]
    data = conditions(pipe, source, "data", (2.0, 0.1))
    every = data(0, range(source.count))
    assert every["guidance_scale"] == 2.0
    assert sorted(every["class_labels"]) == sorted(source.labels or [])  # each once
    assert data(0, range(3, 7))["class_labels"] == every["class_labels"][3:7]
    assert data(1, range(source.count))["class_labels"] != every["class_labels"]
    assert conditions(tiny_pipeline(), None, "turn", (1.0, 0.0))(0, range(3)) == {}


def test_sigma_hat_adds_no_noise_at_the_last_step() -> None:
    """Of one step there is no other: the result is the clipped x0 that the network predicts, whatever the generator."""
    pipe = tiny_pipeline(**CONFIG)
    plan = make_plan(pipe.scheduler, 4, "sigma_hat")
    assert plan.rows[-1].sigma == pytest.approx(0.01)  # what the step itself would add
    last = SamplingPlan(plan.timesteps[-1:], plan.alphas_cumprod, eta="sigma_hat", clip_range=1.0)
    quiet = SamplingPlan(plan.timesteps[-1:], plan.alphas_cumprod, eta=0.0, clip_range=1.0)
    plain = lambda seed, numbers: {}  # noqa: E731
    pictures, expected = (draw_numbered(pipe, each, 0, range(3), plain) for each in (last, quiet))
    assert torch.equal(pictures, expected)
    noisy = pipe(batch_size=3, seed=0, eta="sigma_hat", timesteps=plan.timesteps[-1:], output_type="pt").images
    assert 0.001 < float((noisy * 2 - 1 - pictures).abs().max()) < 0.1


@pytest.mark.parametrize(
    ("clip", "expected"),
    [("model", (1.0, 1.0)), ("always", (1.0, 1.0)), ("never", (None, None)), ("sigma_hat", (None, 1.0))],
)
def test_clipping_follows_the_option(clip: str, expected: tuple[float | None, float | None]) -> None:
    found = tuple(make_plan(DDIMScheduler(), 5, eta, clip).clip_range for eta in (1.0, "sigma_hat"))
    assert found == expected


def test_a_folder_of_pictures_and_an_unconditional_model(tmp_path: Path) -> None:
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 16), dtype=np.uint8)
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{number}.png")
    pipe = DDIMPipeline(tiny_unet(in_channels=1, out_channels=1), DDIMScheduler())
    pipe.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    options = ["--against", str(tmp_path / "data"), "--steps", "2", "--samples", "6", "--out", str(out)]
    assert main(["evaluate", str(tmp_path / "model"), *options]) == 0
    assert len(figures(out)) == 1


# The fast test beside it is test_results_as_json_csv_and_plots.
@pytest.mark.slow
def test_several_seeds_give_a_mean_and_a_deviation(model: str, tmp_path: Path) -> None:
    options = ["--steps", "2", "--samples", "8", "--batch", "8", "--seeds", "0", "1", "2", "--out", str(tmp_path)]
    assert main(["evaluate", model, "--against", "digits:held-out", *options]) == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    distances = [cell["frechet"] for cell in results["cells"]]
    (row,) = results["summary"]
    assert len(set(distances)) == 3
    assert row["frechet"] == pytest.approx(np.mean(distances))
    assert row["frechet_error"] == pytest.approx(np.std(distances, ddof=1))
    assert row["error_is"] == "standard deviation over seeds"
    assert summarize([results["cells"][0]])[0]["frechet_error"] == results["cells"][0]["frechet_error"]


# The fast test beside it is test_an_interrupted_run_goes_on_to_the_same_figures.
@pytest.mark.slow
def test_a_gap_in_the_batches_is_drawn_again(model: str, tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "run"
    assert evaluate(model, out) == 0
    cell = Cell(0.0, 2, 0)
    whole = out / "cells" / f"{cell.name}.safetensors"
    features = read_tensors(whole)["features"]
    whole.unlink()
    (out / "cells" / f"{cell.name}.json").unlink()
    folder = Folder(out, json.loads((out / "settings.json").read_text()))
    for number in (0, 2):  # of three batches of 8, the last one of 4
        folder.save_batch(cell, number, Batch(features[8 * number : 8 * number + 8], 1.0, 1.0))
    assert evaluate(model, out) == 0
    assert figures(out) == figures(undisturbed)


def test_a_loop_of_another_sampler_begins_with_the_same_noises_and_conditions() -> None:
    """By hand, at timesteps of its own: what `draw_numbered` gives it, and what becomes of what it returns."""
    pipe = tiny_pipeline(**CONFIG)
    seen: list[tuple[torch.Tensor, int, int]] = []
    calls: list[int] = []

    def halving(denoiser_for: DenoiserFor, x: torch.Tensor, plan: SamplingPlan, generators: Generators) -> torch.Tensor:
        assert isinstance(generators, list)
        seen.append((x, len(plan), len(generators)))
        denoiser = denoiser_for(pipe.scheduler.plan(timesteps=[7, 3]))
        found = [denoiser(x, torch.tensor(t)) for t in (7, 3)]
        expected = pipe.unet(x, torch.tensor(7), torch.tensor([5, 6, 7])).sample
        torch.testing.assert_close(found[0], expected)
        return 0 * x + 0.5

    condition = conditions(pipe, None, "turn", (1.0, 0.0))
    pictures = draw_numbered(
        pipe, pipe.scheduler.plan(4), 3, range(5, 8), condition, loop=halving, progress=calls.append
    )
    assert torch.equal(pictures, torch.full((3, 1, 8, 8), 0.5))
    ((noise, steps, count),) = seen
    assert (steps, count, calls) == (4, 3, [3, 3])
    expected = gaussian_noise((3, 1, 8, 8), seeded_generators(3, 3, first=5), "cpu", torch.float32)
    assert torch.equal(noise, expected)


def test_a_grid_measures_what_its_loop_draws(tmp_path: Path) -> None:
    pipe = tiny_pipeline(**CONFIG)
    source, condition = digits("held-out"), conditions(pipe, None, "turn", (1.0, 0.0))
    found = []
    for name, loop in (("ours", run_plan), ("black", lambda denoiser_for, x, plan, generators: 0 * x - 1)):
        folder, cell = Folder(tmp_path / name, {}), Cell(0.0, 2, 0)
        grid = Grid(pipe, source, load_features("digits"), folder, condition, samples=8, batch=4, loop=loop)
        assert len(list(grid.run([cell]))) == 1
        found.append(folder.load_features(cell))
    black = load_features("digits")(torch.full((8, 1, 8, 8), -1.0))
    assert torch.allclose(found[1], black)
    assert not torch.allclose(found[0], black)


def test_a_digest_is_of_weights_and_scheduler() -> None:
    pipe = tiny_pipeline(**CONFIG)
    digests = {digest(pipe)}
    assert digests == {digest(tiny_pipeline(**CONFIG))}
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    digests.add(digest(pipe))
    digests.add(digest(tiny_pipeline(1, **CONFIG)))
    assert len(digests) == 3


# --- texts -----------------------------------------------------------------------------------------------------------


def test_captions_come_from_the_data_in_an_order_of_the_seed(tmp_path: Path) -> None:
    for number in range(5):
        Image.new("RGB", (64, 64), (50 * number, 10, 10)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"a red heart {number}\nheart {number}\n")
    source = open_data(
        str(tmp_path), captioned=True, labelled=False, image_column="image", label_column="", caption_column="text"
    )
    pipe = DiffusionPipeline.from_pretrained("emoji")
    condition = conditions(pipe, source, "turn", (3.0, 0.7))
    every = condition(0, range(10))
    assert {text[-1] for text in every["prompt"][:5]} == set("01234")  # each picture once, then again
    assert {text[-1] for text in every["prompt"][5:]} == set("01234")
    assert {text.startswith("a red") for text in every["prompt"]} == {True, False}
    assert condition(0, range(4, 6))["prompt"] == every["prompt"][4:6]
    assert condition(1, range(10))["prompt"] != every["prompt"]
    pictures = draw_numbered(pipe, pipe.scheduler.plan(2), 0, range(2), condition)
    assert pictures.shape == (2, *pipe.picture_shape()) == (2, 3, 64, 64)
    assert load_features("emoji")(pictures).shape == (2, load_features("emoji").size)


# --- by several processes --------------------------------------------------------------------------------------------


def settings_of(model: str, out: Path, **more: Any) -> EvaluateSettings:
    """What `evaluate` asks for."""
    usual = {"steps": (2, 3), "eta": (0.0, 1.0), "samples": 20, "batch": 8, "against": "digits:held-out"}
    return EvaluateSettings(**{"model": model, "out": str(out), **usual, **more})


# The fast test beside it is test_an_interrupted_run_goes_on_to_the_same_figures.
@pytest.mark.slow
def test_parts_that_others_do_in_any_order_give_the_same_figures(model: str, tmp_path: Path, undisturbed: Path) -> None:
    """What each process of `--workers` does, here one after the other."""
    settings = settings_of(model, tmp_path / "run")
    grid, _ = open_grid(settings, open_parts(settings))
    cells = [Cell(eta, steps, 0) for eta in settings.eta for steps in settings.steps]
    parts = grid.open_parts(cells)
    assert len(parts) == 2 + 4 * 3  # 360 pictures of the data, and 3 batches of each cell
    drawers = [_Drawer(settings, parts, torch.get_num_threads(), os.getcwd()) for _ in range(2)]
    for number in reversed(range(3, len(parts))):  # all but three, which are left to whoever comes last
        assert drawers[number % 2]({"id": np.array([number])})["id"] == [number]
    assert grid.open_parts(cells) == parts[:3]
    assert evaluate(model, tmp_path / "run") == 0
    assert figures(tmp_path / "run") == figures(undisturbed)
    kept = (tmp_path / "run" / "reference.safetensors", undisturbed / "reference.safetensors")
    assert kept[0].read_bytes() == kept[1].read_bytes()
    assert not (tmp_path / "run" / "reference").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray uses what its own warnings call deprecated
def test_one_two_and_three_workers_give_the_same_report(model: str, tmp_path: Path, undisturbed: Path) -> None:
    with joined(None, 3):  # which the commands below join
        for workers in (1, 2, 3):
            out = tmp_path / str(workers)
            assert evaluate(model, out, "--workers", str(workers)) == 0
            assert figures(out) == figures(undisturbed)
            for name in ("settings.json", "reference.safetensors"):
                assert (out / name).read_bytes() == (undisturbed / name).read_bytes()


def test_other_threads_than_one_process_has_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    own = torch.get_num_threads()
    say_threads(own)
    assert not capsys.readouterr().err
    say_threads(own + 3)
    assert f"each worker has {own + 3} threads, and one process here has {own}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_workers_of_two_nodes_give_the_same_report(model: str, tmp_path: Path, undisturbed: Path) -> None:
    with two_nodes() as cluster:
        assert evaluate(model, tmp_path / "out", "--workers", "2", "--ray-address", cluster.address) == 0
    assert figures(tmp_path / "out") == figures(undisturbed)
    for name in ("settings.json", "reference.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes()


def test_what_workers_are_not_for(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(model, tmp_path, "--eta", "0", "--consistency", "--workers", "2") == 1
    assert "leave out --workers" in capsys.readouterr().err
    assert evaluate(model, tmp_path, "--workers", "0") == 1
    assert "--workers must be 1 or more" in capsys.readouterr().err
    usual = importlib.util.find_spec
    monkeypatch.setattr("ddim.errors.importlib.util.find_spec", lambda name: None if name == "ray" else usual(name))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert evaluate(model, tmp_path, "--workers", "2") == 1
    assert "this needs ray, which is not installed: pip install 'ddim[scale]'" in capsys.readouterr().err
