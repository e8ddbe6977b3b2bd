"""Training Stable Diffusion XL and adapters of it: what the U-Net is told, what is learnt from, and what is saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from tiny_training import (
    COLORS,
    SIZE,
    Place,
    assert_same,
    assert_same_runs,
    drawing,
    interrupt,
    lora_settings,
    place,
    text_settings,
)
from tiny_xl import encoded, tiny_xl

import ddim
from ddim.checkpoint import read_json, read_tensors
from ddim.errors import ConfigError
from ddim.lora import WEIGHTS
from ddim.training import train
from ddim.training.run import make_objective, make_trainer
from ddim.training.trainer import Trainer

__all__ = ["place"]

ZERO_SNR: dict[str, Any] = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
SHAPES = [(40, 20), (23, 31), (16, 16), (50, 33), (20, 40), (17, 29)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xl")
    tiny_xl(folder)
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several shapes, whose captions are their file names."""
    folder = tmp_path_factory.mktemp("shapes")
    lines = []
    for number, shape in enumerate(SHAPES):
        rng = np.random.default_rng(number)
        image = Image.fromarray(rng.integers(0, 255, (*shape[::-1], 3), dtype=np.uint8))
        image.paste(drawing([*COLORS][number], False, (8, 8)).convert("RGB"), (0, 0))
        image.save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"{number}.png"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def tuning(output_dir: Path, place: Place, model: Path, **changes: Any) -> Any:
    return text_settings(output_dir, place, **{"pretrained_model_name_or_path": str(model), **changes})


def images(folder: Path, model: Path | None = None) -> list[np.ndarray[Any, Any]]:
    """What ours and diffusers' pipeline from a folder, or of a model with the adapters in a folder, draw."""
    diffusers = pytest.importorskip("diffusers")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = []
    for kind in (diffusers.DiffusionPipeline, ddim.DiffusionPipeline):
        pipe = kind.from_pretrained(model or folder)
        if model is not None:
            pipe.load_lora_weights(folder)
        pipe.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"}
        drawn.append(pipe("a photo of a red cat", latents=latents.clone(), **options).images)
    return drawn


# --- what is saved ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {**ZERO_SNR, "snr_gamma": 5.0, "train_text_encoder": True}])
@pytest.mark.thin(fast=["changes1"])
# The fast test beside it is test_a_run_in_two_parts_ends_with_the_same_weights.
@pytest.mark.slow
def test_a_fine_tuned_model_draws_the_same_in_diffusers(
    changes: dict[str, Any], model: Path, tmp_path: Path, place: Place
) -> None:
    folder = train(tuning(tmp_path, place, model, **changes, validation_steps=6, learning_rate=1e-2))
    assert (folder / "samples" / "step-0000006.png").is_file()
    pipe = ddim.DiffusionPipeline.from_pretrained(folder)
    assert isinstance(pipe, ddim.StableDiffusionXLPipeline)
    config = pipe.scheduler.config
    assert config.prediction_type == changes.get("prediction_type", "epsilon")
    assert bool(config.rescale_betas_zero_snr) == ("rescale_betas_zero_snr" in changes)
    one, other = images(folder)
    assert np.abs(one - other).max() < 1e-3
    assert np.abs(one - images(model)[0]).max() > 0.01
    assert read_json(folder / "model_index.json")["force_zeros_for_empty_prompt"] is True
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model", "text_encoder_2/model"):
        before, after = (read_tensors(path / f"{part}.safetensors") for path in (model, folder))
        trained = "text" in part and "train_text_encoder" in changes
        after = {name.removeprefix("text_model."): value for name, value in after.items()}
        before = {name.removeprefix("text_model."): value for name, value in before.items()}
        assert all(torch.equal(after[name], value) for name, value in before.items() if name in after) != trained


