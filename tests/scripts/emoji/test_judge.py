"""What the emoji model is judged by: which captions, among which others, and how a background is measured."""

from __future__ import annotations

import argparse
import doctest
import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from program import SCRIPTS

pytest.importorskip("pyarrow.parquet")
pytest.importorskip("accelerate")  # train.py imports the trainer

from ddim.data.preparation import BACKGROUNDS
from ddim.scheduler import DDIMScheduler

Rows = list[dict[str, Any]]


def load(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS / "emoji"))
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def judge() -> ModuleType:
    return load("judge")


@pytest.fixture(scope="module")
def scoring(judge: ModuleType) -> ModuleType:
    return sys.modules["scorer"]


@pytest.fixture(scope="module")
def rows(scoring: ModuleType) -> Rows:
    table: Rows = scoring.read_rows()
    return table


@pytest.fixture(scope="module")
def chosen(judge: ModuleType, rows: Rows) -> dict[str, list[Any]]:
    items: dict[str, list[Any]] = judge.choose(rows, 120)
    return items


@pytest.fixture(scope="module")
def distractors(scoring: ModuleType, rows: Rows) -> Any:
    return scoring.Distractors(rows)


def captions_of(chosen: dict[str, list[Any]]) -> list[Any]:
    """A few of each set and kind."""
    return [item.caption for items in chosen.values() for item in items[::9]]


# --- captions --------------------------------------------------------------------------------------------------------


def test_the_choice_is_the_same_in_every_run(
    judge: ModuleType, chosen: dict[str, list[Any]], rows: Rows, distractors: Any
) -> None:
    shuffled = [rows[i] for i in torch.randperm(len(rows)).tolist()]
    again = judge.choose(shuffled, 120)
    assert {name: [item.caption for item in items] for name, items in again.items()} == {
        name: [item.caption for item in items] for name, items in chosen.items()
    }
    right = chosen["compositions"][0].caption
    assert distractors(right) == distractors(right)
    assert chosen["training"][0].caption.text == "a ferry, noto style"  # this and the next are frozen
    assert distractors(judge.Caption("red heart", None, "noto"))[0].text == "a white heart, noto style"


def test_each_caption_comes_once_and_there_are_as_many_as_asked(
    judge: ModuleType, rows: Rows, chosen: dict[str, list[Any]]
) -> None:
    for items in (*chosen.values(), *judge.choose(rows, 500).values()):
        assert len({item.caption for item in items}) == len(items)
        assert len(items) in (120, 500)
    kinds = Counter(item.kind for item in chosen["compositions"])
    assert kinds == {"new style: flag": 20, "new style: other": 20, "new style: tone": 20, "new concept": 60}


def test_training_captions_are_those_of_training_pictures(
    judge: ModuleType, rows: Rows, chosen: dict[str, list[Any]]
) -> None:
    said = {
        text for row in judge.trained_on(rows) for text in sys.modules["train"].captions(row["captions"], row["style"])
    }
    assert all(item.caption.text in said for item in chosen["training"])


def test_no_composition_is_in_the_training_pictures(
    judge: ModuleType, rows: Rows, chosen: dict[str, list[Any]]
) -> None:
    train = judge.trained_on(rows)
    pairs = {(name, row["style"]) for row in train for name in row["captions"]}
    names = {row["captions"][0] for row in train}
    concepts, words = {row["concept"] for row in train}, judge.known_words(rows)
    for item in chosen["compositions"]:
        assert (item.caption.name, item.caption.style) not in pairs
        assert item.caption.color not in (None, "white")
        if item.kind == "new concept":
            assert item.row["concept"] not in concepts
            assert (item.row["captions"][0], item.row["style"]) == (item.caption.name, item.caption.style)
        else:
            assert item.caption.name in names
        assert words >= set(item.caption.name.split())


def test_held_out_concepts_come_about_as_often(judge: ModuleType, rows: Rows) -> None:
    counts = Counter(item.row["concept"] for item in judge.concept_items(rows, 250))
    assert len(counts) > 30
    assert max(counts.values()) - min(counts.values()) <= 1


# --- distractors -----------------------------------------------------------------------------------------------------


