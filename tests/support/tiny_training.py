"""Pictures, networks and settings so small that a step of training takes milliseconds."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ddim.checkpoint import read_tensors
from ddim.models import AutoencoderKL
from ddim.training.checkpoints import checkpoints
from ddim.training.run import make_trainer
from ddim.training.settings import LoraSettings, TextToImageSettings, TrainSettings, VAESettings
from ddim.training.trainer import Trainer

torch.set_num_threads(1)  # networks this small only lose time with more

COLORS = {
    "red": (200, 0, 0),
    "green": (0, 200, 0),
    "blue": (0, 0, 200),
    "yellow": (220, 220, 0),
    "cyan": (0, 200, 200),
    "magenta": (200, 0, 200),
}
SIZE = 16


def drawing(color: str, transparent: bool, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    """A square in the middle, on nothing or on a light gray."""
    image = Image.new("RGBA", size, (0, 0, 0, 0) if transparent else (240, 240, 240, 255))
    width, height = size
    image.paste((*COLORS[color], 255), (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
    return image


def write_pictures(folder: Path) -> Path:
    """A folder of twelve pictures, half of them with transparency, and their captions: one or two for each."""
    folder.mkdir(parents=True)
    lines = []
    for color in COLORS:
        for transparent in (True, False):
            name = f"{color}-{'clear' if transparent else 'full'}.png"
            drawing(color, transparent).save(folder / name)
            texts = [f"a {color} square, flat style", f"{color} box"] if transparent else f"a {color} tile"
            lines.append(json.dumps({"file_name": name, "text": texts}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def tiny_vae(seed: int = 0, **config: Any) -> AutoencoderKL:
    """Latents of 4x8x8 for pictures of 3x16x16."""
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (16, 16),
        "norm_num_groups": 8,
        "sample_size": SIZE,
        "mid_block_add_attention": False,
        "force_upcast": False,
        "scaling_factor": 1.5,
    }
    return AutoencoderKL(**{**values, **config}).eval()


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the data and the autoencoder are."""

    data: Path
    vae: Path


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_vae().save_pretrained(folder / "vae")
    return Place(write_pictures(folder / "data"), folder / "vae")


COMMON: dict[str, Any] = {
    "max_train_steps": 6,
    "train_batch_size": 4,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 2,
    "checkpointing_steps": 3,
    "checkpoints_total_limit": None,
    "validation_steps": 0,
    "report_to": "none",
}
# Of a new network.
NETWORK: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "attention_levels": (-1,),
    "attention_heads": 2,
    "text_dim": 16,
    "text_layers": 1,
    "text_heads": 2,
    "vocab_size": 600,
    "max_tokens": 32,
}


def text_settings(output_dir: Path, place: Place, **changes: Any) -> TextToImageSettings:
    given: dict[str, Any] = {"train_data_dir": str(place.data), **COMMON, "ema_decay": 0.9}
    if changes.get("pretrained_model_name_or_path") is None:
        given |= {**NETWORK, "pretrained_vae_model_name_or_path": str(place.vae), "resolution": SIZE}
    return TextToImageSettings(output_dir=str(output_dir), **{**given, **changes})


def vae_settings(output_dir: Path, place: Place, **changes: Any) -> VAESettings:
    network: dict[str, Any] = {"block_out_channels": (8, 16), "resolution": SIZE, "ema_decay": 0.9}
    given = {"train_data_dir": str(place.data), **COMMON, **network, **changes}
    return VAESettings(output_dir=str(output_dir), **given)


def lora_settings(output_dir: Path, place: Place, model: Path, **changes: Any) -> LoraSettings:
    given = {"train_data_dir": str(place.data), "pretrained_model_name_or_path": str(model), **COMMON, **changes}
    return LoraSettings(output_dir=str(output_dir), **given)


def as_options(settings: TrainSettings) -> list[str]:
    """Settings as they are written on a command line, in diffusers' spelling."""
    options: list[str] = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value == field.default or value is None:
            continue
        if isinstance(value, bool) and field.default is not None:
            options.append(f"--{field.name}" if value else f"--no_{field.name}")
        else:
            options += [f"--{field.name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return options


def interrupt(settings: TrainSettings) -> Trainer:
    """Train to the first checkpoint, and stop as if killed."""
    trainer = make_trainer(settings)
    save = trainer.save

    def save_and_die() -> None:
        save()
        raise KeyboardInterrupt

    trainer.save = save_and_die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    return trainer


def losses_of(trainer: Trainer) -> list[float]:
    """Run to the end; the loss of each batch."""
    losses: list[float] = []
    report = trainer._report

    def keep(log: Any, norm: Any, bar: Any) -> None:
        losses.extend(float(loss) for loss in log.losses)
        report(log, norm, bar)

    trainer._report = keep  # type: ignore[method-assign]
    trainer.run()
    return losses


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """The same names, and the same numbers bit for bit."""
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def assert_same_runs(first: Path, second: Path) -> None:
    """All files of the last checkpoints are equal, and their tensors finite."""
    one, two = checkpoints(first)[-1], checkpoints(second)[-1]
    assert one.name == two.name
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names == sorted(path.name for path in two.glob("*.safetensors"))
    assert "optimizer.safetensors" in names
    for name in names:
        tensors = read_tensors(one / name)
        assert_same(tensors, read_tensors(two / name))
        assert all(math.isfinite(tensor.double().sum().item()) for tensor in tensors.values())
