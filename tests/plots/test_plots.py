"""Plots: what is drawn, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import Gaussian, Settings, level_at
from PIL import Image
from tiny import save_tiny
from tiny_sd import tiny_reference
from torch import Tensor

from ddim import DDIMScheduler
from ddim.cli import main
from ddim.errors import ConfigError
from ddim.images import to_images
from ddim.noise import seeded_generators
from ddim.plots.tradeoff import plot_tradeoff
from ddim.plots.trajectory import plot_trajectory, record

figure = pytest.importorskip("matplotlib.figure")

SETTINGS = Settings(clip_sample=False)
MODEL = Gaussian(SETTINGS, mean=0.3, deviation=0.4)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are made."""
    made: list[Any] = []

    class Kept(figure.Figure):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(figure, "Figure", Kept)
    return made


# --- a run, step by step ---------------------------------------------------------------------------------------------


def noise() -> Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("moments", "indices"), [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (99, list(range(10)))])
def test_moments_of_a_run(moments: int, indices: list[int]) -> None:
    plan = DDIMScheduler(**SETTINGS.as_config()).plan(10)
    calls: list[int] = []
    kept = record(MODEL, noise(), plan, moments, progress=lambda: calls.append(1))
    assert len(calls) == 10
    assert kept.timesteps == tuple(plan.timesteps[i] for i in indices)
    assert kept.alpha_bars == pytest.approx([float(level_at(SETTINGS, t)) for t in kept.timesteps])
    assert torch.equal(kept.x_t[0], noise()[0])
    for t, x, x0 in zip(kept.timesteps, kept.x_t, kept.x0, strict=True):
        eps = MODEL(x[None], t)
        level = float(level_at(SETTINGS, t))
        torch.testing.assert_close(x0[None], (x[None] - (1 - level) ** 0.5 * eps) / level**0.5, rtol=1e-3, atol=1e-4)
    assert abs(float(kept.image.mean()) - 0.3) < 0.1
    with pytest.raises(ConfigError, match="one moment"):
        record(MODEL, noise(), plan, 0)


def test_a_run_with_noise_is_made_again_by_its_generators() -> None:
    plan = DDIMScheduler(**SETTINGS.as_config()).plan(5, eta=1.0)
    first, again = (record(MODEL, noise(), plan, 3, generator=seeded_generators(0, 1)) for _ in range(2))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, record(MODEL, noise(), plan, 3, generator=seeded_generators(1, 1)).image)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_two_rows_with_their_timesteps(tmp_path: Path, suffix: str, drawn: list[Any]) -> None:
    kept = record(MODEL, noise(), DDIMScheduler(**SETTINGS.as_config()).plan(10), 4)
    out = tmp_path / f"x.{suffix}"
    assert plot_trajectory(kept, to_images, "a title", str(out)) == out
    assert out.stat().st_size > 5000
    (shown,) = drawn
    assert len(shown.axes) == 2 * 5
    assert [axes.get_title().splitlines()[0] for axes in shown.axes[:5]] == [
        "t = 900",
        "t = 600",
        "t = 300",
        "t = 0",
        "image",
    ]
    assert [shown.axes[i].get_ylabel().splitlines()[0] for i in (0, 5)] == ["sample", "predicted"]
    top, below = (shown.axes[i].get_images()[0].get_array() for i in (4, 9))
    assert (top == below).all()  # at the end both are the image


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    return save_tiny(tmp_path_factory.mktemp("digits"), num_class_embeds=4)