def test_distractors_are_99_other_concepts_in_the_same_form(
    scoring: ModuleType, chosen: dict[str, list[Any]], distractors: Any
) -> None:
    for right in captions_of(chosen):
        wrong = distractors(right)
        concept = distractors.names[right.name].concept
        concepts = {distractors.names[caption.name].concept for caption in wrong}
        assert len(wrong) == len(concepts) == scoring.CANDIDATES - 1 == 99
        assert concept not in concepts
        assert right.text not in {caption.text for caption in wrong}
        for caption in wrong:
            assert (caption.color is None) == (right.color is None)
            assert (caption.style is None) == (right.style is None)
            assert scoring.is_toned(caption.name) == scoring.is_toned(right.name)


def test_ten_are_nearest_and_most_are_alike_in_style_and_background(
    chosen: dict[str, list[Any]], distractors: Any
) -> None:
    by_chance = {False: 0, True: 0}
    for right in captions_of(chosen):
        wrong = distractors(right)
        target = distractors.names[right.name]
        alike = [caption.color == right.color and caption.style == right.style for caption in wrong]
        assert all(alike[:55])
        by_chance[right.color is None] += sum(alike[55:])
        likeness = [distractors.likeness(target, distractors.names[caption.name]) for caption in wrong]
        assert likeness[:10] == sorted(likeness[:10], reverse=True)
        assert min(likeness[:10]) >= max(likeness[10:])
    assert 0.2 < by_chance[True] / len(chosen["training"][::9]) / 44 < 0.5  # of 3 styles
    assert 0 < by_chance[False] / len(chosen["compositions"][::9]) / 44 < 0.06  # and of 15 backgrounds


def test_a_tone_that_the_table_has_not_is_known_by_its_emoji(scoring: ModuleType, distractors: Any) -> None:
    right = scoring.Caption("waving hand with no such skin tone")
    assert right.name not in distractors.names
    with pytest.raises(KeyError):
        distractors(right)
    wrong = distractors(scoring.Caption("waving hand with medium dark skin tone", "red", "noto"))
    assert all(caption.name.endswith(" skin tone") and "waving" not in caption.name for caption in wrong)


def test_captions_are_read_as_they_are_written(scoring: ModuleType, chosen: dict[str, list[Any]]) -> None:
    for caption in captions_of(chosen):
        for said in (caption, caption._replace(style=None), caption._replace(color=None, style=None)):
            assert scoring.parse(said.text) == said._replace(name=scoring.articled(said.name))


# --- measures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("color", BACKGROUNDS)
def test_a_background_is_known_by_its_border(judge: ModuleType, scoring: ModuleType, color: str) -> None:
    other = next(name for name in BACKGROUNDS if name != color)
    drawing = Image.new("RGBA", (64, 64))
    drawing.paste((*BACKGROUNDS[other], 255), (0, 8, 30, 56))  # reaches the border on one side
    image = scoring.compose(drawing, color)
    noisy = (image + 0.05 * torch.randn(image.shape)).clamp(-1, 1)
    assert judge.border_color(image) == judge.border_color(noisy) == color


def test_ranks_count_what_fits_as_well_or_better(scoring: ModuleType) -> None:
    vectors = {"right": [1.0, 0.0], "same": [1.0, 0.0], "worse": [0.6, 0.8], "better": [0.8, -0.6]}
    stub = SimpleNamespace(captions=lambda texts: torch.tensor([vectors[text] for text in texts]))
    seen = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.8, -0.6]])
    candidates = [["right", "worse"], ["right", "same", "worse"], ["right", "worse", "better"]]
    assert scoring.ranks(stub, seen, candidates).tolist() == [0, 1, 1]


def test_a_caption_is_the_sum_of_its_parts(scoring: ModuleType) -> None:
    scorer = scoring.Scorer(["a", "red", "heart"]).eval()
    with torch.no_grad():
        plain, full = scorer.captions(["a red heart", "a red heart on a blue background, noto style"])
        whole = plain + scorer.styles[0] + scorer.colors[scoring.COLORS.index("blue")]
        torch.testing.assert_close(full, whole / whole.norm())
        torch.testing.assert_close(scorer.captions(["a red heart of gold"])[0], plain)  # unknown words are passed over
        assert scorer.images(torch.randn(2, 3, 64, 64)).norm(dim=1) == pytest.approx(torch.ones(2))


def test_the_nearest_training_picture_is_found_mirrored_and_on_its_background(
    judge: ModuleType, scoring: ModuleType, rows: Rows
) -> None:
    few = judge.trained_on(rows)[:40]
    nearest = judge.Nearest(scoring.Scorer([]).eval(), few)
    images = torch.stack([scoring.compose(row["image"]["bytes"], "pink") for row in few[:3]])
    images[1] = images[1].flip(-1)
    images[2] = images[2] - 0.1 * images[2].sign()  # 0.05 in [0, 1]
    pixels, cosines = nearest(images, ["pink"] * 3)
    assert pixels.tolist() == pytest.approx([0, 0, 0.05], abs=1e-3)
    assert cosines[:2].tolist() == pytest.approx([1, 1], abs=1e-4)
    elsewhere, _ = nearest(images, ["blue"] * 3)
    assert elsewhere.min() > 0.1


