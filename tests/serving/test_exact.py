"""With `slots`, every bit of a picture is the same whatever is drawn beside it; and what that is made of."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from alone import assert_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_pipeline
from tiny_sd import tiny_reference
from torch import Tensor

from ddim import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from ddim.errors import ConfigError, NonFiniteError
from ddim.serving import Engine, Request, Step
from ddim.serving.exact import ExactBatch
from ddim.serving.samples import Sample

Make = Callable[[str], Any]


@pytest.fixture(scope="module")
def pipes(texts: str, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Small pipelines of each kind, by name; each is made once."""
    made: dict[str, Any] = {}

    def text_pipe(**config: Any) -> Any:
        pipe: Any = DiffusionPipeline.from_pretrained(texts)
        if config:
            torch.manual_seed(0)
            own = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
            pipe = type(pipe).from_pipe(pipe, unet=UNet2DConditionModel(**{**own, **config}).eval())
        return pipe

    def inpainter() -> Any:
        folder = tmp_path_factory.mktemp("nine")
        tiny_reference(folder, 1, in_channels=9)
        return DiffusionPipeline.from_pretrained(folder)

    def hooked() -> Any:
        pipe = text_pipe()
        pipe.unet.mid_block.register_forward_hook(lambda module, given, out: out * 0.9)
        return pipe

    kinds: dict[str, Callable[[], Any]] = {
        "texts": text_pipe,
        "distilled": lambda: text_pipe(time_cond_proj_dim=32),
        "hooked": hooked,
        "inpainter": inpainter,
        "classes": lambda: tiny_pipeline(num_class_embeds=5),
        "variance": lambda: tiny_pipeline(num_class_embeds=5, out_channels=6),
        "thresholding": lambda: tiny_pipeline(scheduler=DDIMScheduler(thresholding=True), num_class_embeds=5),
        "emoji": lambda: DiffusionPipeline.from_pretrained("emoji"),
        "digits": lambda: DiffusionPipeline.from_pretrained("digits"),
    }

    def pipe(kind: str) -> Any:
        if kind not in made:
            made[kind] = kinds[kind]()
            made[kind].set_progress_bar_config(disable=True)
        return made[kind]

    return pipe


def picture(seed: int, side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8))


