"""What a run comes to, advice by its data, and how long it takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_training import Place, place, text_settings

from ddim.data import Source
from ddim.training.forecast import Forecast, advice, picture_sizes, summary
from ddim.training.run import make_trainer
from ddim.training.settings import LoraSettings, PixelSettings, TextToImageSettings, TrainSettings, VAESettings

__all__ = ["place"]


def source(count: int, side: int = 512) -> Source:
    return Source(count, lambda number: Image.new("RGB", (side + 100, side)))


def said(kind: type[TrainSettings], count: int, side: int, resolution: int, steps: int, batch: int, **more: Any) -> str:
    """All advice as one text."""
    data = {} if kind is PixelSettings else {"train_data_dir": "pictures"}
    settings = kind("x", **data, **more)
    return "\n".join(advice(settings, source(count, side), resolution, steps, batch, steps * batch / count))


def test_a_run_is_summed_up() -> None:
    assert summary(5209, 64, 10_000, 64) == "5,209 pictures of 64x64, 10,000 steps of 64: 123 epochs"
    assert summary(1, 8, 1, 1) == "1 picture of 8x8, 1 steps of 1: 1 epoch"
    assert summary(100_000, 512, 500, 16).endswith(": 0.08 epochs")


@pytest.mark.parametrize("more", [{}, {"pretrained_model_name_or_path": "emoji"}])
def test_few_pictures_are_for_adapters(more: dict[str, Any]) -> None:
    assert said(TextToImageSettings, 30, 512, 64, 10_000, 64, **more).startswith("30 pictures: `ddim train lora` suits")
    assert "lora" not in said(TextToImageSettings, 5209, 512, 64, 10_000, 64, **more)
    assert "lora" not in said(LoraSettings, 30, 512, 64, 500, 16)
    assert "few for a new model" in said(PixelSettings, 30, 512, 64, 10_000, 64)
    assert "few for a new model" in said(VAESettings, 30, 512, 64, 10_000, 64)


@pytest.mark.parametrize(
    ("kind", "count", "steps", "batch"),
    [(TextToImageSettings, 5209, 10_000, 64), (LoraSettings, 20, 600, 16), (PixelSettings, 1437, 10_000, 64)],
)
def test_what_suits_gets_no_advice(kind: type[TrainSettings], count: int, steps: int, batch: int) -> None:
    assert said(kind, count, 512, 64, steps, batch) == ""


def test_a_resolution_above_the_pictures_is_told() -> None:
    text = said(LoraSettings, 100, 200, 512, 500, 16)
    assert "--resolution 512 is larger than 32 of 32 pictures" in text
    assert "mostly 200" in text
    assert said(LoraSettings, 100, 512, 512, 500, 16) == ""


def test_too_few_and_too_many_epochs_are_told() -> None:
    assert "after 10% of the pictures: --max-train-steps 1,000 or more" in said(LoraSettings, 1000, 64, 64, 100, 1)
    many = said(LoraSettings, 10, 64, 64, 100_000, 1)
    assert re.search(r"10,000 epochs: .*learnt by heart; --max-train-steps 2,500 is 250 epochs", many)
    assert "learns little from 1,000 pictures seen" in said(TextToImageSettings, 500, 64, 64, 1000, 1)


def test_a_step_that_is_more_than_all_pictures_is_told() -> None:
    text = said(LoraSettings, 30, 64, 64, 100, 64)
    assert "a step of 64 is more than all 30 pictures" in text
    assert "--train-batch-size 30 or less" in text


def test_only_some_pictures_are_looked_at() -> None:
    loaded: list[int] = []
    many = Source(10_000, lambda number: loaded.append(number) or Image.new("L", (9, 5)))  # type: ignore[func-returns-value]
    assert picture_sizes(many) == [5] * 32
    assert max(loaded) > 9000
    assert len(loaded) == 32


# --- time ------------------------------------------------------------------------------------------------------------


def test_the_time_is_that_of_usual_steps_previews_and_checkpoints() -> None:
    forecast = Forecast(steps=10_000, previews=20, checkpoints=20, share=4.0)
    moments = [forecast.step(seconds) for seconds in (30.0, 8.0, 8.4, 60.0, 8.2)]
    assert moments == [True, True, True, True, True]  # as the first step took so long; `told` then ends it
    assert forecast.a_step == pytest.approx(8.3)
    assert forecast.total() == pytest.approx(10_080 * 8.3)
    forecast.preview, forecast.checkpoint = 100.0, 10.0
    assert forecast.total() == pytest.approx(10_000 * 8.3 + 20 * 110)
    text = str(forecast.say(before=60.0))
    assert text.startswith("here the whole run takes about 24 hours: 10,000 steps of 8.3 s, 20 previews of 100 seconds")
    assert "20 checkpoints of 10 seconds" in text
    assert forecast.say(before=60.0) is None
    forecast.preview = 4000.0
    assert str(forecast.say(before=60.0)).startswith("it is rather about 45 hours")


def test_quick_steps_are_told_after_five_and_slow_ones_at_once() -> None:
    quick = Forecast(100, 0, 0, 0.0)
    assert [quick.step(0.1) for _ in range(5)] == [False] * 4 + [True]
    assert not quick.measures
    slow = Forecast(100, 0, 0, 0.0)
    assert slow.step(20.0)
    assert (
        slow.say(0.0)
        == "here the whole run takes about 33 minutes: 100 steps of 20 s. Ctrl-C saves what was learnt and ends it"
    )
    assert not slow.step(21.0)


# The fast test beside it is test_a_run_is_summed_up.
@pytest.mark.slow
def test_a_run_says_what_it_comes_to_and_how_long_it_takes(
    tmp_path: Path, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"max_train_steps": 12, "validation_steps": 5, "checkpointing_steps": 4}
    changes["validation_inference_steps"] = 1
    trainer = make_trainer(text_settings(tmp_path, place, **changes))
    times = iter(range(0, 10_000_000, 600))  # each look at the clock finds that ten minutes went by
    trainer.clock = lambda: float(next(times))
    trainer.run()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ddim: ")]
    assert lines[0] == "ddim: 12 pictures of 16x16, 12 steps of 4: 4 epochs"
    assert lines[1].startswith("ddim: 12 pictures: `ddim train lora` suits")
    (told,) = [line for line in lines if "here the whole run takes" in line]
    assert re.search(r"about \d[\d.]* \w+: 12 steps of 600 s, 3 previews\. Ctrl-C", told)
    assert lines.index(told) < lines.index("ddim: the last step is made: writing the last checkpoint")
    assert lines[-3:-1] == ["ddim: drawing the last preview", f"ddim: saving the averaged weights in {tmp_path}"]
    assert lines[-1].startswith("ddim: now try: ddim sample")


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.thin(every=2)
def test_the_first_checkpoint_and_preview_come_by_the_time(
    limit: int | None, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"checkpointing_steps": 100, "validation_steps": limit, "max_train_steps": 9}
    changes["validation_inference_steps"] = 1
    trainer = make_trainer(text_settings(tmp_path, place, **changes))
    trainer.clock = lambda: 20.0 * trainer.step  # twenty seconds a step, so that ninety are over at the fifth
    counts: list[int] = []
    preview = trainer.objective.preview

    def watched(finished: Any, most: int | None = None) -> Any:
        counts.append(trainer.step if most is None else -trainer.step)
        return preview(finished, most)

    monkeypatch.setattr(trainer.objective, "preview", watched)
    trainer.run()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-9"]
    assert counts == ([] if limit == 0 else [-5, 9])  # with fewer pictures the first time, as these take their time


def test_a_first_preview_takes_what_time_there_is(tmp_path: Path, place: Place) -> None:
    trainer = make_trainer(text_settings(tmp_path, place, validation_prompts=tuple("abcdefgh")))
    forecast = trainer._forecast()
    assert forecast.share == pytest.approx(8 * 50 / (3 * 4))
    for seconds, affordable in ((0.001, 8), (3.0, 1), (1.0, 4)):
        forecast.seconds = [seconds]
        assert trainer._affordable(forecast) == affordable
