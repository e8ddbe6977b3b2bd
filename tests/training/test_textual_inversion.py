"""Training a new word: its vectors alone change, others load it, and an interrupted run ends with the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_sd import tiny_reference
from tiny_training import COMMON, Place, assert_same_runs, interrupt, place
from tiny_xl import tiny_xl

import ddim
from ddim.checkpoint import read_tensors
from ddim.cli import main
from ddim.errors import ConfigError
from ddim.training import train
from ddim.training.run import make_trainer
from ddim.training.settings import TextualInversionSettings
from ddim.training.textual_inversion import TEMPLATES, Joined, Vectors

__all__ = ["place"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    tiny_reference(folder, 1)
    return folder


def settings(output_dir: Path, place: Place, model: Path, **changes: Any) -> TextualInversionSettings:
    given: dict[str, Any] = {
        "train_data_dir": str(place.data),
        "pretrained_model_name_or_path": str(model),
        "placeholder_token": "<toy>",
        "initializer_token": "cat",
        **COMMON,
        **changes,
    }
    return TextualInversionSettings(output_dir=str(output_dir), **given)


def image(pipe: Any) -> np.ndarray[Any, Any]:
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
    return np.asarray(pipe("a photo of a <toy>", latents=latents, **options).images)


def test_what_is_saved_gives_the_same_picture_in_diffusers(model: Path, tmp_path: Path, place: Place) -> None:
    diffusers = pytest.importorskip("diffusers")
    folder = train(settings(tmp_path, place, model, num_vectors=2, learning_rate=0.1, random_background=True))
    stored = read_tensors(folder / "learned_embeds.safetensors")
    assert {name: tensor.shape for name, tensor in stored.items()} == {"<toy>": (2, 32)}
    images = []
    for kind in (diffusers.DiffusionPipeline, ddim.DiffusionPipeline):
        pipe = kind.from_pretrained(model)
        before = image(pipe)
        pipe.load_textual_inversion(str(folder))
        images.append(image(pipe))
        assert np.abs(images[-1] - before).max() > 0.01
    assert np.abs(images[0] - images[1]).max() < 1e-4
    assert json.loads((folder / "training.json").read_text())["kind"] == "TextualInversionSettings"


def test_only_the_vectors_change(model: Path, tmp_path: Path, place: Place) -> None:
    trainer = make_trainer(settings(tmp_path, place, model, num_vectors=2))
    before = {name: value.clone() for name, value in trainer.objective.named_parameters()}
    assert trainer.names == ["word.text_encoder.weight"]
    trainer.run()
    after = dict(trainer.objective.named_parameters())
    kept = {name: value for name, value in after.items() if not value.is_meta}  # without what no step needs
    changed = {name for name, value in kept.items() if not torch.equal(value, before[name])}
    assert changed == {"networks.word.text_encoder.weight"}
    assert list(read_tensors(tmp_path / "checkpoint-6" / "model.safetensors")) == trainer.names
    optimizer = sum(
        tensor.nbytes for tensor in read_tensors(tmp_path / "checkpoint-6" / "optimizer.safetensors").values()
    )
    assert optimizer < 3 * 2 * 32 * 4


# The fast test beside it is test_what_is_saved_gives_the_same_picture_in_diffusers.
@pytest.mark.slow
def test_the_word_begins_as_another_and_the_loss_falls(model: Path, tmp_path: Path, place: Place) -> None:
    changes = {"max_train_steps": 40, "learning_rate": 0.1, "checkpointing_steps": 1000, "num_vectors": 2}
    trainer = make_trainer(settings(tmp_path, place, model, **changes))
    objective: Any = trainer.objective
    pipe: Any = ddim.DiffusionPipeline.from_pretrained(model)
    cat = pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer.convert_tokens_to_ids("cat</w>")]
    assert torch.equal(objective.networks["word"]["text_encoder"].weight.detach(), torch.stack([cat, cat]))
    texts = objective.source.captions[0]
    assert texts[1] == "a <toy> <toy>_1"
    assert len(texts) == len(TEMPLATES["object"])
    objective.prepare({})
    batch = torch.utils.data.default_collate([objective.dataset()[position] for position in range(24)])

    def loss() -> float:
        torch.manual_seed(0)
        with torch.no_grad():
            return float(np.mean([float(objective(batch).loss.mean()) for _ in range(20)]))

    first = loss()
    trainer.run()
    assert loss() < first


@pytest.mark.parametrize("changes", [{}, {"use_ema": True, "num_vectors": 3, "gradient_checkpointing": True}])
@pytest.mark.thin(fast=["changes0"])
def test_an_interrupted_run_ends_with_the_same_bits(
    changes: dict[str, Any], model: Path, tmp_path: Path, place: Place
) -> None:
    whole = train(settings(tmp_path / "whole", place, model, **changes))
    interrupted = settings(tmp_path / "interrupted", place, model, **changes)
    interrupt(interrupted)
    train(interrupted)
    assert_same_runs(whole, tmp_path / "interrupted")
    name = "learned_embeds.safetensors"
    assert (whole / name).read_bytes() == (tmp_path / "interrupted" / name).read_bytes()


# The fast test beside it is test_what_is_saved_gives_the_same_picture_in_diffusers.
@pytest.mark.slow
def test_a_style_templates_of_ones_own_and_previews(model: Path, tmp_path: Path, place: Place) -> None:
    styled: Any = make_trainer(settings(tmp_path / "a", place, model, learnable_property="style")).objective
    assert "a drawing in the style of <toy>" in styled.source.captions[0]
    (tmp_path / "texts.txt").write_text("red {}\n\n{} and {}\n")
    own = settings(
        tmp_path / "b", place, model, templates_file=str(tmp_path / "texts.txt"), validation_steps=6, use_ema=True
    )
    trainer: Any = make_trainer(own)
    assert trainer.objective.source.captions[0] == ("red <toy>", "<toy> and <toy>")
    trainer.run()
    assert list((tmp_path / "b").rglob("*.png"))
    assert trainer.objective.next_command("x")[:3] == ["ddim", "sample", "red <toy>"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"placeholder_token": "c"}, "give another placeholder_token"),
        ({"placeholder_token": ""}, "a token is a word"),
        ({"initializer_token": ""}, "is 0 tokens"),
        ({"initializer_token": "photo cat"}, "is 2 tokens"),
        ({"num_vectors": 0}, "num_vectors must be 1 or more"),
        ({"num_vectors": 76}, "75 tokens at most"),
        ({"templates_file": "none.txt"}, "none.txt cannot be read"),
        ({"templates_file": "bad.txt"}, "'a photo' has none"),
        ({"templates_file": "empty.txt"}, "it has 0 lines"),
    ],
)
def test_what_cannot_be(
    changes: dict[str, Any], says: str, model: Path, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.txt").write_text("{}\na photo\n")
    Path("empty.txt").write_text("\n")
    with pytest.raises((ConfigError, OSError), match=says):
        make_trainer(settings(tmp_path / "run", place, model, **changes))
    assert not (tmp_path / "run").exists()


def test_the_command(model: Path, tmp_path: Path, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """As it is typed for diffusers' script, with what is not needed here."""
    typed = ["--pretrained_model_name_or_path", str(model), "--train_data_dir", str(place.data)]
    typed += ["--placeholder_token", "<toy>", "--initializer_token", "cat", "--repeats", "100", "--save_steps", "50"]
    typed += ["--learnable_property", "object", "--max_train_steps", "2", "--output_dir", str(tmp_path / "run")]
    typed += ["--train_batch_size", "2", "--report_to", "none", "--validation_steps", "0", "--num_vectors", "2"]
    assert main(["train", "textual-inversion", *typed]) == 0
    assert "--repeats is not needed" in capsys.readouterr().err
    assert (tmp_path / "run" / "learned_embeds.safetensors").is_file()
    assert main(["train", "textual-inversion", *typed, "--train_text_encoder"]) == 1
    assert "an option of `ddim train text-to-image` and `ddim train lora`, not of" in capsys.readouterr().err


