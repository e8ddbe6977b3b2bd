"""Other autoencoders for a pipeline: both kinds, from folders and files in either layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import original
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_sd import tiny_reference

from ddim.cli import main
from ddim.errors import CheckpointError, ConfigError, WeightsError
from ddim.models import AutoencoderKL, AutoencoderTiny
from ddim.pipelines import StableDiffusionPipeline
from ddim.pipelines.autoencoders import kl_config, load_autoencoder, suits, tiny_config
from ddim.pipelines.single_file import load_single_file

FILE = "diffusion_pytorch_model.safetensors"
TINY: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 2),
    "num_decoder_blocks": (3, 1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline, and other autoencoders for it in the folders "tiny" and "other" beside it."""
    path = tmp_path_factory.mktemp("autoencoders")
    reference = tiny_reference(path / "model", 1)
    torch.manual_seed(4)
    diffusers.AutoencoderTiny(**TINY).save_pretrained(path / "tiny")
    diffusers.AutoencoderKL.from_config(reference.vae.config).save_pretrained(path / "other")
    return path


def same(one: Any, file: Path) -> bool:
    state = load_file(file)
    return set(state) == set(one.state_dict()) and all(
        torch.equal(value, state[key]) for key, value in one.state_dict().items()
    )


@pytest.mark.parametrize(("name", "kind"), [("tiny", AutoencoderTiny), ("other", AutoencoderKL)])
def test_a_folder_a_file_and_a_whole_pipeline(name: str, kind: type, folder: Path, tmp_path: Path) -> None:
    own = AutoencoderKL.from_pretrained(folder / "model" / "vae").config
    stored = folder / name / FILE
    (tmp_path / "x.safetensors").write_bytes(stored.read_bytes())
    pipe = StableDiffusionPipeline.from_pretrained(folder / "model", vae=kind.from_pretrained(folder / name))  # type: ignore[attr-defined]
    pipe.save_pretrained(tmp_path / "pipeline")
    for place in (folder / name, stored, tmp_path / "x.safetensors", str(tmp_path / "pipeline")):
        vae = load_autoencoder(place, own)
        assert type(vae) is kind
        assert not vae.training
        assert same(vae, stored)
        assert vae.config.scaling_factor == (1.0 if name == "tiny" else own.scaling_factor)
        assert load_autoencoder(place, own, dtype=torch.float16).dtype == torch.float16


def test_the_published_ones_by_their_shapes() -> None:
    with torch.device("meta"):
        tiny, large = (
            diffusers.AutoencoderTiny(),
            AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
            ),
        )
    for network, read in ((tiny, tiny_config), (large, kl_config)):
        found = read({key: tuple(value.shape) for key, value in network.state_dict().items()})
        known = {**network.config, "sample_size": 512}
        for key, value in found.items():
            assert known[key] == (tuple(value) if isinstance(value, list) else value), key


def test_files_in_the_original_layout(folder: Path, tmp_path: Path) -> None:
    whole = original.tensors(original.xl_shapes())
    prefix = "first_stage_model."
    alone = {key.removeprefix(prefix): value for key, value in whole.items() if key.startswith(prefix)}
    save_file(whole, tmp_path / "whole.safetensors")
    save_file(alone, tmp_path / "alone.safetensors")
    expected = load_single_file(tmp_path / "whole.safetensors", parts=["vae"])["vae"].state_dict()
    like = {"sample_size": 1024, "scaling_factor": 0.5, "force_upcast": False}
    for name, given, scale in (
        ("whole", like, 0.13025),  # which says it
        ("alone", like, 0.5),
        ("alone", {}, 0.18215),
        ("alone", {"scaling_factor": 1.0}, 0.18215),  # of an AutoencoderTiny
    ):
        vae = load_autoencoder(tmp_path / f"{name}.safetensors", given)
        assert all(torch.equal(value, expected[key]) for key, value in vae.state_dict().items())
        assert vae.config.scaling_factor == scale


def test_what_is_no_autoencoder(folder: Path, tmp_path: Path) -> None:
    for place, says in (
        (tmp_path, "there is no config.json"),
        (tmp_path / "no.safetensors", "there is no file"),
        (folder / "model" / "unet", "describes a 'UNet2DConditionModel', and no AutoencoderKL and no AutoencoderTiny"),
        ("https://example.com/x.safetensors", "no file of the hub"),
    ):
        with pytest.raises(CheckpointError, match=says):
            load_autoencoder(place)
    with pytest.raises(TypeError, match="no argument varient"):
        load_autoencoder(folder / "tiny", varient="x")