def mask(side: int) -> Image.Image:
    covered = np.zeros((side, side), np.uint8)
    covered[: side // 2] = 255
    return Image.fromarray(covered)


def any_request(pipe: Any, seed: int, most: int = 7) -> Request:
    """A request of which everything is chosen at random."""
    pick = random.Random(seed)
    order = pick.choice([1, 2])
    given: dict[str, Any] = {
        "seed": pick.choice([seed, 2**40 + seed]),
        "number": pick.choice([0, 0, 2]),
        "steps": pick.randint(2, most),
        "order": order,
        "eta": 0.0 if order == 2 else pick.choice([0.0, 0.4, 1.0, "sigma_hat"]),
        "spacing": pick.choice([None, "leading", "quadratic"]),
        "guidance_scale": pick.choice([1.0, 0.5, 3.0, 3.0, 7.5]),
        "guidance_rescale": pick.choice([0.0, 0.0, 0.7]),
        "guidance_interval": pick.choice([None, None, (200, 700)]),
        "output_type": "pt",
    }
    if not pipe.draws_texts:
        return Request(**given, class_label=pick.choice([None, 0, 1, 4]))
    given |= {"prompt": pick.choice(["a cat", "a dog", "a red heart", ""])}
    given |= {"negative_prompt": pick.choice([None, "a cat", "blue"])}
    side = pipe.picture_shape()[2]
    start = "mask" if pipe.unet.config.in_channels == 9 else pick.choice(["noise", "noise", "picture", "mask"])
    if start == "noise":
        return Request(**given, width=pick.choice([None, None, side + side // 2]))
    if start == "mask":
        given |= {"mask": mask(side)}
    return Request(**given, image=picture(seed, side), strength=pick.choice([0.6, 1.0]))


def drawn(pipe: Any, requests: Sequence[Request], order: Sequence[int], **how: Any) -> list[Tensor]:
    """The pictures of requests, which are handed in in some order."""
    with Engine(pipe, **how) as engine:
        futures = dict(zip(order, engine.submit_all([requests[place] for place in order]), strict=True))
        return [futures[place].result(60).image for place in range(len(requests))]


def assert_exact(pipe: Any, requests: Sequence[Request], slots: int, seed: int, decoded: int = 3) -> None:
    """Check that each picture has the same bits alone, and among the others in some orders and batches."""
    pick = random.Random(seed)
    alone = [drawn(pipe, [request], [0], slots=slots, decoded=decoded)[0] for request in requests]
    places = range(len(requests))
    for max_batch in (2, 5, 16):
        order = pick.sample(places, len(places))
        for request, one, other in zip(
            requests,
            alone,
            drawn(pipe, requests, order, slots=slots, max_batch=max_batch, decoded=decoded),
            strict=True,
        ):
            assert torch.equal(one, other), (max_batch, order, float((one - other).abs().max()), request)
    for request, one in zip(requests, alone, strict=True):
        assert_alone(pipe, request, dataclasses.make_dataclass("Drawn", ["image"])(one))


KINDS = ["texts", "distilled", "hooked", "inpainter", "classes", "variance", "thresholding"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2)
@given(seed=st.integers(0, 10**6), slots=st.sampled_from([1, 3, 16]), decoded=st.sampled_from([1, 2, 4]))
@pytest.mark.thin(fast=["texts"])
def test_the_bits_of_a_picture_do_not_depend_on_companions(
    kind: str, seed: int, slots: int, decoded: int, pipes: Make
) -> None:
    pipe = pipes(kind)
    assert_exact(pipe, [any_request(pipe, seed + place) for place in range(6)], slots, seed, decoded)


@pytest.mark.parametrize(("kind", "slots"), [("emoji", 16), ("digits", 16), ("digits", 5)])
@pytest.mark.thin(fast=["digits-16", "digits-5"])
def test_the_bits_of_bundled_models(kind: str, slots: int, pipes: Make) -> None:
    pipe = pipes(kind)
    assert_exact(pipe, [any_request(pipe, seed, most=4) for seed in range(5)], slots, 0)


def test_without_slots_the_bits_do_depend_on_companions(pipes: Make) -> None:
    """Otherwise the tests above would show nothing."""
    pipe = pipes("texts")
    requests = [any_request(pipe, seed) for seed in range(8)]
    alone = [drawn(pipe, [request], [0])[0] for request in requests]
    assert not all(map(torch.equal, alone, drawn(pipe, requests, range(8))))


# The fast test beside it is test_a_pipeline_draws_the_same_pictures of backends/test_backends.py.
@pytest.mark.slow
def test_openvino() -> None:
    pytest.importorskip("openvino")
    pipe = DiffusionPipeline.from_pretrained("digits").accelerate("openvino", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    requests = [any_request(pipe, seed, most=4) for seed in range(6)]
    assert_exact(pipe, requests, 4, 0)


# The fast test beside it is test_all_else_is_computed_alone_and_by_one_thread.
@pytest.mark.slow
def test_two_threads_give_the_same_bits(pipes: Make) -> None:
    pipe = pipes("emoji")
    requests = [any_request(pipe, seed, most=3) for seed in range(3)]
    one = drawn(pipe, requests, range(3), slots=16)
    torch.set_num_threads(2)
    try:
        two = drawn(pipe, requests, range(3), slots=16)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert all(map(torch.equal, one, two))


# --- pictures that wait to be decoded --------------------------------------------------------------------------------


def sizes_decoded(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the decoder is given each time, from now on."""
    sizes: list[int] = []
    usual = type(pipe).drawn

    def drawn_by(self: Any, x: Tensor, output_type: Any) -> Any:
        sizes.append(len(x))
        return usual(self, x, output_type)

    monkeypatch.setattr(type(pipe), "drawn", drawn_by)
    return sizes


def test_the_decoder_is_always_given_as_many(pipes: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipes("texts")
    sizes = sizes_decoded(pipe, monkeypatch)
    requests = [Request("a", seed=seed, steps=2 + seed % 3, output_type="pt") for seed in range(10)]
    drawn(pipe, requests, range(10), slots=4, decoded=4)
    assert sizes == [4, 4, 4]  # the last one filled up


def test_what_waits_to_be_decoded_does_not_wait_for_long_and_may_be_cancelled(
    pipes: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipes("texts")
    sizes = sizes_decoded(pipe, monkeypatch)
    with Engine(pipe, slots=4, decoded=4) as engine:
        long = engine.submit(Request("a", seed=0, steps=1000))
        short = engine.submit(Request("a", seed=1, steps=1))
        assert short.result(60)
        assert sizes == [4]
        assert not long.done()
        monkeypatch.setattr("ddim.serving.engine._HELD", 10**6)
        waiting = engine.submit(Request("a", seed=1, steps=1))
        ticks = engine.stats().ticks + 20
        while engine.stats().ticks < ticks:
            time.sleep(0.001)
        assert not waiting.done()
        assert engine.stats().running == 2  # it is counted while it waits
        waiting.cancel()
        long.cancel()
    assert engine.stats().running == 0


def test_an_engine_waits_for_a_whole_batch_of_what_is_to_come(pipes: Make) -> None:
    pipe = pipes("texts")
    requests = [Request("a", seed=seed, steps=2) for seed in range(5)]
    with Engine(pipe, slots=4, max_batch=4) as engine:
        with engine.gathering():
            first = [engine.submit(request) for request in requests[:3]]
            time.sleep(0.05)
            assert engine.stats().ticks == 0
            first.append(engine.submit(requests[3]))
            assert all(future.result(60) for future in first)
            last = engine.submit(requests[4])
        assert last.result(60)
        assert engine.stats().batches == {1: 2, 4: 2}
        with engine.gathering():
            one = engine.submit(requests[0])
            engine.close()
        assert one.result(0)


# --- what it is made of ----------------------------------------------------------------------------------------------


def counted(pipe: Any) -> list[set[int]]:
    """The sizes of all that the U-Net is given in a forward pass, from now on."""
    seen: list[set[int]] = []

    def runner(*inputs: Tensor) -> Tensor:
        seen.append({len(x) for x in inputs})
        out: Tensor = pipe.unet.core(*inputs)
        return out

    pipe.unet.runner = runner
    return seen


@pytest.mark.parametrize("slots", [1, 4, 16])
def test_every_forward_pass_has_as_many_evaluations(slots: int, pipes: Make) -> None:
    pipe = pipes("texts")
    seen = counted(pipe)
    try:
        drawn(pipe, [any_request(pipe, seed) for seed in range(9)], range(9), slots=slots)
    finally:
        pipe.unet.runner = None
    assert seen
    assert all(sizes == {slots} for sizes in seen)


def test_all_else_is_computed_alone_and_by_one_thread(pipes: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipes("texts")
    seen: dict[str, set[tuple[int, int]]] = {}

    def watched(owner: Any, name: str) -> None:
        own = getattr(owner, name)

        def watching(it: Any, given: Any, *rest: Any, **named: Any) -> Any:
            seen.setdefault(name, set()).add((len(given), torch.get_num_threads()))
            return own(it, given, *rest, **named)

        monkeypatch.setattr(owner, name, watching)

    for owner, names in {type(pipe): ["embed", "drawn"], type(pipe.unet): ["embed", "project_text"]}.items():
        for name in names:
            watched(owner, name)
    watched(ExactBatch, "reached")
    passes: set[tuple[int, int]] = set()

    def runner(x: Tensor, *inputs: Tensor) -> Tensor:
        passes.add((len(x), torch.get_num_threads()))
        out: Tensor = pipe.unet.core(x, *inputs)
        return out

    monkeypatch.setattr(pipe.unet, "runner", runner)
    requests = [Request(prompt=f"a cat {n}", seed=n, steps=3, output_type="pt") for n in range(4)]
    torch.set_num_threads(2)
    try:
        drawn(pipe, requests, range(4), slots=4)
    finally:
        torch.set_num_threads(1)
    assert passes == {(4, 2)}
    assert set(seen) == {"embed", "drawn", "project_text", "reached"}
    assert all(sizes == {(1, 1)} for sizes in seen.values()), seen


def test_forward_passes_are_filled_by_those_who_wait() -> None:
    """Six samples of four steps are 24 evaluations: six passes of four, none of which has an empty place."""
    pipe = tiny_pipeline(num_class_embeds=4)
    seen = counted(pipe)
    with Engine(pipe, slots=4) as engine:
        for future in engine.submit_all([Request(class_label=1, seed=n, steps=4) for n in range(6)]):
            future.result(60)
        assert engine.stats().batches == {4: 6}
    assert len(seen) == 6


def test_a_step_that_fails_for_one_is_made_once_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is tried again by halves, and whoever could make the step must not make it twice."""
    pipe = tiny_pipeline(num_class_embeds=4)
    others = [Request(seed=n, class_label=1, steps=5, output_type="pt", eta=0.5) for n in range(3)]
    expected = drawn(pipe, others, range(3), slots=4)
    own = ExactBatch.reached

    def failing(self: ExactBatch, samples: Sequence[Sample], *rest: Any) -> Any:
        if any(sample.seed == 9 and sample.position == 4 for sample in samples):
            raise RuntimeError("a last step cannot be made")
        return own(self, samples, *rest)

    monkeypatch.setattr(ExactBatch, "reached", failing)
    with Engine(pipe, slots=4) as engine:
        futures = engine.submit_all([*others[:2], dataclasses.replace(others[0], seed=9), others[2]])
        with pytest.raises(RuntimeError, match="last step"):
            futures.pop(2).result(60)
        assert all(torch.equal(future.result(60).image, one) for future, one in zip(futures, expected, strict=True))


def test_nan_hurts_only_whom_it_concerns() -> None:
    pipe = tiny_pipeline(num_class_embeds=4)
    with torch.no_grad():
        pipe.unet.class_embedding.weight[2] = torch.nan
    requests = [Request(seed=n, class_label=n % 2, steps=4, output_type="pt") for n in range(4)]
    expected = drawn(pipe, requests, range(4), slots=4)
    with Engine(pipe, slots=4) as engine:
        futures = engine.submit_all([Request(seed=9, class_label=2, steps=4), *requests])
        with pytest.raises(NonFiniteError):
            futures[0].result(60)
        assert all(torch.equal(future.result(60).image, one) for future, one in zip(futures[1:], expected, strict=True))


def test_previews_are_the_same_to_the_bit(pipes: Make) -> None:
    pipe = pipes("texts")
    request = Request(prompt="a cat", seed=1, steps=6, previews=2, output_type="pt")

    def previews(*others: Request) -> list[Tensor]:
        with Engine(pipe, slots=4) as engine:
            *_, future = engine.submit_all([*others, request])
            return [e.preview for e in future.events(60) if isinstance(e, Step) and e.preview is not None]

    alone, beside = previews(), previews(*[dataclasses.replace(request, seed=n, steps=9) for n in range(5)])
    assert len(alone) == len(beside) == 2
    assert all(map(torch.equal, alone, beside))


def test_slots_are_said_and_checked() -> None:
    pipe = tiny_pipeline()
    for wrong in (0, -1, True, 2.0, "16"):
        with pytest.raises(ConfigError, match="slots must be a positive int"):
            Engine(pipe, slots=wrong)  # type: ignore[arg-type]
    with Engine(pipe, slots=4) as engine:
        assert engine.slots == 4
        assert repr(engine).endswith("slots=4)")
    with Engine(pipe) as engine:
        assert engine.slots is None
        assert "slots" not in repr(engine)