@pytest.mark.slow
def test_all_is_judged_and_parts_add_up(judge: ModuleType, scoring: ModuleType, rows: Rows, tmp_path: Path) -> None:
    """By a scorer that knows nothing, on noise for pictures."""

    def draw(prompts: list[str], seed: list[int], output_type: str, **options: Any) -> Any:
        assert options == {"num_inference_steps": 3}
        noise = [torch.rand((3, 64, 64), generator=torch.Generator().manual_seed(number)) for number in seed]
        return SimpleNamespace(images=torch.stack(noise))

    class Pipe:
        vae = SimpleNamespace(
            encode=lambda x: SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: x)),
            decode=lambda z: SimpleNamespace(sample=z),
        )

        def __call__(self, *args: Any, **options: Any) -> Any:
            return draw(*args, **options)

    scorer = scoring.Scorer(sorted({word for row in rows for word in row["captions"][0].split()})).eval()
    items, few, unseen = judge.choose(rows, 24), judge.trained_on(rows)[::100], judge.held_out(rows)[::10]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "tqdm", lambda steps, **_: steps)
        patch.setattr(judge, "choose", lambda *_: items)
        patch.setattr(judge, "trained_on", lambda _: few)
        patch.setattr(judge, "held_out", lambda _: unseen)
        figures = judge.judge_model(Pipe(), scorer, rows, 24, tmp_path / "grid.png", 5, num_inference_steps=3)
    assert set(figures) == {"training", "compositions"}
    for name, found in figures.items():
        assert found["generated"]["count"] == 24
        assert found["generated"]["near_copies"] == 0
        assert found["real"]["top1"] == found["real_reencoded"]["top1"]  # this autoencoder changes nothing
        assert found["real"]["background"] > 0.8 > found["generated"]["background"]
        assert found["spread"].keys() >= {"features", "features_error", "pixels", "pixels_error"}
        assert (found["spread"]["captions"], found["spread"]["seeds"]) == (5, 4)
        assert found["spread"]["pixels"] == pytest.approx((1 / 6) ** 0.5, abs=2e-3)  # of uniform noise in [0, 1]
        assert found["generated"]["recall"] < 0.5  # noise is no emoji
        assert 0 <= found["generated"]["precision"] <= 1
        assert found["real"]["count"] == (24 if name == "training" else 12)
    parts = figures["compositions"]["generated"]["parts"]
    assert parts["new style"]["count"] == parts["new concept"]["count"] == 12
    assert sum(part["count"] for kind, part in parts.items() if ":" in kind) == 12
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 1000


def test_four_seeds_of_a_caption_are_compared_among_themselves(judge: ModuleType, scoring: ModuleType) -> None:
    seen: list[tuple[str, int]] = []

    def pipe(prompts: list[str], seed: list[int], output_type: str) -> Any:
        seen.extend(zip(prompts, seed, strict=True))
        levels = [(0.1 * (number % 10) if "heart" in text else 0.5) for text, number in zip(prompts, seed, strict=True)]
        return SimpleNamespace(images=torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 64, 64))

    items = [judge.Item(scoring.Caption(name), "training") for name in ("red heart", "owl")]
    found = judge.spread_of_seeds(pipe, scoring.Scorer([]).eval(), items, 10_000)
    assert seen == [(text, 10_000 + number) for text in ("a red heart", "an owl") for number in range(4)]
    apart = (3 * 0.1 + 2 * 0.2 + 0.3) / 6  # of six pairs; the owls are all the same
    assert found["pixels"] == pytest.approx(apart / 2, abs=1e-4)
    assert found["pixels_error"] == pytest.approx(apart / 2, abs=1e-4)
    assert 0 < found["features"] <= 2