def test_plot_trajectory(digits: str, tmp_path: Path, drawn: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.png"
    options = ["--class-label", "2", "--eta", "0.5", "--steps", "6", "--moments", "3", "--seed", "4"]
    assert main(["plot", "trajectory", "--model", digits, *options, "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    with Image.open(out) as image:
        assert image.width > image.height
    assert drawn[0].get_suptitle() == f"class 2 of {digits}: 6 steps, η = 0.5, seed 4"
    # the run is that of `ddim sample`
    more = ["--class-labels", "2", "--eta", "0.5", "--steps", "6", "--seed", "4", "--out", str(tmp_path / "y/")]
    (tmp_path / "y").mkdir()
    assert main(["sample", "--model", digits, *more]) == 0
    with Image.open(tmp_path / "y" / "00000.png") as image:
        expected = list(image.convert("RGB").tobytes())
    assert drawn[0].axes[3].get_images()[0].get_array().flatten().tolist() == expected


def test_plot_trajectory_of_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "texts"
    tiny_reference(folder, 1)
    options = ["--model", str(folder), "--steps", "2", "--out", str(tmp_path / "x.svg")]
    assert main(["plot", "trajectory", "a red cat", "--guidance-scale", "2", *options]) == 0
    assert "a red cat" in (tmp_path / "x.svg").read_text(encoding="utf-8")
    for wrong, message in (
        ([], "what a text says"),
        (["a cat", "--class-label", "1"], "knows no classes"),
    ):
        assert main(["plot", "trajectory", *wrong, *options]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a cat"], "draws no texts"),
        (["--class-label", "9"], "--class-label 9"),
        (["--moments", "0"], "moment"),
        (["--out", "x.txt"], ".svg"),
        (["--eta", "2"], "eta"),
    ],
)
def test_a_trajectory_that_cannot_be_drawn(
    digits: str, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [] if "--out" in options else ["--out", str(tmp_path / "x.png")]
    assert main(["plot", "trajectory", *options, "--model", digits, "--steps", "2", *more]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- quality against cost --------------------------------------------------------------------------------------------


def results(**changed: Any) -> dict[str, Any]:
    """A run's results, with the paper's figures for CIFAR-10."""
    table = {"sigma_hat": [367.43, 133.37, 32.72], 1.0: [41.07, 18.36, 8.01], 0.0: [13.36, 6.84, 4.67]}
    rows = [
        {"eta": eta, "steps": steps, "frechet": value, "frechet_error": 0.1, "seconds": 0.5 * steps}
        for eta, values in table.items()
        for steps, value in zip((10, 20, 50), values, strict=True)
    ]
    return {"distance": "Fréchet distance of digits features", "summary": rows, **changed}


def test_a_line_for_each_eta(tmp_path: Path, drawn: list[Any]) -> None:
    given = results(ideal=3.0, settings={"model": "digits", "samples": 5000})
    for name in ("x.png", "x.svg"):
        assert plot_tradeoff([given], str(tmp_path / name)).stat().st_size > 5000
    left, right = drawn[0].axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "η = 0: DDIM",
        "η = 1: DDPM",
        "σ̂: DDPM, larger variance",
    ]
    for axes, xs in ((left, [10, 20, 50]), (right, [5, 10, 25])):
        lines = [container.lines[0] for container in axes.containers]
        assert [list(line.get_xdata()) for line in lines] == [xs] * 3
        assert list(lines[0].get_ydata()) == [13.36, 6.84, 4.67]
        assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 3
    assert left.get_ylabel() == "Fréchet distance of digits features"
    assert right.get_xlabel() == "seconds for 5,000 samples"


def test_the_processors_time_instead(tmp_path: Path, drawn: list[Any]) -> None:
    given = results()
    given["summary"] = [{**row, "cpu_seconds": 2 * row["steps"]} for row in given["summary"]]
    plot_tradeoff([given], str(tmp_path / "x.png"), clock="cpu_seconds")
    right = drawn[0].axes[1]
    assert list(right.containers[0].lines[0].get_xdata()) == [20, 40, 100]
    assert right.get_xlabel() == "processor seconds"
    for rows, clock in ((given, "hours"), (results(), "cpu_seconds")):
        with pytest.raises(ConfigError, match=clock):
            plot_tradeoff([rows], str(tmp_path / "x.png"), clock=clock)


def test_plot_tradeoff(tmp_path: Path, drawn: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(results()), encoding="utf-8")
    out = tmp_path / "x.png"
    assert main(["plot", "tradeoff", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert len(drawn[0].axes) == 4


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"distance": "x", "summary": [{"eta": 0}]}', None])
def test_what_is_no_result_is_refused(tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert main(["plot", "tradeoff", str(path), "--out", str(tmp_path / "x.png")]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("ddim: ")
    assert not (tmp_path / "x.png").exists()


def test_the_folder_that_evaluate_writes_is_plotted(tmp_path: Path, drawn: list[Any]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results()), encoding="utf-8")
    out = str(tmp_path / "x.png")
    assert main(["plot", "tradeoff", str(tmp_path / "a"), str(tmp_path / "b" / "results.json"), "--out", out]) == 0
    assert len(drawn[0].axes) == 4


@pytest.mark.parametrize(
    ("there", "given", "message"),
    [
        ((), "run", "no {}/results.json: give the folder that `ddim evaluate` has written"),
        (("run/consistency.json",), "run", "{} has no distances to plot: it is of `ddim evaluate --consistency`"),
        (("run/results.json", "run/results.csv"), "run/results.csv", "{} is no results.json"),
        (("run/results.json",), "run", "{}/results.json: no results of `ddim evaluate`"),
        (("other/x",), "nowhere", "there is no file or folder '{}'"),
    ],
)
def test_a_folder_without_results_is_refused(
    tmp_path: Path, there: tuple[str, ...], given: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    for name in there:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    assert main(["plot", "tradeoff", str(tmp_path / given), "--out", str(tmp_path / "x.png")]) == 1
    assert message.format(tmp_path / given) in capsys.readouterr().err


def test_no_results_and_no_plot_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder"):
        plot_tradeoff([], str(tmp_path / "x.png"))
    with pytest.raises(ConfigError, match=r"\.svg"):
        plot_tradeoff([results()], str(tmp_path / "x.txt"))
