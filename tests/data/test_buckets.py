"""Aspect-ratio buckets: their sizes, which picture goes where, and that an epoch shows each picture once."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ddim.data import Choice, Preparation, Source
from ddim.data.buckets import BucketBatches, Buckets, Rules, bucket_sizes, nearest, own_size, usual_step
from ddim.data.stream import CaptionedStream, Draw, Stream
from ddim.data.usable import PictureFiles
from ddim.errors import ConfigError

RESOLUTIONS = st.sampled_from([(64, 16), (512, 64), (768, 64), (1024, 64), (1024, 32), (100, 8)])
SIDES = st.integers(1, 5000)


def far(one: tuple[int, int], other: tuple[int, int]) -> float:
    """How far two proportions are from each other."""
    return abs(math.log(one[0] / one[1]) - math.log(other[0] / other[1]))


# --- sizes -----------------------------------------------------------------------------------------------------------


@given(RESOLUTIONS)
def test_buckets_have_at_most_the_area_and_are_as_large_as_they_can_be(chosen: tuple[int, int]) -> None:
    resolution, step = chosen
    least, most = resolution // 2, 2 * resolution
    sizes = bucket_sizes(resolution, step, least, most)
    assert len(set(sizes)) == len(sizes)
    assert {(height, width) for width, height in sizes} == set(sizes)
    for width, height in sizes:
        assert width % step == height % step == 0
        assert least <= min(width, height) <= max(width, height) <= most
        assert width * height <= resolution**2
        longest = [min(resolution**2 // side // step * step, most // step * step) for side in (width, height)]
        assert height == longest[0] or width == longest[1]
    if resolution % step == 0:
        assert sizes[0] == (resolution, resolution)


def test_buckets_of_known_models() -> None:
    assert len(bucket_sizes(512, 64, 256, 1024)) == 17
    # Seven proportions of SDXL's, as its paper lists them, are among these.
    paper = {(1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216), (1344, 768), (1536, 640)}
    assert paper <= set(bucket_sizes(1024, 64, 512, 2048))
    assert bucket_sizes(64, 16, 32, 128)[0] == (64, 64)
    assert usual_step(64, 8) == 8


def test_where_no_bucket_is_possible_the_error_says_what_to_change() -> None:
    with pytest.raises(ConfigError, match="give a smaller min_bucket_reso or bucket_reso_steps"):
        bucket_sizes(100, 64, 65, 127)


@given(SIDES, SIDES, RESOLUTIONS)
def test_a_picture_goes_to_the_nearest_proportions_and_its_transpose_to_the_transposed(
    width: int, height: int, chosen: tuple[int, int]
) -> None:
    resolution, step = chosen
    sizes = bucket_sizes(resolution, step, resolution // 2, 2 * resolution)
    size, turned = sizes[nearest((width, height), sizes)], sizes[nearest((height, width), sizes)]
    assert far(size, (width, height)) <= min(far(each, (width, height)) for each in sizes) + 1e-12
    assert far(turned, (height, width)) == pytest.approx(far(size, (width, height)))


def test_of_equal_proportions_the_first_is_taken() -> None:
    assert nearest((10, 10), [(512, 512), (256, 256)]) == 0
    assert nearest((10, 10), [(256, 128), (256, 256), (512, 512)]) == 1


@given(SIDES, SIDES, RESOLUTIONS)
def test_a_size_of_its_own_enlarges_nothing_but_sides_of_less_than_a_step(
    width: int, height: int, chosen: tuple[int, int]
) -> None:
    resolution, step = chosen
    size = own_size((width, height), resolution, step, 2 * resolution)
    assert size[0] * size[1] <= max(resolution**2, step**2)
    assert max(size) <= 2 * resolution
    for side, own in zip(size, (width, height), strict=True):
        assert side % step == 0
        assert side >= step
        assert side <= max(own, step)


def table_of(*owns: tuple[int, int]) -> Source:
    return Source(len(owns), lambda index: Image.new("RGB", owns[index]))


def test_a_picture_that_would_be_enlarged_gets_a_size_of_its_own_if_asked() -> None:
    source = table_of((2000, 2000), (300, 200), (600, 1200), (600, 400))
    plain = Rules(512, 64, 256, 1024).buckets(source)
    assert [plain.size(index) for index in range(4)] == [(512, 512), (640, 384), (320, 704), (640, 384)]
    assert plain.enlarged() == 2
    kept = Rules(512, 64, 256, 1024, no_upscale=True).buckets(source)
    assert [kept.size(index) for index in range(4)] == [(512, 512), (256, 192), (320, 704), (576, 384)]
    assert kept.enlarged() == 0
    assert Rules(512, 64, 256, 1024, given=((640, 320),)).buckets(source).sizes == ((640, 320),)


# --- batches ---------------------------------------------------------------------------------------------------------


def made(counts: list[int], seed: int) -> Buckets:
    """Buckets with so many pictures each, in a random order of the source."""
    of = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(seed).shuffle(of)
    sizes = tuple((64, 64 * (number + 1)) for number in range(len(counts)))
    return Buckets(sizes, of, tuple(sizes[number] for number in of))


COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=7)


@settings(deadline=None)
@given(COUNTS, st.integers(1, 9), st.integers(1, 3), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_shows_each_picture_once_in_batches_of_one_bucket(
    counts: list[int], size: int, processes: int, seed: int, epoch: int
) -> None:
    buckets, whole = made(counts, seed), size * processes
    per_epoch = buckets.per_epoch(whole)
    batches = BucketBatches(buckets, seed, size, range(0), 0, processes).epoch(epoch)
    assert len(batches) == per_epoch == sum(math.ceil(count / whole) for count in counts)
    assert sorted(index for batch in batches for index in batch.indices) == list(range(sum(counts)))
    assert [batch.first for batch in batches] == [
        epoch * sum(counts) + sum(len(before.indices) for before in batches[:number]) for number in range(per_epoch)
    ]
    short = [0] * len(counts)
    for batch in batches:
        (bucket,) = {int(buckets.of[index]) for index in batch.indices}
        short[bucket] += len(batch.indices) < whole
        assert len(batch.indices) <= whole
    assert max(short) <= 1
    losses = np.random.default_rng(seed).random(sum(counts))
    numbers = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    shares = [[*BucketBatches(buckets, seed, size, numbers, process, processes)] for process in range(processes)]
    for batch, *dealt in zip(batches, *shares, strict=True):
        assert len({len(draws) for draws in dealt}) == 1  # no process waits for another
        assert 1 <= len(dealt[0]) <= size
        shown = [draw for draws in dealt for draw in draws if draw.weight]
        assert sorted(draw.image for draw in shown) == sorted(batch.indices)
        assert sorted(draw.position for draw in shown) == list(range(batch.first, batch.first + len(batch.indices)))
        for draw in (draw for draws in dealt for draw in draws):
            assert batch.indices[draw.position - batch.first] == draw.image
        # Every picture counts the same, whether its batch is short or not.
        mean = np.mean([np.mean([draw.weight * losses[draw.image] for draw in draws]) for draws in dealt])
        assert mean == pytest.approx(losses[batch.indices].sum() / whole)


@settings(deadline=None)
@given(COUNTS, st.integers(1, 9), st.integers(0, 40), st.integers(0, 5))
def test_a_run_that_goes_on_at_any_batch_reads_what_it_would_have_read(
    counts: list[int], size: int, stop: int, seed: int
) -> None:
    buckets = made(counts, seed)
    whole = [*BucketBatches(buckets, seed, size, range(40))]
    assert [*BucketBatches(buckets, seed, size, range(stop, 40))] == whole[stop:]
    assert len(BucketBatches(buckets, seed, size, range(stop, 40))) == 40 - stop


def test_the_order_depends_on_the_seed_and_the_epoch_and_mixes_the_buckets() -> None:
    buckets = made([40, 40, 3], 0)

    def order(seed: int, epoch: int) -> list[int]:
        return [int(i) for batch in BucketBatches(buckets, seed, 4, range(0)).epoch(epoch) for i in batch.indices]

    assert len({tuple(order(*key)) for key in ((0, 0), (0, 1), (1, 0))}) == 3
    of = [int(buckets.of[index]) for index in order(0, 0)]
    assert sum(one != other for one, other in zip(of, of[1:], strict=False)) > 5


# --- pictures --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 9), st.integers(1, 9), st.booleans())
@settings(deadline=None, max_examples=50)
def test_a_picture_covers_its_bucket_and_is_cropped_as_the_frame_says(
    width: int, height: int, wide: int, high: int, center: bool
) -> None:
    size = (8 * wide, 8 * high)
    prepare = Preparation(64, center_crop=center, random_flip=True)
    choice = prepare.choose(np.random.default_rng(width))
    ramp = np.stack(np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height)), -1)
    image = Image.fromarray(np.concatenate([ramp, ramp[..., :1]], -1).astype(np.uint8))
    tensor = prepare(image, choice, size)
    assert tensor.shape == (3, size[1], size[0])
    frame = prepare.frame((width, height), choice, size)
    assert 0 <= frame.left <= frame.width - size[0]
    assert 0 <= frame.top <= frame.height - size[1]
    assert frame.width == size[0] or frame.height == size[1]  # no more is cropped than has to be
    assert frame.width / width == pytest.approx(frame.height / height, abs=0.5 / min(width, height) + 1e-9)
    box = (frame.left, frame.top, frame.left + size[0], frame.top + size[1])
    expected = image.resize((frame.width, frame.height), Image.Resampling.LANCZOS).crop(box)
    expected = ImageOps.mirror(expected) if choice.flip else expected
    whole = torch.from_numpy(np.asarray(expected, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1)
    if max(frame.width / size[0], frame.height / size[1]) <= 16:
        assert torch.equal(tensor, whole)
    else:  # cropped first: the filter's edge is another one
        assert (tensor - whole).abs().max() < 0.2


def write(folder: Path, name: str, size: tuple[int, int], turned: int = 1, **options: Any) -> Path:
    """A picture whose upper half is red and whose lower half is blue, after it was turned."""
    upright = Image.new("RGB", size, "red")
    upright.paste("blue", (0, size[1] // 2, size[0], size[1]))
    exif = Image.Exif()
    exif[0x0112] = turned
    stored = upright.transpose(Image.Transpose.ROTATE_90) if turned == 6 else upright
    stored.save(folder / name, exif=exif, **options)
    return folder / name


def test_odd_shapes_and_turned_pictures_get_the_bucket_of_how_they_look(tmp_path: Path) -> None:
    files = [
        write(tmp_path, "needle.png", (2, 1000)),
        write(tmp_path, "tiny.png", (3, 3)),
        write(tmp_path, "turned.jpg", (30, 90), turned=6, quality=95, subsampling=0),
        write(tmp_path, "large.jpg", (1700, 1201), quality=95),
        write(tmp_path, "turned.png", (90, 30), turned=6),
        write(tmp_path, "point.png", (1, 1)),
    ]
    source = Source(len(files), PictureFiles(files), captions=[("a",)] * len(files))
    assert [source.size(i) for i in range(6)] == [(2, 1000), (3, 3), (30, 90), (1700, 1201), (90, 30), (1, 1)]
    buckets = Rules(64, 16, 32, 128).buckets(source)
    sizes = [(32, 128), (64, 64), (32, 96), (80, 48), (96, 32), (64, 64)]
    assert [buckets.size(index) for index in range(6)] == sizes
    stream = CaptionedStream(source, Preparation(64), 0, buckets=buckets)
    for number, (width, height) in enumerate(sizes[:-1]):
        image = stream[Draw(number, number, 1.0)]["image"]
        assert image.shape == (3, height, width)
        third = height // 3
        assert image[0, :third].mean() > 0.8 > -0.8 > image[0, -third:].mean()  # red above
        assert image[2, -third:].mean() > 0.8 > -0.8 > image[2, :third].mean()


def test_what_is_cropped_of_a_picture_does_not_depend_on_how_small_it_was_decoded(tmp_path: Path) -> None:
    path = write(tmp_path, "large.jpg", (4001, 2703), quality=90)
    files = PictureFiles([path])
    small = files.at_least(64)(0)
    assert small.size < (4001, 2703)
    one, other = (
        Preparation(64)(image, Choice(), (80, 48), (4001, 2703)) for image in (small, files(0))
    )
    assert one.shape == other.shape == (3, 48, 80)
    assert (one - other).abs().mean() < 0.03


def test_how_much_is_cropped() -> None:
    buckets = Buckets(((64, 64), (128, 32)), np.array([0, 0, 1]), ((64, 64), (100, 50), (40, 10)))
    assert buckets.cropped() == pytest.approx((0.5 / 3, 0.5))


def test_a_random_table_of_shapes_wastes_little() -> None:
    rng = random.Random(0)
    owns = [(rng.randint(300, 1500), rng.randint(300, 1500)) for _ in range(300)]
    buckets = Rules(512, 64, 256, 1024).buckets(table_of(*owns))
    mean, most = buckets.cropped()
    assert mean < 0.06
    assert most < 0.25