@pytest.mark.parametrize("text", [False, True])
# The fast test beside it is test_what_was_trained_is_the_same_everywhere of test_lora_xl.py.
@pytest.mark.slow
def test_adapters_draw_the_same_in_diffusers(text: bool, model: Path, tmp_path: Path, place: Place) -> None:
    changes: dict[str, Any] = {"learning_rate": 0.05, "train_text_encoder": text, "rank": 3, "validation_steps": 6}
    folder = train(lora_settings(tmp_path, place, model, **changes))
    tensors = read_tensors(folder / WEIGHTS)
    parts = {"unet", "text_encoder", "text_encoder_2"} if text else {"unet"}
    assert {key.split(".")[0] for key in tensors} == parts
    # What comes after the last layer but one of the first encoder has no part in anything.
    same = {name for name, tensor in tensors.items() if not tensor.any()}
    assert all(name.startswith("text_encoder.") and ".layers.2." in name for name in same)
    assert len(same) == (4 if text else 0)
    one, other = images(folder, model)
    assert np.abs(one - other).max() < 1e-3
    assert np.abs(one - images(model)[0]).max() > 0.01


@pytest.mark.parametrize("kind", ["refiner", "inpaint"])
def test_other_models_are_refused(kind: Any, tmp_path: Path, place: Place) -> None:
    tiny_xl(tmp_path / "model", kind)
    with pytest.raises(ConfigError, match=r"refiner, which is not trained here|inpainting models cannot be trained"):
        make_objective(lora_settings(tmp_path / "run", place, tmp_path / "model"))


# --- the loss --------------------------------------------------------------------------------------------------------


def one_batch(trainer: Trainer) -> dict[str, Any]:
    trainer.objective.prepare({})
    batch: dict[str, Any] = next(iter(trainer._loader()))
    return batch


def sizes_of(batch: dict[str, Any], shapes: Path, targets: list[tuple[int, int]]) -> torch.Tensor:
    """The six numbers, told by where the picture of the batch, mirrored or not, is in its file's picture."""
    rows = []
    for picture, sizes, (height, width) in zip(batch["image"], batch["sizes"], targets, strict=True):
        number = next(n for n, shape in enumerate(SHAPES) if [*shape[::-1]] == sizes[:2].tolist())
        own = Image.open(shapes / f"{number}.png").convert("RGB")
        scale = max(width / own.width, height / own.height)
        whole = own.resize((max(width, round(own.width * scale)), max(height, round(own.height * scale))), 1)
        found = []
        for seen in (whole, ImageOps.mirror(whole)):
            for top in range(whole.height - height + 1):
                for left in range(whole.width - width + 1):
                    pixels = np.asarray(seen.crop((left, top, left + width, top + height)), np.float32)
                    if torch.equal(torch.from_numpy(pixels.transpose(2, 0, 1) / 127.5 - 1), picture):
                        found.append((top, left))
        (corner,) = found
        rows.append([own.height, own.width, *corner, height, width])
    return torch.tensor(rows, dtype=torch.float32)


