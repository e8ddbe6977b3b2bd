"""What loading costs: the weights, once, whatever their type in the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import original
import pytest
import torch
from fresh import run_file
from safetensors.torch import save_file
from torch import nn

from ddim.models import UNet2DConditionModel
from ddim.pipelines.single_file import load_single_file

BOUND = 1.15
FILE = "model.safetensors"
VALUE = 0.01
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
UNET: dict[str, Any] = {
    "block_out_channels": (128, 256, 512),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 512,
}


def filled(network: nn.Module, dtype: torch.dtype) -> None:
    """Give a network on the meta device memory, and a value that no page of zeros could stand for."""
    network.to_empty(device="cpu")
    network.to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(VALUE)


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Some 300 MB of float32, or the same in half the size; in diffusers' or Stable Diffusion's original layout."""
    folder = tmp_path_factory.mktemp("large")

    def write(layout: str, dtype: str) -> Path:
        place = folder / f"{layout}-{dtype}"
        if place.exists():
            return place
        place.mkdir()
        if layout == "diffusers":
            with torch.device("meta"):
                unet = UNet2DConditionModel(**UNET)
            filled(unet, TYPES[dtype])
            unet.save_pretrained(place)
        else:
            structure = {"width": 128, "multiples": (1, 2, 4), "layers": 2, "attend": {0, 1}}
            of_text = {"width": 512, "layers": 2, "words": 999, "positions": 77}
            named = original.shapes(2, of_unet=structure, of_text=of_text)
            made = {key: torch.full(shape, VALUE, dtype=TYPES[dtype]) for key, shape in named.items()}
            save_file(made, place / FILE)
        return place

    return write


def status(field: str) -> int:
    """Bytes, from what Linux says of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def growth(load: Callable[[], list[nn.Module]]) -> tuple[int, int]:
    """The peak of memory over the level before, once every parameter was touched; and the weights' size."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now the present level
    before = status("VmRSS")
    parameters = [parameter for network in load() for parameter in network.parameters()]
    for parameter in parameters:
        parameter.detach().sum()
    return status("VmHWM") - before, sum(parameter.nbytes for parameter in parameters)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("layout", "stored", "wanted"),
    [
        ("diffusers", "float32", "float16"),
        ("original", "float16", "float32"),
        # The others are the same two ways of reading, between other types.
        pytest.param("diffusers", "float32", "float32", marks=pytest.mark.slow),
        pytest.param("diffusers", "float16", "float32", marks=pytest.mark.slow),
        pytest.param("diffusers", "float16", "float16", marks=pytest.mark.slow),
        pytest.param("diffusers", "float16", "bfloat16", marks=pytest.mark.slow),
        pytest.param("original", "float32", "float32", marks=pytest.mark.slow),
        pytest.param("original", "float32", "float16", marks=pytest.mark.slow),
        pytest.param("original", "float16", "float16", marks=pytest.mark.slow),
        pytest.param("original", "float16", "bfloat16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.thin(every=2)
def test_memory_is_the_weights_once(layout: str, stored: str, wanted: str, write: Callable[[str, str], Path]) -> None:
    """In a process of its own, libraries' imports and all else that a first call costs included."""
    rose, weights = json.loads(run_file(__file__, layout, str(write(layout, stored)), wanted))
    assert weights > 140e6
    assert 0.9 * weights < rose < BOUND * weights
    print(f"{layout} {stored} as {wanted}: {rose / weights:.3f} of {weights / 1e6:.0f} MB")


def test_making_a_network_without_memory_imports_no_compiler() -> None:
    """Drawing a normal number on the meta device, as an embedding does, costs a second and 70 MB of imports."""
    code = (
        "import sys; from ddim.models import CLIPTextModel; from ddim.checkpoint.loading import skeleton\n"
        "before = set(sys.modules)\n"
        "with skeleton(): model = CLIPTextModel()\n"
        "assert all(parameter.is_meta for parameter in model.parameters())\n"
        "print(len(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout) < 20


def main(layout: str, path: str, wanted: str) -> None:
    torch.set_num_threads(1)
    dtype = TYPES[wanted]
    if layout == "diffusers":
        rose = growth(lambda: [UNet2DConditionModel.from_pretrained(path, dtype=dtype)])
    else:
        parts = ("unet", "vae", "text_encoder")
        file = f"{path}/{FILE}"
        rose = growth(
            lambda: list(load_single_file(file, parts=parts, dtype=dtype, prediction_type="epsilon").values())
        )
    print(json.dumps(rose))


if __name__ == "__main__":
    main(*sys.argv[1:])
