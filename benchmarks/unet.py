"""One forward of a text-to-image U-Net beside diffusers', on the same weights, and what computing once spares.

    python benchmarks/run.py unet

A text's keys and values and every timestep's embedding are the same at all steps of a run: `project_text` and
`project_time` make them once. "hoisted" is a forward that is given both; making them is not in its time.
"""

from __future__ import annotations

import torch
from common import measure

from ddim.models import UNet2DConditionModel

SMALL = {
    "sample_size": 16,
    "block_out_channels": (64, 128, 128),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
    "norm_num_groups": 32,
}
BATCHES = (2, 32)


@torch.inference_mode()
def row(config: dict[str, object], batch: int, rounds: int) -> tuple[dict[str, float], float, float]:
    """Medians in microseconds, the largest relative difference to diffusers, and the parameters in millions."""
    import diffusers

    torch.manual_seed(0)
    ours = UNet2DConditionModel(**config).eval()  # type: ignore[arg-type]
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**config).eval()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    size = ours.config.sample_size
    x, text = torch.randn(batch, 4, size, size), torch.randn(batch, 77, ours.config.cross_attention_dim)
    t = torch.tensor(500)
    texts, times = ours.project_text(text), ours.project_time(torch.tensor([500]))
    reference = theirs(x, t, text).sample
    error = float((ours(x, t, text_cache=texts, time_cache=times).sample - reference).norm() / reference.norm())
    medians = measure(
        {
            "diffusers": lambda: theirs(x, t, text).sample,
            "ours": lambda: ours(x, t, text).sample,
            "hoisted": lambda: ours(x, t, text_cache=texts, time_cache=times).sample,
        },
        rounds,
        budget=0.3,
    )
    return medians, error, sum(p.numel() for p in ours.parameters()) / 1e6


def section(rounds: int) -> str:
    """The section of docs/benchmarks.md."""
    lines = [
        "## The text-to-image U-Net, one forward",
        "",
        f"`python benchmarks/run.py unet --rounds {rounds}` (seed 0, random weights, float32, 77 tokens). Hoisted: the "
        "text's keys and values and the timesteps' embeddings, which do not change between steps, are given.",
        "",
        "| U-Net | batch | diffusers ms | ours | hoisted | hoisting alone | relative difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for batch in BATCHES:
        times, error, millions = row(SMALL, batch, rounds)
        base = times["diffusers"]
        cells = [f"{times[name] / 1e3:.1f} ms, **{base / times[name]:.2f}x**" for name in ("ours", "hoisted")]
        lines.append(
            f"| 16x16 latents, {millions:.1f} M | {batch} | {base / 1e3:.1f} | {' | '.join(cells)} "
            f"| {times['ours'] / times['hoisted']:.2f}x | {error:.1e} |"
        )
        print(lines[-1], flush=True)
    return "\n".join(lines)