@pytest.mark.parametrize(
    ("recommended", "typed", "expected"),
    [
        ({}, {}, (25, 1, 3.0, 0.7, "trailing")),
        ({}, {"steps": 8, "order": 2, "spacing": "optimized"}, (8, 2, 3.0, 0.7, "optimized")),
        ({}, {"steps": 4, "guidance": 1.0}, (4, 1, 1.0, 0.0, "trailing")),
        ({"steps": 4, "guidance_scale": 1.0}, {}, (4, 1, 1.0, 0.0, "trailing")),
        ({"steps": 4, "guidance_scale": 1.0}, {"steps": 2}, (2, 1, 1.0, 0.0, "trailing")),
        ({"steps": 8, "order": 2, "spacing": "optimized"}, {}, (8, 2, 3.0, 0.7, "optimized")),
        (
            {"steps": 8, "order": 2, "spacing": "optimized"},
            {"steps": 50, "rescale": 0.0},
            (50, 1, 3.0, 0.0, "trailing"),
        ),
    ],
)
def test_what_is_not_typed_is_as_the_model_recommends(
    judge: ModuleType, recommended: dict[str, Any], typed: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    config = {"timestep_spacing": "trailing", **{f"recommended_{name}": value for name, value in recommended.items()}}
    names = ("steps", "order", "spacing", "guidance", "rescale")
    how, spacing = judge.how_to_draw(config, argparse.Namespace(**{name: typed.get(name) for name in names}))
    assert (*how.values(), spacing) == expected


@pytest.mark.parametrize(
    ("arguments", "model"), [([], "emoji"), (["a-folder"], "a-folder"), (["--model", "a-folder"], "a-folder")]
)
def test_any_model_is_judged(
    arguments: list[str], model: str, judge: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def opens(name: str) -> Any:
        opened.append(name)
        scheduler = DDIMScheduler(timestep_spacing="trailing", recommended_steps=4, recommended_guidance_scale=1.0)
        return SimpleNamespace(scheduler=scheduler, set_progress_bar_config=lambda **_: None)

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(judge, "DiffusionPipeline", SimpleNamespace(from_pretrained=opens))
    monkeypatch.setattr(judge, "judge_model", lambda *given, **how: asked.append(how) or {"training": {}})
    monkeypatch.setattr("sys.argv", ["judge.py", *arguments, "--json", str(tmp_path / "found.json")])
    judge.main()
    assert opened == [model]
    how = {"num_inference_steps": 4, "order": 1, "guidance_scale": 1.0, "guidance_rescale": 0.0}
    assert asked == [how]
    told = json.loads((tmp_path / "found.json").read_text())
    assert told.items() >= {**how, "model": model, "timestep_spacing": "trailing"}.items()


def test_a_model_of_another_size_is_refused(judge: ModuleType) -> None:
    def pipe(prompts: list[str], **options: Any) -> Any:
        return SimpleNamespace(images=torch.zeros(len(prompts), 3, 16, 16))

    with pytest.raises(SystemExit, match=r"\(3, 16, 16\)"):
        judge.generate(pipe, ["an owl"], [0])


# --- gallery ---------------------------------------------------------------------------------------------------------


def test_the_gallery_says_rightly_what_is_new(judge: ModuleType, scoring: ModuleType, rows: Rows) -> None:
    gallery = sys.modules["gallery"]
    train = judge.trained_on(rows)
    seen = {
        scoring.parse(text)[::2]
        for row in train
        for text in sys.modules["train"].captions(row["captions"], row["style"])
    }
    assert len({prompt.text for prompt in gallery.GALLERY}) == len(gallery.GALLERY) == 25
    assert sum(bool(prompt.new) for prompt in gallery.GALLERY) == 5
    for prompt in gallery.GALLERY:
        caption = scoring.parse(prompt.text)
        assert ((caption.name, caption.style) in seen) == (not prompt.new), prompt
        assert set(caption.name.split()) - {"a", "an"} <= judge.known_words(rows)


def test_the_gallery_draws_each_prompt_with_each_seed(judge: ModuleType) -> None:
    gallery = sys.modules["gallery"]
    asked: list[tuple[str, int]] = []

    def generate(prompts: list[str], seeds: list[int]) -> torch.Tensor:
        asked.extend(zip(prompts, seeds, strict=True))
        return torch.zeros(len(prompts), 3, 64, 64)

    picture = gallery.draw_gallery(generate)
    assert sorted(asked) == sorted((prompt.text, seed) for prompt in gallery.GALLERY for seed in range(4))
    assert 1000 < picture.width < 2000
    assert sum(count for count, color in picture.getcolors(2**16) if color == (128, 128, 128)) == 100 * 128 * 128


def test_their_examples(judge: ModuleType, scoring: ModuleType) -> None:
    result = doctest.testmod(scoring)
    assert result.attempted >= 4
    assert result.failed == 0