@pytest.mark.parametrize("buckets", [None, ()])
@pytest.mark.parametrize("center", [True, False])
def test_the_sizes_and_the_corner_are_those_of_the_picture_as_it_is_seen(
    buckets: Any, center: bool, model: Path, shapes: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "train_data_dir": str(shapes),
        "resolution": SIZE,
        "cache_latents": False,
        "center_crop": center,
        "random_flip": True,
        "aspect_ratio_buckets": buckets,
        "train_batch_size": 1,
    }
    trainer = make_trainer(lora_settings(tmp_path, Place(shapes, model), model, **changes))
    trainer.objective.prepare({})
    flips = set()
    for batch in trainer._loader():
        targets = [tuple(picture.shape[1:]) for picture in batch["image"]]
        assert torch.equal(batch["sizes"], sizes_of(batch, shapes, targets))  # type: ignore[arg-type]
        flips.add(tuple(batch["sizes"][0, 2:4].tolist()))
        assert (targets[0] == (SIZE, SIZE)) or buckets is not None
    assert len(flips) > 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {**ZERO_SNR, "snr_gamma": 5.0, "cache_latents": False},
        {"cache_text_embeddings": False, "aspect_ratio_buckets": ()},
        {"train_text_encoder": True, "rank": 2, "gradient_checkpointing": True},
    ],
    ids=["cached", "v and zero SNR", "buckets", "adapters"],
)
@pytest.mark.thin(every=2)
def test_the_loss_of_a_step_is_that_of_diffusers_modules(
    changes: dict[str, Any], model: Path, shapes: Path, tmp_path: Path
) -> None:
    diffusers = pytest.importorskip("diffusers")
    common = {"resolution": SIZE, "random_flip": True, "caption_dropout": 0.4, "train_batch_size": 6}
    kind = lora_settings if "rank" in changes else text_settings
    given: Any = (model,) if kind is lora_settings else ()
    pretrained = {"pretrained_model_name_or_path": str(model)} if not given else {}
    trainer = make_trainer(kind(tmp_path, Place(shapes, model), *given, **{**common, **pretrained, **changes}))
    batch = one_batch(trainer)
    torch.manual_seed(7)
    losses = trainer.objective(batch)

    vae = diffusers.AutoencoderKL.from_pretrained(model / "vae")
    unet = diffusers.UNet2DConditionModel.from_pretrained(model / "unet")
    noises = diffusers.DDPMScheduler.from_pretrained(
        model / "scheduler", prediction_type=changes.get("prediction_type", "epsilon"),
        rescale_betas_zero_snr="rescale_betas_zero_snr" in changes,
    )  # fmt: skip
    torch.manual_seed(7)
    with torch.no_grad():
        if "image" in batch:
            latents = vae.encode(batch["image"]).latent_dist.sample()
        else:
            mean, deviation = batch["latents"].float().unbind(1)
            latents = mean + deviation * torch.randn(mean.shape)
        latents = latents * vae.config.scaling_factor
        eps = torch.randn(latents.shape)
        timesteps = torch.randint(1000, (len(latents),))
        embeds, pooled = encoded(model, batch["caption"])
        added = {"text_embeds": pooled, "time_ids": batch["sizes"]}
        noisy = noises.add_noise(latents, eps, timesteps)
        out = unet(noisy, timesteps, embeds, added_cond_kwargs=added).sample
        target = eps if noises.config.prediction_type == "epsilon" else noises.get_velocity(latents, eps, timesteps)
        expected = (out - target).square().mean((1, 2, 3))
        if "snr_gamma" in changes:
            from diffusers.training_utils import compute_snr

            snr = compute_snr(noises, timesteps)
            expected = expected * torch.where(snr == 0, 1.0, snr.clamp(max=5.0) / (snr + 1))
    torch.testing.assert_close(losses.loss, expected, rtol=2e-4, atol=1e-5)
    assert "" in batch["caption"]
    assert len({*batch["caption"]}) > (1 if "aspect_ratio_buckets" in changes else 2)


def test_gradients_reach_both_encoders_and_are_the_same_with_checkpointing(
    model: Path, tmp_path: Path, place: Place
) -> None:
    found = []
    for checkpointing in (False, True):
        changes = {"train_text_encoder": True, "gradient_checkpointing": checkpointing}
        trainer = make_trainer(lora_settings(tmp_path / str(checkpointing), place, model, **changes))
        batch = one_batch(trainer)
        with torch.no_grad():
            for name, parameter in trainer.objective.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
        torch.manual_seed(1)
        trainer._backward(batch, 1)
        found.append({n: p.grad for n, p in trainer.objective.named_parameters() if p.grad is not None})
    assert {name.split(".")[1] for name in found[0]} == {"unet", "text_encoder", "text_encoder_2"}
    for name, gradient in found[0].items():
        assert gradient is not None
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-7)
        # The last layer's keys and values of an encoder have no part in the last layer but one.
        last = ".layers.2." in name and "text_encoder." in name
        assert (gradient.abs().max() > 0) != last or "text_encoder_2" in name


# --- what is computed once -------------------------------------------------------------------------------------------


def test_what_no_step_needs_leaves_the_memory(model: Path, tmp_path: Path, place: Place) -> None:
    trainer = make_trainer(tuning(tmp_path, place, model, use_ema=False))
    objective = trainer.objective
    objective.prepare({})
    devices = {name: {p.device.type for p in part.parameters()} for name, part in objective.frozen.items()}  # type: ignore[union-attr]
    assert devices == {name: {"meta"} for name in ("vae", "text_encoder", "text_encoder_2")}
    made = trainer.finished()
    for name in devices:
        part = "model" if "text" in name else "diffusion_pytorch_model"
        stored = read_tensors(model / name / f"{part}.safetensors")
        assert sum(value.numel() for value in stored.values()) > 0
        assert {p.device.type for p in getattr(made, name).parameters()} == {"cpu"}
    weight = next(trainer.objective.networks.parameters())
    assert next(made.unet.parameters()).data_ptr() == weight.data_ptr()  # type: ignore[attr-defined]


