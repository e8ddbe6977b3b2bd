"""What a run on latents is made of: pipelines that cannot be trained are refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_sd import tiny_reference
from tiny_training import Place, lora_settings, place, text_settings, tiny_vae

import ddim
from ddim.errors import CheckpointError, ConfigError, DDIMError
from ddim.training import train
from ddim.training.parts import load_vae

__all__ = ["place"]


def test_a_folder_without_an_autoencoder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError):
        load_vae(str(tmp_path / "empty"))
    tiny_vae().save_pretrained(tmp_path / "vae")
    assert load_vae(str(tmp_path / "vae")).config.block_out_channels == (16, 16)


def test_inpainting_models_tiny_autoencoders_and_models_without_a_text_encoder_are_refused(
    tmp_path: Path, place: Place
) -> None:
    tiny_reference(tmp_path / "inpaint", 1, in_channels=9)
    with pytest.raises((ConfigError, DDIMError), match="inpaint"):
        train(lora_settings(tmp_path / "run", place, tmp_path / "inpaint"))
    tiny_reference(tmp_path / "mute", 1)
    index = tmp_path / "mute" / "model_index.json"
    listed = json.loads(index.read_text())
    listed["text_encoder"] = listed["tokenizer"] = [None, None]
    index.write_text(json.dumps(listed))
    with pytest.raises(ConfigError, match="no text encoder: there is nothing to train by"):
        train(lora_settings(tmp_path / "run", place, tmp_path / "mute"))
    with pytest.raises(ConfigError, match="digits has no text encoder: there is nothing to train by"):
        train(lora_settings(tmp_path / "run", place, Path("digits")))
    tiny = ddim.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    ddim.StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "inpaint", vae=tiny).save_pretrained(
        tmp_path / "tiny"
    )
    with pytest.raises(ConfigError, match="an AutoencoderTiny, which only imitates the autoencoder"):
        train(lora_settings(tmp_path / "run", place, tmp_path / "tiny"))
    assert not (tmp_path / "run").exists()


def test_an_autoencoder_of_other_channels_is_refused(tmp_path: Path, place: Place) -> None:
    tiny_reference(tmp_path / "model", 1)
    tiny_vae(latent_channels=3).save_pretrained(tmp_path / "vae")
    chosen = {"pretrained_model_name_or_path": str(tmp_path / "model")}
    with pytest.raises(ConfigError, match=r"takes 4 channels, not the 3 .* leave out pretrained_vae"):
        train(text_settings(tmp_path / "run", place, **chosen, pretrained_vae_model_name_or_path=str(tmp_path / "vae")))
    assert not (tmp_path / "run").exists()
