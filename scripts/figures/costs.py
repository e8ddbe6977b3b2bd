"""How much work and memory Stable Diffusion takes: counted, on tensors that have a shape and no values.

    python scripts/figures/costs.py            # prints the tables
    python scripts/figures/costs.py --write    # docs/costs.json, and the tables of docs/tasks/memory-and-time.md

Floating-point operations are those of matrix products, convolutions and attention, as PyTorch's FlopCounterMode counts
them: a multiplication and an addition are two. Memory is that of the network's own weights, and beside it the most that
is alive at once while it computes, as far as PyTorch's operators show it: what a kernel takes for itself is not seen.
Nothing is computed, so this runs in seconds and gives the same numbers on every machine.
"""

from __future__ import annotations

import argparse
import re
import weakref
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ddim.checkpoint.files import read_json, write_json, write_text
from ddim.models import AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection, UNet2DConditionModel

HERE = Path(__file__).parent.parent.parent
PAGE = HERE / "docs" / "tasks" / "memory-and-time.md"
FIGURES = HERE / "docs" / "costs.json"

# The published configs, of which what is not named is the class's default.
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
OPEN_CLIP_H = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
OPEN_CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
SD1 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD2 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
# Name -> U-Net, text encoders, the sides in pixels at which it draws.
MODELS: Mapping[str, tuple[dict[str, Any], list[tuple[type[nn.Module], dict[str, Any]]], tuple[int, ...]]] = {
    "Stable Diffusion 1.5": (SD1, [(CLIPTextModel, CLIP_L)], (512, 768)),
    "Stable Diffusion 2.1": (SD2, [(CLIPTextModel, OPEN_CLIP_H)], (512, 768)),
    "Stable Diffusion XL": (
        SDXL,
        [(CLIPTextModel, CLIP_L), (CLIPTextModelWithProjection, OPEN_CLIP_G)],
        (512, 1024),
    ),
}


class Alive(TorchDispatchMode):
    """Counts the bytes that operators' results hold, as long as anything refers to them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen = {
            parameter.untyped_storage()._cdata for parameter in network.parameters()
        }  # views of them hold none

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.hold(tensor.untyped_storage())
        return out

    def hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.free, key, size)

    def free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def count(network: nn.Module, call: Callable[..., object], *given: Any, **named: Any) -> dict[str, int]:
    """Parameters of a network, operations of one call of it, and the bytes that the call holds at its peak."""
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            call(*given, **named)
        with Alive(network) as alive:
            call(*given, **named)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": parameters, "flop": counter.get_total_flops(), "bytes": alive.most}


def text_costs(make: type[nn.Module], settings: Mapping[str, Any]) -> dict[str, int]:
    """Of a text encoder, for one text."""
    network = make(**settings).eval()
    return count(network, network, torch.zeros(1, 77, dtype=torch.int64))


def picture_costs(
    unet: UNet2DConditionModel, vae: AutoencoderKL, config: Mapping[str, Any], side: int
) -> dict[str, Any]:
    """Of one evaluation of a U-Net and of the autoencoder's two parts, for one picture of some pixels a side."""
    x = torch.zeros(1, 4, side // 8, side // 8)
    condition = torch.zeros(1, 77, config["cross_attention_dim"])
    added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
    beside = {"added_cond_kwargs": added} if "addition_embed_type" in config else {}
    return {
        "unet": count(unet, unet, x, torch.tensor(500), condition, **beside),
        "decoder": count(vae.decoder, vae.decode, x),
        "encoder": count(vae.encoder, vae.encode, torch.zeros(1, 3, side, side)),
    }


def costs(names: Collection[str] = tuple(MODELS)) -> dict[str, Any]:
    """By model: what its text encoders, its U-Net and its autoencoder cost for one picture."""
    found: dict[str, Any] = {}
    with FakeTensorMode():
        vae = AutoencoderKL(**VAE).eval()
        for name in names:
            config, encoders, sides = MODELS[name]
            unet = UNet2DConditionModel(**config).eval()
            found[name] = {
                "text": [text_costs(*encoder) for encoder in encoders],
                "sides": {str(side): picture_costs(unet, vae, config, side) for side in sides},
            }
    return found


def tflop(parts: Mapping[str, Any], side: str, steps: int, evaluations: int = 2) -> float:
    """Of one picture: its texts, `evaluations` of the U-Net a step (2 under guidance), and decoding."""
    size = parts["sides"][side]
    texts = evaluations * sum(text["flop"] for text in parts["text"])
    return (texts + steps * evaluations * size["unet"]["flop"] + size["decoder"]["flop"]) / 1e12


def in_order(sides: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(sides.items(), key=lambda item: int(item[0]))


def tables(found: Mapping[str, Any]) -> str:
    """The page's tables."""
    lines = [
        "| model | weights, float32 | in half precision | U-Net, parameters | text encoders | autoencoder |",
        "|---|---|---|---|---|---|",
    ]
    for name, parts in found.items():
        (_, size), *_ = in_order(parts["sides"])
        texts = sum(text["parameters"] for text in parts["text"])
        vae = size["encoder"]["parameters"] + size["decoder"]["parameters"]
        unet = size["unet"]["parameters"]
        whole = unet + texts + vae
        lines.append(
            f"| {name} | {4 * whole / 1e9:.1f} GB | {2 * whole / 1e9:.1f} GB | {unet / 1e6:,.0f} M | "
            f"{texts / 1e6:,.0f} M | {vae / 1e6:,.0f} M |"
        )
    lines += [
        "",
        "| model | picture | U-Net, one evaluation | decoding | 50 guided steps, whole picture | 20 guided steps "
        "| 4 steps of a student |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, parts in found.items():
        for side, size in in_order(parts["sides"]):
            whole = " | ".join(f"{tflop(parts, side, *how):,.0f} TFLOP" for how in ((50, 2), (20, 2), (4, 1)))
            unet, decoder = size["unet"]["flop"] / 1e12, size["decoder"]["flop"] / 1e12
            lines.append(f"| {name} | {side}x{side} | {unet:.2f} TFLOP | {decoder:.2f} TFLOP | {whole} |")
    lines += [
        "",
        "| model | picture | beside the weights: U-Net, one sample | U-Net, guided | decoding |",
        "|---|---|---|---|---|",
    ]
    for name, parts in found.items():
        for side, size in in_order(parts["sides"]):
            unet, decoder = size["unet"]["bytes"] / 1e9, size["decoder"]["bytes"] / 1e9
            lines.append(f"| {name} | {side}x{side} | {unet:.1f} GB | {2 * unet:.1f} GB | {decoder:.1f} GB |")
    return "\n".join(lines)


def with_tables(page: str, found: Mapping[str, Any]) -> str:
    """The page's text with its tables made anew."""
    begin, end = "<!-- costs: by scripts/figures/costs.py -->\n", "\n<!-- end of costs -->"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    return re.sub(pattern, lambda _: begin + tables(found) + end, page, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/costs.json and the page's tables")
    options = parser.parse_args()
    found = costs()
    print(tables(found))
    if options.write:
        write_json(FIGURES, found)
        write_text(PAGE, with_tables(PAGE.read_text(encoding="utf-8"), read_json(FIGURES)))


if __name__ == "__main__":
    main()
