"""The reference libraries' networks, with random weights, to compare with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., nn.Module]:
    """Build a reference network, draw all its weights at random, write it to `tmp_path`, return it."""

    def write(cls: Any, /, seed: int = 0, **config: Any) -> nn.Module:
        torch.manual_seed(seed)
        network: nn.Module = cls(**config).eval()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if (
                    "norm" in name
                ):  # their scales start at 1 and their shifts at 0: nothing would show if they were lost
                    parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.2)
        network.save_pretrained(tmp_path)
        return network

    return write
