"""Captions and pictures on their way into training: that they belong together, and that caches change nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_training import COLORS, SIZE, Place, assert_same_runs, drawing, place, text_settings, tiny_vae
from torch import Tensor
from torch.utils.data import DataLoader

from ddim.checkpoint import read_tensors, save_tensors
from ddim.data import Source
from ddim.data.preparation import BACKGROUNDS, Preparation
from ddim.data.stream import CaptionedStream
from ddim.errors import DataError, NonFiniteError
from ddim.images.flat import shows_background
from ddim.training import caches, train
from ddim.training.caches import LatentCache, content
from ddim.training.run import make_objective

__all__ = ["place"]

CLEAR = {"clear", "palette", "gray and clear", "color key", "a hole"}


def picture(kind: str, color: str) -> Image.Image:
    clear = drawing(color, transparent=True)
    if kind == "clear":
        return clear
    if kind == "palette":
        palette = clear.convert("RGB").quantize(4)
        palette.info["transparency"] = palette.getpixel((0, 0))
        return palette
    if kind == "gray and clear":
        return clear.convert("LA")
    if kind == "color key":
        keyed = clear.convert("RGB")
        keyed.info["transparency"] = keyed.getpixel((0, 0))
        return keyed
    full = drawing(color, transparent=False)
    if kind == "a hole":
        full.putpixel((0, 0), (9, 9, 9, 0))
    return full.convert("RGB") if kind == "RGB" else full


KINDS = [*sorted(CLEAR), "RGB", "opaque RGBA"]
PICTURES = [(kind, color) for kind in KINDS for color in COLORS]


def captioned() -> Source:
    """Captions of one, two or three texts, each with the kind and the color of its picture."""
    captions = []
    for number, (kind, color) in enumerate(PICTURES):
        texts = (f"a {color} square of {kind}", f"{color} box of {kind}, flat style", f"{kind}: {color}")
        captions.append(texts[: 1 + number % 3])
    return Source(len(PICTURES), lambda index: picture(*PICTURES[index]), captions=captions)


SOURCE = captioned()
SAID = re.compile(r"^(.*) on an? ([a-z ]+) background(,.*)?$")


def stream(seed: int, encoded: bool = False, flip: bool = True, **options: Any) -> CaptionedStream:
    transparent = np.array([shows_background(picture(*one)) for one in PICTURES]) if encoded else None
    prepare = Preparation(SIZE, random_flip=flip, background="named")
    return CaptionedStream(SOURCE, prepare, seed, encoded=encoded, transparent=transparent, **options)


@given(seed=st.integers(0, 2**32), position=st.integers(0, 2**40))
def test_a_caption_tells_of_its_own_picture_and_of_the_background_it_is_on(seed: int, position: int) -> None:
    one = stream(seed)
    item, (index, _) = one[position], one.at(position)
    kind, color = PICTURES[index]
    image = ((item["image"] + 1) * 127.5).round()
    corner, middle = (tuple(image[:, at, at].int().tolist()) for at in (0, SIZE // 2))
    said = SAID.match(item["caption"])
    caption = item["caption"] if said is None else said[1] + (said[3] or "")
    assert caption in SOURCE.captions[index]  # type: ignore[index]
    assert color in caption
    assert kind in caption
    if kind != "gray and clear":
        assert np.abs(np.subtract(middle, COLORS[color])).max() <= 1
    if said is not None:
        assert kind in CLEAR
    if kind == "a hole":
        return  # is mirrored away from the corner, and is enough of a background
    shown = None if kind not in CLEAR else (255, 255, 255) if said is None else BACKGROUNDS[said[2]]
    assert corner == (shown or (240, 240, 240))


@given(seed=st.integers(0, 2**32), position=st.integers(0, 2**40))
def test_what_is_encoded_is_what_is_not(seed: int, position: int) -> None:
    plain, encoded = stream(seed, dropout=0.2)[position], stream(seed, encoded=True, dropout=0.2)[position]
    assert plain["caption"] == encoded["caption"]
    prepare = stream(seed).prepare
    image = prepare(SOURCE.load(encoded["index"]), prepare.variants()[encoded["variant"]])
    assert torch.equal(image, plain["image"])


def test_shares_are_those_asked_for() -> None:
    count = 6000
    one = stream(1, encoded=True, dropout=0.25)
    captions = [one[position]["caption"] for position in range(count)]
    assert captions.count("") / count == pytest.approx(0.25, abs=0.025)
    said = [
        SAID.match(caption) for caption in captions if any(caption.endswith(end) for end in ("background", "style"))
    ]
    colors = [match[2] for match in said if match]
    clear = len(CLEAR) / len(KINDS)
    assert colors.count("black") / (0.75 * count) == pytest.approx(0.125 * clear, abs=0.02)
    assert colors.count("white") / (0.75 * count) == pytest.approx(0.5 * 0.25 * clear, abs=0.02)
    assert set(colors) == set(BACKGROUNDS)
    everything = stream(1, encoded=True, dropout=1.0)
    assert {everything[position]["caption"] for position in range(50)} == {""}
    nothing = stream(1, encoded=True)
    assert "" not in {nothing[position]["caption"] for position in range(500)}


def test_every_picture_comes_once_an_epoch_with_all_its_captions_in_time() -> None:
    one = stream(3, encoded=True)
    for epoch in range(3):
        seen = [one[epoch * SOURCE.count + offset]["index"] for offset in range(SOURCE.count)]
        assert sorted(seen) == list(range(SOURCE.count))
    plain = CaptionedStream(SOURCE, Preparation(SIZE), 3, encoded=True)
    heard = {plain[position]["caption"] for position in range(60 * SOURCE.count)}
    assert heard == {text for texts in SOURCE.captions or () for text in texts}


def test_pictures_without_captions_are_refused() -> None:
    with pytest.raises(DataError, match="no captions"):
        CaptionedStream(Source(1, lambda index: drawing("red", True)), Preparation(SIZE), 0)


def test_a_background_shows_where_anything_is_not_opaque() -> None:
    assert {kind for kind in KINDS if shows_background(picture(kind, "red"))} == CLEAR
    assert not shows_background(torch.zeros(3, 4, 4))


@pytest.mark.parametrize("cache", [True, False])
# The fast test beside it is test_workers_do_not_change_the_result of test_pixels.py.
@pytest.mark.slow
def test_workers_do_not_change_the_result(cache: bool, tmp_path: Path, place: Place) -> None:
    changes = {"max_train_steps": 3, "random_background": True, "random_flip": True, "cache_latents": cache}
    train(text_settings(tmp_path / "0", place, **changes))
    train(text_settings(tmp_path / "2", place, dataloader_num_workers=2, **changes))
    assert_same_runs(tmp_path / "0", tmp_path / "2")


# --- latents ---------------------------------------------------------------------------------------------------------


def batches(objective: Any, count: int = 3) -> list[dict[str, Any]]:
    loader = iter(DataLoader(objective.dataset(), batch_size=8, sampler=range(8 * count)))
    return [next(loader) for _ in range(count)]


@pytest.mark.parametrize("background", [True, False])
def test_cached_latents_are_those_of_the_pictures_up_to_rounding(
    background: bool, tmp_path: Path, place: Place
) -> None:
    changes = {"random_background": background, "random_flip": True}
    cached = make_objective(text_settings(tmp_path, place, **changes))
    cached.prepare({})
    direct = make_objective(text_settings(tmp_path, place, **changes, cache_latents=False))
    direct.prepare({})
    assert direct.latents is None
    for one, two in zip(batches(cached), batches(direct), strict=True):
        assert one["caption"] == two["caption"]
        assert "image" not in one
        x0 = []
        for objective, batch in ((cached, one), (direct, two)):
            torch.manual_seed(5)
            x0.append(objective.encode_images(batch))
        assert x0[0].dtype == torch.float32
        torch.testing.assert_close(x0[0], x0[1], rtol=2e-3, atol=2e-3)
        assert x0[1].std() > 0.1
        torch.manual_seed(5)
        drawn = direct.vae.encode(two["image"]).latent_dist.sample()
        torch.testing.assert_close(x0[1], drawn * direct.vae.config.scaling_factor, rtol=0, atol=1e-6)


def test_random_crops_are_not_cached(tmp_path: Path, place: Place) -> None:
    assert make_objective(text_settings(tmp_path, place, center_crop=False)).latents is None


def filled(folder: Path, place: Place, resolution: int = SIZE, vae_seed: int = 0) -> LatentCache:
    source = Source(12, lambda index: picture(KINDS[index % len(KINDS)], "red"))
    cache = LatentCache(folder, source, Preparation(resolution, random_flip=True))
    vae = tiny_vae(vae_seed)
    cache.look(vae)
    cache.fill(vae)
    return cache


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_the_cache_is_read_and_not_made_twice(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first = filled(tmp_path, place)
    (table,) = first.tables
    assert table.shape == (12, 2, 2, 4, 8, 8)
    assert first.transparent is not None
    assert first.transparent.tolist() == [KINDS[index % len(KINDS)] in CLEAR for index in range(12)]
    monkeypatch.setattr(LatentCache, "_encode", None)
    again = filled(tmp_path, place)
    assert torch.equal(table, *again.tables)


def test_another_autoencoder_or_preparation_has_a_file_of_its_own(tmp_path: Path, place: Place) -> None:
    filled(tmp_path, place)
    filled(tmp_path, place, resolution=8)
    filled(tmp_path, place, vae_seed=1)
    assert len(list(tmp_path.iterdir())) == 3


def test_what_an_autoencoder_computes_with_its_weights_is_part_of_the_name(tmp_path: Path) -> None:
    """The same numbers under another config or of another type give other latents."""

    def fill(change: Any) -> Tensor:
        vae = tiny_vae()
        change(vae)
        cache = LatentCache(tmp_path, Source(3, lambda index: drawing("red", False)), Preparation(SIZE))
        cache.look(vae)
        cache.fill(vae)
        return cache.tables[0]

    first = fill(lambda vae: None)
    fill(lambda vae: vae.register_to_config(act_fn="relu"))
    fill(lambda vae: vae.to(torch.bfloat16))
    assert len(list(tmp_path.iterdir())) == 3
    assert torch.equal(fill(lambda vae: None), first)
    assert len(list(tmp_path.iterdir())) == 3


def test_pictures_that_change_under_the_same_name_size_and_time_are_encoded_again(tmp_path: Path) -> None:
    path = tmp_path / "picture.bmp"

    def fill(color: str) -> Tensor:
        drawing(color, False).convert("RGB").save(path)
        os.utime(path, (1e9, 1e9))
        cache = LatentCache(tmp_path / "cache", Source(1, lambda index: Image.open(path)), Preparation(SIZE))
        vae = tiny_vae()
        cache.look(vae)
        cache.fill(vae)
        return cache.tables[0]

    red, blue = fill("red"), fill("blue")
    assert not torch.equal(red, blue)
    assert torch.equal(fill("red"), red)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def other_numbers(path: Path) -> None:
    """Of the right shape and type, as another autoencoder might have written."""
    latents = read_tensors(path)["latents"]
    save_tensors(path, {"latents": torch.randn(latents.shape).half()})


SPOILT = {
    "cut": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "no file of this kind": lambda path: path.write_bytes(b"{}" * 500),
    "another name": lambda path: save_tensors(path, {"x": read_tensors(path)["latents"].clone()}),
    "another shape": lambda path: save_tensors(path, {"latents": read_tensors(path)["latents"][:7].clone()}),
    "another type": lambda path: save_tensors(path, {"latents": read_tensors(path)["latents"].float()}),
    "a single number": lambda path: save_tensors(path, {"latents": torch.zeros((), dtype=torch.float16)}),
    "of another run": other_numbers,
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_file_that_is_not_what_it_should_be_is_made_again(what: str, tmp_path: Path, place: Place) -> None:
    filled(tmp_path, place)
    path = only_file(tmp_path)
    right = read_tensors(path)["latents"].clone()
    SPOILT[what](path)
    with pytest.warns(UserWarning, match=f"{path.name} is not what this run would write there: it is made again"):
        (again,) = filled(tmp_path, place).tables
    assert torch.equal(again.view(right.shape), right)
    assert torch.equal(read_tensors(only_file(tmp_path))["latents"], right)


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path, place: Place) -> None:
    (tmp_path / ".latents-0123.ab.tmp.safetensors").write_bytes(b"half")
    filled(tmp_path, place)
    assert only_file(tmp_path).name.startswith("latents-")


@pytest.mark.parametrize("value", [float("nan"), 1e9])
def test_latents_that_are_no_numbers_are_an_error_and_nothing_is_written(value: float, tmp_path: Path) -> None:
    vae = tiny_vae()
    with torch.no_grad():
        vae.encoder.conv_out.bias.fill_(value)
    cache = LatentCache(tmp_path / "cache", Source(2, lambda index: drawing("red", True)), Preparation(SIZE))
    cache.look(vae)
    with pytest.raises(NonFiniteError, match="images 0 to 1"):
        cache.fill(vae)
    assert not list((tmp_path / "cache").iterdir())


def test_a_hash_sees_palettes_and_rotations() -> None:
    image = drawing("red", transparent=False).convert("P")
    recolored = image.copy()
    recolored.putpalette([255 - value for value in image.getpalette() or ()])
    turned = image.copy()
    turned.getexif()[0x0112] = 6
    assert image.tobytes() == recolored.tobytes() == turned.tobytes()
    assert len({b"".join(content(one)) for one in (image, recolored, turned)}) == 3


def test_a_hash_sees_shapes_and_the_color_that_stands_for_transparent() -> None:
    wide = Image.frombytes("L", (6, 2), bytes(range(12)))
    others = [
        Image.frombytes("L", (2, 6), bytes(range(12))),
        Image.frombytes("RGB", (2, 2), bytes(range(12))),
        torch.arange(12, dtype=torch.uint8),
        torch.arange(12, dtype=torch.uint8).view(3, 2, 2),
    ]
    keyed = wide.copy()
    keyed.info["transparency"] = 3
    assert len({b"".join(content(image)) for image in (wide, keyed, *others)}) == 6


# --- captions --------------------------------------------------------------------------------------------------------


def fine_tuning(tmp_path: Path, place: Place, **changes: Any) -> Any:
    if not (tmp_path / "model").exists():
        train(text_settings(tmp_path / "model", place, max_train_steps=1, vocab_size=700))
    chosen = {"pretrained_model_name_or_path": str(tmp_path / "model"), **changes}
    return make_objective(text_settings(tmp_path / "run", place, **chosen))


def test_cached_captions_are_those_of_the_encoder(tmp_path: Path, place: Place) -> None:
    cached, direct = (
        fine_tuning(tmp_path, place, cache_text_embeddings=cache, caption_dropout=0.3) for cache in (True, False)
    )
    for objective in (cached, direct):
        objective.prepare({})
    assert direct.texts is None
    seen = {}
    for batch, other in zip(batches(cached, 6), batches(direct, 6), strict=True):
        assert batch["caption"] == other["caption"]
        assert ("text" in batch, "ids" in batch, "text" in other, "ids" in other) == (True, False, False, True)
        one, two = cached.encode_captions(batch).embeds, direct.encode_captions(other).embeds
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
        for caption, vectors in zip(batch["caption"], one, strict=True):
            assert torch.equal(vectors, seen.setdefault(caption, vectors))
    assert {"", "a red tile"} < seen.keys()
    assert (seen["a red tile"] - seen["blue box"]).abs().max() > 0.01
    # Backgrounds are said in many ways, and what is trained changes: neither is cached.
    for changes in ({"random_background": True}, {"train_text_encoder": True}):
        other = fine_tuning(tmp_path, place, **changes)
        other.prepare({})
        assert other.texts is None


def test_many_captions_are_kept_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: Place) -> None:
    tables = []
    for largest in (1 << 30, 1000):
        monkeypatch.setattr(caches, "LARGEST", largest)
        objective = fine_tuning(tmp_path, place)
        objective.prepare({})
        tables.append(objective.texts.tables[0])
        assert objective.texts.captions[0] == ""
    assert torch.equal(*tables)
    kept = [line for line in Path("/proc/self/maps").read_text().splitlines() if ".captions-" in line]
    assert len(kept) == 1
    assert kept[0].endswith("(deleted)")  # so nothing is left of it when the process ends
    assert not list((tmp_path / "run" / "cache").glob(".captions*"))


def test_captions_that_are_cut_are_told_of(tmp_path: Path, place: Place) -> None:
    long = make_objective(text_settings(tmp_path, place, max_tokens=4))
    with pytest.warns(UserWarning, match="captions have more than 4 tokens and lose their end"):
        long.prepare({})
    fits = {"max_tokens": 12, "vocab_size": 2000, "cache_latents": False}
    make_objective(text_settings(tmp_path, place, **fits)).prepare({})
    said = make_objective(text_settings(tmp_path, place, **fits, random_background=True))
    with pytest.warns(UserWarning, match="on a light green background"):
        said.prepare({})
