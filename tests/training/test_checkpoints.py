"""What a checkpoint keeps of an optimizer, whichever it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ddim.checkpoint import save_tensors
from ddim.training.checkpoints import load_optimizer, optimizer_tensors


class Eight:
    """An optimizer whose state is as bitsandbytes has it: an int, and tensors in a dictionary in a dictionary."""

    def __init__(self, state: dict[int, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state, "param_groups": []}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state["state"]


def test_the_state_of_an_8_bit_optimizer_comes_back_as_it_was(tmp_path: Path) -> None:
    first: dict[int, Any] = {
        0: {"step": 7, "quantised": {"state1": torch.arange(9, dtype=torch.uint8), "absmax1": torch.rand(3)}},
        1: {"step": 7, "quantised": {"state1": torch.rand(4)}},
    }
    names = ["unet.conv_in.weight", "unet.conv_in.bias"]
    save_tensors(tmp_path / "optimizer.safetensors", optimizer_tensors(Eight(first), names))  # type: ignore[arg-type]
    again = Eight({})
    load_optimizer(again, names, tmp_path)  # type: ignore[arg-type]
    assert again.state.keys() == first.keys()
    for number, values in first.items():
        assert again.state[number]["step"] == 7
        assert isinstance(again.state[number]["step"], int)
        for key, tensor in values["quantised"].items():
            got = again.state[number]["quantised"][key]
            assert got.dtype == tensor.dtype
            assert torch.equal(got, tensor)


def test_the_state_of_adamw_is_tensors_alone(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.rand(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    tensors = optimizer_tensors(optimizer, ["a"])
    assert sorted(tensors) == ["exp_avg:a", "exp_avg_sq:a", "step:a"]
    save_tensors(tmp_path / "optimizer.safetensors", tensors)
    load_optimizer(optimizer, ["a"], tmp_path)
    assert torch.equal(optimizer.state[parameter]["step"], torch.tensor(1.0))
