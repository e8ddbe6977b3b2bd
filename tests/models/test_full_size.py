"""Stable Diffusion at its full size: every name and shape on the meta device, and one real forward.

U-Nets of 1.5, 2.1 and others, the autoencoder and the text encoders are compared with the reference libraries' in
`models/`, the original layout of all of them in `test_single_file.py`; here is what the pipelines' folders add.
"""

from __future__ import annotations

import json
import math
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh import run_file
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddim.checkpoint.loading import skeleton
from ddim.models import UNet2DConditionModel
from ddim.scheduler import DDIMScheduler

# unet/config.json of the published Stable Diffusion 2 models in full.
SD2: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.10.0.dev0",
    "act_fn": "silu",
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 1024,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "use_linear_projection": True,
}
SD21_V = {**SD2, "sample_size": 96, "upcast_attention": True}
INPAINTING = {**SD2, "in_channels": 9}
SCHEDULERS = {
    "2 base": {"prediction_type": "epsilon"},
    "2.1 v": {"prediction_type": "v_prediction"},
}


def in_shape(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


@pytest.mark.parametrize(("config", "parameters"), [(SD21_V, 865_910_724), (INPAINTING, 865_925_124)])
def test_the_published_configs_make_diffusers_networks(config: dict[str, Any], parameters: int) -> None:
    import diffusers

    with skeleton():
        ours = UNet2DConditionModel.from_config(config)
        theirs = diffusers.UNet2DConditionModel.from_config(config)
    assert in_shape(ours) == in_shape(theirs)
    assert sum(parameter.numel() for parameter in ours.parameters()) == parameters


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_published_schedulers_become_ddim(name: str) -> None:
    """The folders name PNDM or DDIM; either way these are the numbers that a run reads."""
    published = {
        "_class_name": "PNDMScheduler" if name == "2 base" else "DDIMScheduler",
        "_diffusers_version": "0.8.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        **SCHEDULERS[name],
    }
    plan = DDIMScheduler.from_config(published).plan(50)
    assert plan.prediction_type == SCHEDULERS[name]["prediction_type"]
    assert plan.timesteps[:2] == (981, 961)
    assert plan.timesteps[-1] == 1


# --- one real forward ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_forward_is_diffusers(tmp_path: Path) -> None:
    """Batch 1, 64x64 latents, float32; each network in a process of its own, for the sake of the peaks."""
    outputs = {}
    for which in ("ours", "diffusers"):
        path = tmp_path / f"{which}.safetensors"
        printed = run_file(__file__, which, str(path), timeout=1800)
        print(f"{which}: {printed.strip()}")
        outputs[which] = load_file(path)["out"].double()
        cost = json.loads(printed)
        assert cost["peak_gb"] < 12
    error = (outputs["ours"] - outputs["diffusers"]).norm() / outputs["diffusers"].norm()
    print(f"relative error {error:.1e}")
    assert outputs["diffusers"].std() > 0.05
    assert error < 1e-4


@torch.no_grad()
def draw(network: nn.Module) -> nn.Module:
    """The same values on both sides, by the parameters' names; signals keep their size on the way."""
    network.to_empty(device="cpu")
    for name, parameter in network.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if parameter.ndim == 1:
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.1, generator=generator)
        else:
            parameter.normal_(0.0, math.prod(parameter.shape[1:]) ** -0.5, generator=generator)
    return network.eval()


@torch.no_grad()
def forward(which: str, path: str) -> None:
    if which == "ours":
        with skeleton():
            network: Any = UNet2DConditionModel.from_config(SD21_V)
    else:
        import diffusers

        with skeleton():
            network = diffusers.UNet2DConditionModel.from_config(SD21_V)
    draw(network)

    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(shape, generator=generator) for shape in ((1, 4, 64, 64), (1, 77, 1024)))
    network(x[..., :8, :8], 501, text)  # threads and buffers are made
    level = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now the present level
    start = time.perf_counter()
    out: Tensor = network(x, 501, text).sample
    seconds = time.perf_counter() - start
    save_file({"out": out.contiguous()}, path)
    peak = status("VmHWM")
    cost = {"seconds": round(seconds, 2), "peak_gb": peak / 1e9, "over_weights_gb": (peak - level) / 1e9}
    print(json.dumps({**cost, "threads": torch.get_num_threads()}))


def status(field: str) -> int:
    """Bytes, from what Linux says of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


if __name__ == "__main__":
    forward(*sys.argv[1:])