# The fast test beside it is test_what_is_saved_gives_the_same_picture_in_diffusers.
@pytest.mark.slow
def test_both_text_encoders_of_stable_diffusion_xl(tmp_path: Path, place: Place) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = tmp_path / "xl"
    tiny_xl(model)
    changes: dict[str, Any] = {"num_vectors": 2, "learning_rate": 0.1, "resolution": 16, "max_train_steps": 4}
    changes |= {"checkpointing_steps": 2}
    whole = train(settings(tmp_path / "whole", place, model, validation_steps=4, **changes))
    interrupt(settings(tmp_path / "run", place, model, **changes))
    folder = train(settings(tmp_path / "run", place, model, **changes))
    names = ("learned_embeds.safetensors", "learned_embeds_2.safetensors")
    learnt = [read_tensors(folder / name)["<toy>"] for name in names]
    assert [tensor.shape for tensor in learnt] == [(2, 32), (2, 24)]
    assert all((whole / name).read_bytes() == (folder / name).read_bytes() for name in names)
    ours: Any = ddim.DiffusionPipeline.from_pretrained(model)
    for tensor, end in zip(learnt, ("", "_2"), strict=True):
        table = getattr(ours, f"text_encoder{end}").get_input_embeddings().weight
        cat = table[getattr(ours, f"tokenizer{end}").convert_tokens_to_ids("cat</w>")]
        assert (tensor - cat).abs().max() > 0.01  # it has learnt something
    ours.load_textual_inversion(folder)
    theirs = diffusers.DiffusionPipeline.from_pretrained(model)
    for tensor, end in zip(learnt, ("", "_2"), strict=True):
        parts = {part: getattr(theirs, f"{part}{end}") for part in ("tokenizer", "text_encoder")}
        theirs.load_textual_inversion(tensor, token="<toy>", **parts)
    assert np.abs(image(ours) - image(theirs)).max() < 1e-4


def test_a_table_with_rows_elsewhere() -> None:
    table, vectors = torch.nn.Embedding(10, 4), Vectors(torch.randn(2, 4))
    joined = Joined(table, 7, vectors)
    ids = torch.tensor([[0, 7, 8, 9, 6]])
    found = joined(ids)
    assert torch.equal(found[0, [0, 3, 4]], table.weight[[0, 9, 6]])
    assert torch.equal(found[0, 1:3], vectors.weight)
    found.sum().backward()
    assert torch.equal(vectors.weight.grad, torch.ones(2, 4))
