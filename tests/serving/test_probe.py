"""What the probe chooses: as asked where bits stand that; less where they depend on companions or on threads."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_pipeline
from tiny_sd import tiny_reference
from torch import Tensor

from ddim import DiffusionPipeline, UNet2DConditionModel
from ddim.errors import ConfigError
from ddim.serving import Engine, Request
from ddim.serving.probe import Exact, probe, usual_slots


def made_wrong(wrong: Callable[[Tensor], Tensor], **config: Any) -> Any:
    """A pipeline of classes, of which something is done to all that the U-Net gives."""
    pipe = tiny_pipeline(**{"num_class_embeds": 5, **config})
    pipe.unet.runner = lambda *inputs: wrong(pipe.unet.core(*inputs))
    return pipe


def test_a_network_that_stands_it_is_run_as_asked() -> None:
    pipe = tiny_pipeline(num_class_embeds=5)
    found = probe(pipe, threads=1, slots=8)
    assert (found.slots, found.threads) == (8, 1)
    assert len(found.digest) == 16
    assert set(found.digest) <= set(string.hexdigits)
    assert probe(pipe, threads=1, slots=8) == found == probe(tiny_pipeline(num_class_embeds=5), 1, 8)
    assert probe(pipe).slots == usual_slots(pipe) == 16


def test_other_weights_and_other_slots_have_another_digest() -> None:
    pipe = tiny_pipeline()
    digests = {probe(pipe, slots=slots).digest for slots in (1, 4, 16)}
    digests.add(probe(tiny_pipeline(seed=1), slots=4).digest)
    assert len(digests) == 4


@pytest.mark.parametrize("wrong", ["mean", "place", "first"])
def test_bits_that_depend_on_companions_need_a_pass_for_each(wrong: str) -> None:
    """A difference in the last bits will do, by who is beside a sample or by its place among them."""

    def change(out: Tensor) -> Tensor:
        if wrong == "mean":
            return out * (1 + 2**-12 * out.mean())
        if wrong == "place":
            return out + 2**-22 * torch.arange(len(out)).view(-1, 1, 1, 1)
        return torch.cat([out[:1] * (1 + 2**-23), out[1:]])

    pipe = made_wrong(change)
    found = probe(pipe, threads=2, slots=8)
    assert found.slots == 1
    asked = [Request(class_label=1, seed=n, steps=3, output_type="pt") for n in range(4)]
    torch.set_num_threads(found.threads)
    try:
        with Engine(pipe, slots=found.slots) as engine:
            alone = [engine.submit(request).result(60).image for request in asked]
            together = [future.result(60).image for future in engine.submit_all(asked[::-1])][::-1]
    finally:
        torch.set_num_threads(1)
    assert all(map(torch.equal, alone, together))


def test_a_decoder_whose_bits_depend_on_companions_is_given_one_at_a_time(
    texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe: Any = DiffusionPipeline.from_pretrained(texts)
    before = probe(pipe, slots=2)
    assert before.decoded == 4
    usual = type(pipe).decode

    def decode(self: Any, x: Tensor, output_type: Any) -> Any:
        return usual(self, x, output_type) + 2**-20 * x.mean()

    monkeypatch.setattr(type(pipe), "decode", decode)
    found = probe(pipe, slots=2)
    assert found.decoded == 1
    assert found.digest != before.digest


def test_bits_that_depend_on_the_number_of_threads_need_one() -> None:
    pipe = made_wrong(lambda out: out * (1 + 2**-22 * torch.get_num_threads()))
    assert probe(pipe, threads=2, slots=8) == probe(pipe, threads=1, slots=8)
    assert probe(pipe, threads=2, slots=8).threads == 1


def test_bits_that_depend_on_companions_only_where_there_are_threads_need_one_thread() -> None:
    pipe = made_wrong(lambda out: out + 2**-22 * (torch.get_num_threads() - 1) * out.mean())
    found = probe(pipe, threads=2, slots=8)
    assert (found.slots, found.threads) == (8, 1)


def test_as_many_threads_as_asked_where_the_bits_are_the_same() -> None:
    pipe = made_wrong(lambda out: torch.ones_like(out) * len(out))  # what no thread can change
    assert probe(pipe, threads=2, slots=8).threads == 2
    assert probe(pipe, threads=2, slots=8).digest == probe(pipe, threads=1, slots=8).digest


def test_a_network_that_is_never_the_same_is_refused() -> None:
    with pytest.raises(ConfigError, match="gives other numbers each time"):
        probe(made_wrong(lambda out: out + torch.rand(())))


def test_nothing_stays_as_the_probe_had_it() -> None:
    before, state = torch.get_num_threads(), torch.get_rng_state()
    pipe = tiny_pipeline()
    probe(pipe, threads=before + 2)
    with pytest.raises(ConfigError):
        probe(made_wrong(lambda out: out + torch.rand(())), threads=before + 2)
    assert torch.get_num_threads() == before
    assert pipe.unet.runner is None
    torch.set_rng_state(state)


@pytest.mark.parametrize(("threads", "slots", "named"), [(0, None, "threads"), (True, 4, "threads"), (1, 0, "slots")])
def test_numbers_that_are_none(threads: Any, slots: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=f"{named} must be a positive int"):
        probe(tiny_pipeline(), threads, slots)


def test_every_kind_of_model(texts: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("nine")
    tiny_reference(folder, 1, in_channels=9)
    pipe: Any = DiffusionPipeline.from_pretrained(texts)
    config = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
    student = UNet2DConditionModel(**{**config, "time_cond_proj_dim": 32}).eval()
    pipes = [
        pipe,
        type(pipe).from_pipe(pipe, unet=student),
        DiffusionPipeline.from_pretrained(folder),
        DiffusionPipeline.from_pretrained(texts, dtype=torch.bfloat16),
        tiny_pipeline(out_channels=6),
        DiffusionPipeline.from_pretrained("digits"),
    ]
    assert len({probe(pipe, slots=4).digest for pipe in pipes}) == len(pipes)
    with pytest.raises(ConfigError, match="not a AutoencoderKL"):
        probe(pipe.vae)


def test_the_digest_sees_every_network(texts: str) -> None:
    pipe: Any = DiffusionPipeline.from_pretrained(texts)
    digests = [probe(pipe, slots=2).digest]
    for network in (pipe.vae.decoder, pipe.vae.encoder, pipe.text_encoder):
        with torch.no_grad():
            for weight in network.parameters():
                weight.mul_(1.01)
        digests.append(probe(pipe, slots=2).digest)
    assert len(set(digests)) == 4


# The fast test beside it is test_every_kind_of_model.
@pytest.mark.slow
def test_openvino() -> None:
    pytest.importorskip("openvino")
    eager: Any = DiffusionPipeline.from_pretrained("digits")
    fast: Any = DiffusionPipeline.from_pretrained("digits").accelerate("openvino")
    found, again = probe(fast, threads=2), probe(fast, threads=1)
    assert found.slots == again.slots == 16
    assert found.digest == again.digest != probe(eager).digest


# The fast test beside it is test_every_kind_of_model.
@pytest.mark.slow
def test_the_emoji_model_may_have_a_full_batch() -> None:
    found = probe(DiffusionPipeline.from_pretrained("emoji"), threads=1)
    assert found == Exact(16, 1, found.digest, 4)


def test_large_pictures_have_fewer_slots() -> None:
    assert usual_slots(tiny_pipeline(sample_size=64)) == 4
    assert usual_slots(tiny_pipeline(sample_size=256)) == 2
