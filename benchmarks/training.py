"""One step of training the bundled emoji U-Net, beside diffusers' network in the loop of its training script.

    python benchmarks/run.py training

Both start from latents and text embeddings that were made before, which favours diffusers: its script encodes every
picture and caption at every step. A step is the noising, the forward and backward pass, the clipping of the gradient,
AdamW, and the exponential average of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from common import measure
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ddim import DiffusionPipeline
from ddim.training.diffusion import DiffusionLoss

BATCH = 64
RATE, DECAY, NORM = 1e-6, 0.999, 1.0


def batch(pipe: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and text embeddings of the model's sizes."""
    torch.manual_seed(0)
    tokens, width = pipe.text_encoder.config.max_position_embeddings, pipe.unet.config.cross_attention_dim
    return torch.randn(pipe.sample_shape(BATCH)), torch.randn(BATCH, tokens, width)


def theirs(pipe: Any, x0: torch.Tensor, text: torch.Tensor, is_half: bool) -> Callable[[], None]:
    import diffusers
    from diffusers.training_utils import EMAModel

    config = {name: value for name, value in pipe.unet.config.items() if name[0] != "_"}
    unet = diffusers.UNet2DConditionModel(**config).train()
    unet.load_state_dict(pipe.unet.state_dict())
    scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    average = EMAModel(unet.parameters(), decay=DECAY, model_cls=type(unet), model_config=unet.config)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE)

    def step() -> None:
        noise = torch.randn_like(x0)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(x0),))
        noisy = scheduler.add_noise(x0, noise, timesteps)
        target = scheduler.get_velocity(x0, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            prediction = unet(noisy, timesteps, text, return_dict=False)[0]
            loss = F.mse_loss(prediction.float(), target.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), NORM)
        optimizer.step()
        optimizer.zero_grad()
        average.step(unet.parameters())

    return step


def ours(pipe: Any, x0: torch.Tensor, text: torch.Tensor, is_half: bool) -> Callable[[], None]:
    """What `ddim.training.trainer` does in a step."""
    unet = copy.deepcopy(pipe.unet).train().requires_grad_(True)
    loss = DiffusionLoss(pipe.scheduler)
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(DECAY))  # type: ignore[no-untyped-call]
    optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE, fused=True)

    def step() -> None:
        noise = torch.randn_like(x0)
        timesteps = torch.randint(0, loss.weight.shape[0], (len(x0),))
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            each = loss(lambda x, t: unet(x, t, text).sample, x0, noise, timesteps)
        each.mean().backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update_parameters(unet)

    return step


def section(rounds: int) -> str:
    """The section of docs/benchmarks.md."""
    pipe = DiffusionPipeline.from_pretrained("emoji")
    x0, text = batch(pipe)
    steps = {
        "diffusers, float32": theirs(pipe, x0, text, False),
        "diffusers, bfloat16 autocast": theirs(pipe, x0, text, True),
        "ddim, float32": ours(pipe, x0, text, False),
        "ddim, bfloat16": ours(pipe, x0, text, True),
    }
    times = measure(steps, min(rounds, 9), budget=0.1)
    names = list(steps)
    lines = [
        "## Training",
        "",
        f"`python benchmarks/run.py training --rounds {rounds}`: a step of the emoji U-Net "
        f"({sum(p.numel() for p in pipe.unet.parameters()) / 1e6:.1f} M parameters) on {BATCH} latents and captions "
        "that were encoded before. **Bold** is how many times faster than diffusers' float32 (aim for bfloat16: 1.5x), "
        "then than its bfloat16 autocast (aim: 1.2x).",
        "",
        "| step | ms | pictures a second | times faster |",
        "|---|---|---|---|",
    ]
    for name, time in times.items():
        ratios = f"**{times[names[0]] / time:.2f}x**, {times[names[1]] / time:.2f}x"
        lines.append(f"| {name} | {time / 1e3:.0f} | {BATCH / time * 1e6:.0f} | {ratios} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)