def test_one_half_of_a_taesd_in_its_own_layout(tmp_path: Path) -> None:
    save_file(
        {"1.weight": torch.zeros(64, 4, 3, 3), "3.conv.0.weight": torch.zeros(64, 64, 3, 3)}, tmp_path / "x.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"one half of a TAESD.*madebyollin/taesdxl"):
        load_autoencoder(tmp_path / "x.safetensors")


HOSTILE: dict[str, tuple[str, Any, str]] = {
    "missing": ("tiny", lambda s: s.pop("decoder.layers.0.bias"), "missing: decoder.layers.0.bias"),
    "no decoder": ("tiny", lambda s: [s.pop(k) for k in list(s) if k.startswith("decoder")], "missing: decoder.layers"),
    "unexpected": (
        "tiny",
        lambda s: s.update({"encoder.layers.99.x": torch.zeros(1)}),
        "unexpected: encoder.layers.99.x",
    ),
    "shape": ("tiny", lambda s: s.update({"encoder.layers.0.weight": torch.zeros(2)}), "wrong shape|channels"),
    "no shape": ("tiny", lambda s: s.update({"encoder.layers.0.weight": torch.zeros(())}), "wrong shape"),
    "type": ("tiny", lambda s: s.update({"encoder.layers.0.bias": torch.zeros(8, dtype=torch.int64)}), "wrong type"),
    "absurd": ("tiny", lambda s: s.update({"encoder.layers.9999.weight": torch.zeros(1)}), "encoder.layers"),
    "large, missing": ("other", lambda s: s.pop("encoder.conv_in.bias"), "missing: encoder.conv_in.bias"),
    "large, absurd": (
        "other",
        lambda s: s.update({f"encoder.down_blocks.{10**30}.x": torch.zeros(1)}),
        "unexpected",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_broken_file_is_one_error(name: str, folder: Path, tmp_path: Path) -> None:
    kind, change, says = HOSTILE[name]
    state = load_file(folder / kind / FILE)
    change(state)
    save_file(state, tmp_path / "x.safetensors")
    own = AutoencoderKL.from_pretrained(folder / "model" / "vae").config
    with pytest.raises((WeightsError, ConfigError), match=says):
        load_autoencoder(tmp_path / "x.safetensors", own)


def test_one_for_another_model_is_refused(folder: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder / "model")
    suits(AutoencoderTiny(**TINY), pipe, "it")
    with pytest.raises(
        ConfigError, match="it is an autoencoder whose latents have 16 channels, and the model's have 4"
    ):
        suits(AutoencoderTiny(**TINY, latent_channels=16), pipe, "it")
    with pytest.raises(ConfigError, match="8 times fewer pixels on a side, and the model's have 2"):
        suits(AutoencoderTiny(), pipe, "it")


# --- the command line ------------------------------------------------------------------------------------------------


def drawn(folder: Path, out: Path, *given: str) -> Any:
    arguments = ["sample", "a cat", "--model", str(folder / "model"), "--steps", "2", "--scale", "1", "--out", str(out)]
    assert main([*arguments, *given]) == 0
    return np.asarray(Image.open(out).convert("RGB"), dtype=float)


def test_the_option(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = drawn(folder, tmp_path / "a.png")
    assert np.array_equal(drawn(folder, tmp_path / "b.png", "--vae", str(folder / "model")), plain)
    tiny = drawn(folder, tmp_path / "c.png", "--vae", str(folder / "tiny"))
    assert np.abs(tiny - plain).max() > 5
    assert np.array_equal(drawn(folder, tmp_path / "d.png", "--vae", str(folder / "tiny" / FILE)), tiny)
    other = drawn(folder, tmp_path / "e.png", "--vae", str(folder / "other"))
    assert np.abs(other - plain).max() > 5
    pipe = StableDiffusionPipeline.from_pretrained(
        folder / "model", vae=AutoencoderTiny.from_pretrained(folder / "tiny")
    )
    from ddim.scheduler.recommended import suitable_guidance

    scale, rescale = suitable_guidance(pipe.scheduler.config, True, None, None)
    expected = pipe("a cat", num_inference_steps=2, seed=0, guidance_scale=scale, guidance_rescale=rescale).images[0]
    assert np.array_equal(np.asarray(expected, dtype=float), tiny)
    # A picture is made again only with the same autoencoder, which has to be given, as it is a file of a stranger.
    capsys.readouterr()
    again = [
        "sample",
        "--from",
        str(tmp_path / "c.png"),
        "--model",
        str(folder / "model"),
        "--out",
        str(tmp_path / "f.png"),
    ]
    assert main(again) != 0
    assert "--vae" in capsys.readouterr().err
    assert main([*again, "--vae", str(folder / "tiny")]) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "f.png").convert("RGB"), dtype=float), tiny)


def test_what_the_option_refuses(
    folder: Path, classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, says in (
        (["--vae", str(tmp_path / "no.safetensors")], "there is no file or folder"),
        (["--vae", str(folder / "model" / "unet")], "describes a 'UNet2DConditionModel'"),
        (["--vae", "emoji"], "times fewer pixels on a side"),
    ):
        assert main(["sample", "a", "--model", str(folder / "model"), *given, "--out", str(tmp_path / "x.png")]) != 0
        assert says in " ".join(capsys.readouterr().err.split())
    assert main(["sample", "--model", classes, "--vae", str(folder / "tiny"), "--out", str(tmp_path / "x.png")]) != 0
    assert "has no autoencoder: leave out --vae" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