@pytest.mark.parametrize("mixed", ["no", "bf16"])
@pytest.mark.thin(fast=["bf16"])
def test_cached_captions_are_those_of_both_encoders(mixed: Any, model: Path, tmp_path: Path, place: Place) -> None:
    chosen = {"caption_dropout": 0.4, "mixed_precision": mixed}
    trainer = make_trainer(lora_settings(tmp_path, place, model, **chosen))
    with trainer.accelerator.autocast():
        trainer.objective.prepare({})
    bound = 1e-5 if mixed == "no" else 0.1
    for batch in trainer._loader():
        embeds, pooled = encoded(model, batch["caption"])
        assert batch["text"].dtype == batch["pooled"].dtype == (torch.float32 if mixed == "no" else torch.bfloat16)
        torch.testing.assert_close(batch["text"].float(), embeds, rtol=bound, atol=bound)
        torch.testing.assert_close(batch["pooled"].float(), pooled, rtol=bound, atol=bound)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.thin(fast=["True"])
def test_an_autoencoder_that_overflows_computes_in_float32(
    cache: bool, model: Path, tmp_path: Path, place: Place
) -> None:
    trainer = make_trainer(lora_settings(tmp_path, place, model, mixed_precision="bf16", cache_latents=cache))
    seen: list[torch.dtype] = []
    vae: Any = trainer.objective.frozen["vae"]  # type: ignore[index]
    vae.encoder.conv_out.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    trainer.run()
    assert set(seen) == {torch.float32}
    assert len(seen) > 0


# The fast test beside it is test_a_run_in_two_parts_ends_with_the_same_weights.
@pytest.mark.slow
def test_weights_beside_adapters_are_kept_in_half_precision_and_adapters_are_not(
    model: Path, tmp_path: Path, place: Place
) -> None:
    changes: dict[str, Any] = {"mixed_precision": "bf16", "train_text_encoder": True, "validation_steps": 6}
    trainer = make_trainer(lora_settings(tmp_path, place, model, **changes))
    types = {name: p.dtype for name, p in trainer.objective.networks.named_parameters()}
    assert {kind for name, kind in types.items() if "lora" in name} == {torch.float32}
    assert {kind for name, kind in types.items() if "lora" not in name} == {torch.bfloat16}
    trainer.run()
    assert {tensor.dtype for tensor in read_tensors(tmp_path / WEIGHTS).values()} == {torch.float32}
    one, other = images(tmp_path, model)
    assert np.abs(one - other).max() < 1e-3
    texts = make_trainer(
        lora_settings(tmp_path / "x", place, model, mixed_precision="bf16", cache_text_embeddings=False)
    )
    texts.objective.prepare({})
    kept = texts.objective.frozen["text_encoder_2"]  # type: ignore[index]
    assert {parameter.dtype for parameter in kept.parameters()} == {torch.bfloat16}


# --- interruption ----------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    **ZERO_SNR,
    "random_flip": True,
    "caption_dropout": 0.3,
    "gradient_accumulation_steps": 2,
    "snr_gamma": 5.0,
    "noise_offset": 0.1,
    "use_ema": True,
    "ema_decay": 0.9,
    "resolution": SIZE,
    "aspect_ratio_buckets": (),
}


@pytest.mark.parametrize("kind", ["fine-tuning", "adapters", "adapters of all in bf16"])
@pytest.mark.thin(fast=["adapters"])
def test_a_run_in_two_parts_ends_with_the_same_weights(kind: str, model: Path, shapes: Path, tmp_path: Path) -> None:
    data = Place(shapes, model)

    def chosen(name: str) -> Any:
        if kind == "fine-tuning":
            return tuning(tmp_path / name, data, model, **EVERYTHING, cache_latents=False, center_crop=False)
        more = {"train_text_encoder": True, "mixed_precision": "bf16"} if "bf16" in kind else {}
        return lora_settings(tmp_path / name, data, model, **EVERYTHING, **more)

    train(chosen("whole"))
    interrupt(chosen("parts"))
    shutil.rmtree(tmp_path / "parts" / "cache", ignore_errors=True)
    train(chosen("parts"))
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")
    if kind != "fine-tuning":
        assert_same(*(read_tensors(tmp_path / name / WEIGHTS) for name in ("whole", "parts")))
