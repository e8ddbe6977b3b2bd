"""Noise: generators, and seeds of which each image has a stream of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ddim.noise import gaussian_noise, seeded_generators


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_generator_draws_the_whole_batch_and_a_list_one_sample_each() -> None:
    shape, cpu = (3, 2, 4), torch.device("cpu")
    whole = gaussian_noise(shape, generator(5), cpu, torch.float32)
    assert torch.equal(whole, torch.randn(shape, generator=generator(5)))
    each = gaussian_noise(shape, [generator(5), generator(6), generator(5)], cpu, torch.float32)
    assert torch.equal(each[0], each[2])
    assert not torch.equal(each[0], each[1])
    assert torch.equal(each[:1], torch.randn((1, 2, 4), generator=generator(5)))
    torch.manual_seed(3)
    free = gaussian_noise(shape, None, cpu, torch.float64)
    torch.manual_seed(3)
    assert torch.equal(free, torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize("given_", [5, "cpu", [1, 2], [None, None], {"a": 1}])
def test_a_generator_of_another_kind_is_refused(given_: Any) -> None:
    with pytest.raises(TypeError, match="generator"):
        gaussian_noise((2, 3), given_, torch.device("cpu"), torch.float32)


def test_a_list_of_generators_must_fit_the_batch() -> None:
    with pytest.raises(ValueError, match="1 generators were given for a batch of 2"):
        gaussian_noise((2, 3), [generator(0)], torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_the_kth_image_of_a_seed_is_the_same_for_every_batch_size(seed: int) -> None:
    drawn = {n: [torch.randn(4, generator=g) for g in seeded_generators(seed, n)] for n in (1, 2, 5)}
    for count, rows in drawn.items():
        assert len(rows) == count
        for row, other in zip(rows, drawn[5], strict=False):
            assert torch.equal(row, other)
    assert len({tuple(row.tolist()) for row in drawn[5]}) == 5


def test_a_list_of_seeds_gives_each_its_first_image() -> None:
    listed = seeded_generators([3, 9], 2)
    for seed, found in zip([3, 9], listed, strict=True):
        assert found.initial_seed() == seeded_generators(seed, 1)[0].initial_seed()
    assert listed[0].initial_seed() != listed[1].initial_seed()
    # image 1 of a seed is not image 0 of the next one
    assert seeded_generators(3, 2)[1].initial_seed() != seeded_generators(4, 1)[0].initial_seed()


def test_seeds_do_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    seeded_generators(1, 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [-1, True, [1, -2], [1.5, 2], [1, None], "ab"])
def test_a_seed_that_is_none_is_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed"):
        seeded_generators(seed, 2)


@pytest.mark.parametrize("seed", [1.5, None, {1, 2}])
def test_a_seed_of_another_type_is_refused(seed: Any) -> None:
    with pytest.raises(TypeError, match="seed"):
        seeded_generators(seed, 2)


def test_a_list_of_seeds_must_fit_the_count() -> None:
    with pytest.raises(ValueError, match="2 seeds were given for 3 images"):
        seeded_generators([1, 2], 3)
    assert seeded_generators(np.int64(4), 1)[0].initial_seed() == seeded_generators(4, 1)[0].initial_seed()  # type: ignore[arg-type]
