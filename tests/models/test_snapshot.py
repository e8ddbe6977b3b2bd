"""Every way to change weights is noticed: at the next look or, where that costs too much, by the next run."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_unet
from torch import Tensor, nn

from ddim.models import UNet2DModel
from ddim.models.core import Held, hold, holding
from ddim.models.snapshot import Snapshot, Written


def weight(unet: UNet2DModel) -> nn.Parameter:
    return unet.mid_block.resnets[0].conv1.weight  # type: ignore[union-attr]


def set_data(unet: UNet2DModel, value: Tensor) -> None:
    weight(unet).data = value


def assigned(unet: UNet2DModel) -> None:
    unet.load_state_dict({name: tensor.clone() for name, tensor in unet.state_dict().items()}, assign=True)


def one_step(unet: UNet2DModel, kind: Any, **options: Any) -> None:
    optimizer = kind(unet.parameters(), lr=0.1, **options)
    for parameter in unet.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def put(unet: UNet2DModel, **changes: Any) -> None:
    for name, value in changes.items():
        setattr(unet.mid_block.resnets[0].conv1, name, value)  # type: ignore[union-attr]


def in_inference_mode(unet: UNet2DModel) -> None:
    with torch.inference_mode():
        weight(unet).mul_(2)


def by_numpy(unet: UNet2DModel) -> None:
    array = weight(unet).detach().numpy()
    array *= 2


# Ways that leave a trace, or change more than a single number: noticed at the next look.
AT_ONCE: dict[str, Callable[[UNet2DModel], Any]] = {
    "in place": lambda unet: weight(unet).mul_(2),
    "one number in place": lambda unet: weight(unet)[0, 0, 0, 0].add_(1),
    "copy_": lambda unet: weight(unet).copy_(torch.ones(())),
    "through a view": lambda unet: weight(unet).view(-1)[1:3].zero_(),
    "other memory": lambda unet: set_data(unet, weight(unet) * 2),
    "the same numbers in other memory": lambda unet: set_data(unet, weight(unet).detach().clone()),
    "data in place": lambda unet: weight(unet).data.mul_(2),
    "data +=, as peft merges": lambda unet: set_data(unet, weight(unet).data.__iadd__(1)),
    "data.copy_": lambda unet: weight(unet).data.copy_(torch.ones(())),
    "numpy": by_numpy,
    "inference mode": in_inference_mode,
    "load_state_dict": lambda unet: unet.load_state_dict({k: v * 2 for k, v in unet.state_dict().items()}),
    "load_state_dict(assign=True)": assigned,
    "a type and back": lambda unet: unet.to(torch.float64).to(torch.float32),
    "half": lambda unet: unet.half(),
    "another parameter": lambda unet: put(unet, weight=nn.Parameter(weight(unet) * 2)),
    "another parameter of the same memory": lambda unet: put(unet, weight=nn.Parameter(weight(unet).data)),
    "without a bias": lambda unet: put(unet, bias=None),
    "another module": lambda unet: setattr(unet, "conv_out", nn.Conv2d(16, 3, 3, padding=1)),
    "another module deep inside": lambda unet: setattr(unet.mid_block.resnets[0], "conv1", nn.Conv2d(32, 32, 1)),
    "AdamW": lambda unet: one_step(unet, torch.optim.AdamW),
    "AdamW, fused": lambda unet: one_step(unet, torch.optim.AdamW, fused=True),
    "SGD, fused": lambda unet: one_step(unet, torch.optim.SGD, fused=True),
    "swapped": lambda unet: torch.utils.swap_tensors(weight(unet), nn.Parameter(torch.zeros(32, 32, 3, 3))),
}
# Ways that leave none: noticed by whoever looks at every number and every setting, as a run does at its beginning.
LATER: dict[str, Callable[[UNet2DModel], Any]] = {
    "one number of data": lambda unet: weight(unet).data[0, 0, 0].fill_(9),
    "data transposed": lambda unet: set_data(unet, weight(unet).data.transpose(0, 1)),
    "two numbers that change places": lambda unet: (
        weight(unet).data[0, 0, 0, :2].copy_(weight(unet).data[0, 0, 0, :2].flip(0))
    ),
    "a setting": lambda unet: put(unet, padding=(0, 0)),
}


@torch.no_grad()
@pytest.mark.parametrize("way", AT_ONCE)
def test_a_change_is_noticed_at_the_next_look(way: str) -> None:
    unet = tiny_unet()
    before = unet.look()
    assert unet.look() is before
    AT_ONCE[way](unet)
    assert not before.is_current()
    after = unet.look()
    assert after is not before
    assert unet.look() is after
    assert not before.is_current()


@torch.no_grad()
@pytest.mark.parametrize("way", [*AT_ONCE, *LATER])
def test_a_change_is_noticed_by_one_who_looks_at_everything(way: str) -> None:
    unet = tiny_unet()
    snapshot = Snapshot(unet)
    snapshot.memorize()
    assert snapshot.is_unchanged()
    {**AT_ONCE, **LATER}[way](unet)
    assert not snapshot.is_unchanged()


@pytest.mark.parametrize("way", ["one number in place", "one number of data", "data in place"])
def test_networks_that_were_made_in_inference_mode_are_read_at_each_look(way: str) -> None:
    with torch.inference_mode():
        unet = tiny_unet()
        before = unet.look()
        assert before.is_current()
        {**AT_ONCE, **LATER}[way](unet)
        assert not before.is_current()
    assert unet.look().is_current()


def test_what_changes_nothing_is_no_change() -> None:
    unet = tiny_unet()
    before = unet.look()
    before.memorize()
    unet.requires_grad_(False)
    unet.to("cpu")
    unet.to(torch.float32)
    unet.state_dict()
    with torch.no_grad():
        unet(torch.zeros(1, 3, 8, 8), 5)
    gc.collect()
    assert unet.look() is before
    assert before.is_unchanged()


def test_an_address_is_not_used_again_while_somebody_compares_with_it() -> None:
    unet = tiny_unet()
    original, first = weight(unet).data, torch.ones(32, 32, 3, 3)
    for _ in range(4):
        with torch.no_grad():
            weight(unet).data = first.clone()
            snapshot = unet.look()
            weight(unet).data = original
            gc.collect()
            weight(unet).data = first.clone() * 3
        assert not snapshot.is_current()


def test_buffers_are_watched() -> None:
    unet = tiny_unet()
    unet.conv_norm_out = nn.BatchNorm2d(16)
    before = unet.look()
    unet.conv_norm_out.running_mean.add_(1)
    assert not before.is_current()


def test_somebody_may_say_that_weights_have_changed() -> None:
    unet = tiny_unet()
    before = unet.look()
    unet.weights_changed()
    assert unet.look() is not before


def test_a_snapshot_keeps_no_network_and_is_not_copied_with_one() -> None:
    unet = tiny_unet()
    snapshot = unet.look()
    other = copy.deepcopy(unet)
    assert other.look() is not snapshot
    assert other.look() is not unet.look()
    again = pickle.loads(pickle.dumps(unet))
    assert again.look() is not snapshot
    gone = weakref.ref(unet)
    del unet
    assert gone() is None


def test_a_snapshot_that_nobody_needs_keeps_no_memory() -> None:
    unet = tiny_unet()
    memory = weakref.ref(weight(unet).untyped_storage())
    unet.look()
    unet.to(torch.float64)
    assert memory() is None


def test_written() -> None:
    text = torch.zeros(2, 3)
    written = Written(text)
    assert not written.has_changed()
    text[0].add_(1)
    assert written.has_changed()
    assert not written.has_changed()
    with torch.inference_mode():
        text = torch.zeros(2, 3)
        written = Written(text)
        assert not written.has_changed()
        text[0].add_(1)
        assert written.has_changed()


# --- held for a run --------------------------------------------------------------------------------------------------


def test_a_run_keeps_the_runner_that_it_began_with() -> None:
    unet = tiny_unet()
    calls: list[str] = []

    def runner(name: str) -> Callable[..., Tensor]:
        def run(*inputs: Tensor) -> Tensor:
            calls.append(name)
            return unet.core(*inputs)

        return run

    def step() -> None:
        with torch.no_grad():
            unet(torch.zeros(1, 3, 8, 8), 5)

    unet.runner = runner("first")
    with holding([unet, None, "no network"]):
        step()
        unet.runner = runner("second")
        step()
        with hold(unet):
            step()
            unet.runner = None
            step()
        step()
    step()
    unet.runner = runner("third")
    step()
    assert calls == ["first"] * 5 + ["third"]


def test_a_run_looks_once_a_step() -> None:
    unet = tiny_unet()
    held = Held(unet)
    first = held.look()
    assert first is not None
    with held:
        assert unet.look() is first  # without a look, whatever happened
        with torch.no_grad():
            weight(unet).add_(1)
        assert unet.look() is not first
    assert held.look() is not first


def test_a_run_within_a_run_has_looks_of_its_own() -> None:
    unet = tiny_unet()
    with holding([unet]):
        outer = hold(unet)
        assert hold(unet) is outer
        with holding([unet]):
            assert hold(unet) is not outer
            hold(unet).is_alone = True
        assert hold(unet) is outer
        assert not outer.is_alone
    assert hold(unet) is not hold(unet)


@torch.no_grad()
def test_a_run_without_callbacks_looks_for_what_other_threads_do_in_a_hundredth_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, looks = [0.0], []
    monkeypatch.setattr("ddim.models.core.time.perf_counter", lambda: now[0])
    unet = tiny_unet()
    look = unet.look

    def slow() -> Snapshot:
        looks.append(now[0])
        now[0] += 1.0
        return look()

    monkeypatch.setattr(unet, "look", slow)
    held = Held(unet)
    held.is_alone = True
    first = held.look()
    for _ in range(1000):
        now[0] += 0.5
        assert held.look() is first
    assert len(looks) == 2 + 4  # the first to know it, the second to know what a look takes, then one in 100
    weight(unet).add_(1)
    now[0] += 100
    assert held.look() is not first
    held.is_alone = False
    looks.clear()
    held.look()
    held.look()
    assert len(looks) == 2
