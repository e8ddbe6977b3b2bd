"""The bundled text-to-image model: that it is whole, that diffusers takes it too, and that it draws what is asked."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddim import DiffusionPipeline
from ddim.checkpoint import read_json, read_tensors
from ddim.checkpoint.hub import BUNDLED, bundled_models
from ddim.cli import main
from ddim.data.preparation import BACKGROUNDS, Choice, Preparation

FOLDER = BUNDLED / "emoji"
DATA = Path(__file__).parent.parent.parent / "data" / "emoji.parquet"
ASKED: dict[str, Any] = {"guidance_scale": 3.0, "guidance_rescale": 0.7, "num_inference_steps": 10}


ASKED_OF_IT = [
    "a red heart on a light blue background, noto style",
    "Grinning faces, twemoji style",
    "THE CAT'S FACE",
    "flag of japan, fluent style",
    "a waving hand with medium dark skin tone",
]


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe: Any = DiffusionPipeline.from_pretrained("emoji")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_small_and_says_how_it_was_made() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30e6
    for path in FOLDER.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in read_tensors(path).values()} == {torch.float16}
    record = read_json(FOLDER / "training.json")
    assert record["settings"]["prediction_type"] == "v_prediction"
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in ("Apache-2.0", "MIT", "CC BY 4.0", "scripts/emoji/train.py"):
        assert name in text


def test_it_says_which_words_it_has_never_seen(pipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = pipe.unknown_words("a cup of coffee and a sword")
    assert list(found) == ["cup", "coffee", "sword"]
    assert found["coffee"][0] == "hot beverage"
    assert "dagger" in found["sword"]
    for names in found.values():  # what is said to be near, it knows
        assert pipe.unknown_words(list(names)) == {}
    for known in ASKED_OF_IT:
        assert pipe.unknown_words(known) == {}
    out = str(tmp_path / "x.png")
    assert main(["sample", "coffee, sword", "--steps", "1", "--scale", "1", "--out", out]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "never seen" in line]
    assert line.startswith("ddim: the model has never seen: coffee, sword; near: hot beverage, ")
    assert "dagger" in line
    assert main(["sample", "a red heart", "--steps", "1", "--overwrite", "--out", out]) == 0
    assert "never seen" not in capsys.readouterr().err


def test_its_scheduler_is_that_of_the_four_fixes(pipe: Any) -> None:
    config = pipe.scheduler.config
    assert config.prediction_type == "v_prediction"
    assert config.rescale_betas_zero_snr
    assert config.timestep_spacing == "trailing"
    assert pipe.scheduler.plan(10).alphas_cumprod[-1] == 0
    assert pipe.scheduler.plan(10).timesteps[0] == 999


# The fast test beside it is test_a_red_heart_is_red.
@pytest.mark.slow
def test_what_it_recommends_looks_like_many_steps(
    pipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A call that says nothing, and a command; and diffusers goes on by the spacing that it knows."""
    prompts: dict[str, Any] = {"prompt": ["a red heart", "an owl"], "seed": [0, 0], "output_type": "pt"}
    by_itself = pipe(**prompts).images
    assert (pipe.num_timesteps, pipe.guidance_scale, pipe.guidance_rescale) == (9, 3.0, 0.7)
    many, few = (pipe(**prompts, num_inference_steps=steps, order=1).images for steps in (50, 9))
    near, far = (float((2 * (images - many)).square().mean().sqrt()) for images in (by_itself, few))
    assert near < 0.04
    assert near < 0.6 * far
    assert main(["sample", "a red heart", "--model", "emoji", "--scale", "1", "--out", str(tmp_path / "x.png")]) == 0
    said = "9 steps of second order at searched timesteps, guidance 3, rescale 0.7, seed 0"
    assert said in capsys.readouterr().err
    with Image.open(tmp_path / "x.png") as image:
        drawn = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert float((drawn - by_itself[0]).abs().max()) < 0.01


@pytest.mark.filterwarnings("ignore")  # diffusers' and transformers'
# The fast test beside it is test_what_it_saves_is_drawn_by_diffusers of test_students.py.
@pytest.mark.slow
def test_diffusers_draws_the_same_by_its_defaults(pipe: Any) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(FOLDER)
    theirs.set_progress_bar_config(disable=True)
    assert type(theirs.scheduler).__name__ == "DDIMScheduler"
    arguments = {"latents": torch.randn(2, 4, 16, 16), "output_type": "np", **ASKED}
    prompts = ["a red heart, noto style", "a grinning face on a black background"]
    difference = abs(theirs(prompts, **arguments).images - pipe(prompts, **arguments).images)
    assert difference.max() < 2e-3
    assert theirs("a red heart").images[0].size == (64, 64)


def held_out(count: int) -> list[Image.Image]:
    pq = pytest.importorskip("pyarrow.parquet")
    rows = pq.read_table(DATA, columns=["image", "split"], filters=[("split", "=", "held-out")]).to_pylist()
    return [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows[:: len(rows) // count][:count]]


@torch.no_grad()
# The fast test beside it is test_black_is_black_and_white_is_white.
@pytest.mark.slow
def test_the_autoencoder_keeps_colours(pipe: Any) -> None:
    prepare = Preparation(64)
    for color in ("white", "black", "purple"):
        choice = Choice(background=BACKGROUNDS[color])
        images = torch.stack([prepare(image, choice) for image in held_out(24)])
        decoded = pipe.vae.decode(pipe.vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
        errors = ((decoded - images) / 2).square().flatten(1).mean(1)
        assert float((-10 * errors.log10()).mean()) >= 28.0, color
        corners = decoded[:, :, :4, :4].mean(dim=(0, 2, 3)) * 127.5 + 127.5
        np.testing.assert_allclose(corners.numpy(), BACKGROUNDS[color], atol=20)


def test_latents_have_a_deviation_of_one(pipe: Any) -> None:
    prepare = Preparation(64)
    images = torch.stack([prepare(image, Choice()) for image in held_out(24)])
    with torch.no_grad():
        latents = pipe.vae.encode(images).latent_dist.mode() * pipe.vae.config.scaling_factor
    assert 0.7 < float(latents.std()) < 1.4


def test_black_is_black_and_white_is_white(pipe: Any) -> None:
    prompts = [f"a red apple on a {color} background" for color in ("black", "white")]
    black, white = pipe(prompts, seed=[0, 0], output_type="np", **ASKED).images
    edge = np.ones((64, 64), bool)
    edge[4:-4, 4:-4] = False
    assert black[edge].mean() < 0.1
    assert white[edge].mean() > 0.9


def test_a_red_heart_is_red(pipe: Any) -> None:
    images = pipe(["a red heart"] * 4, seed=[0, 1, 2, 3], output_type="np", **ASKED).images
    middle = images[:, 24:40, 24:40].mean(axis=(0, 1, 2))
    assert middle[0] > 0.6
    assert middle[1] < 0.4
    assert middle[2] < 0.4


def test_seeds_and_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "heart.png"
    assert main(["sample", "a red heart", "--steps", "3", "--scale", "1", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(out)
    assert (
        "'a red heart' by emoji: 3 steps of first order at trailing timesteps, guidance 3, rescale 0.7, seed 0"
        in said.err
    )
    with Image.open(out) as image:
        assert image.size == (64, 64)
    assert "emoji" in bundled_models()


def test_the_prompt_of_the_readme(pipe: Any) -> None:
    image = pipe("a red heart", guidance_rescale=0.7, num_inference_steps=2).images[0]
    assert image.size == (64, 64)
