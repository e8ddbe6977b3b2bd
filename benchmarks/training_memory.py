"""The memory of training, beside the loops of diffusers' scripts, on random models of a middle size, on the CPU.

    python benchmarks/training_memory.py                 # measured
    python benchmarks/training_memory.py arithmetic      # of Stable Diffusion 1.5 and XL, without running them
    python benchmarks/training_memory.py arithmetic --write     # and the table in docs/training.md

For each kind of training a random model is written by diffusers, and trained for some steps by `ddim train` and by the
loop of diffusers' script for it (train_text_to_image.py, _lora.py, _sdxl.py, _lora_sdxl.py, train_controlnet.py,
_sdxl.py), at the same settings: a batch of 1, gradient checkpointing, AdamW, no average. Each is a process of its own.
Told are the most memory that it had (its resident set, in MiB), from its start, and in the steps after the first one,
when nothing is loaded any more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import SDXL
from pages import put_between

PAGE = Path(__file__).parent.parent / "docs" / "training.md"
MARKS = ("<!-- memory: by benchmarks/training_memory.py -->", "<!-- end of memory -->")
STEPS, SIZE = 4, 256
KINDS = ("sd-full", "sd-lora", "sd-control", "xl-full", "xl-lora", "xl-control")
WIDTHS = (128, 256, 512, 512)


def make(folder: Path, is_xl: bool) -> None:
    """A random pipeline, with a vocabulary of single letters."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
    from tiny_clip import vocabulary, write_tokenizer

    def encoder(kind: Any, width: int, layers: int) -> Any:
        ends = {"bos_token_id": len(vocabulary()[0]) - 2, "eos_token_id": len(vocabulary()[0]) - 1}
        config = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
        heads = {"num_attention_heads": width // 64, "projection_dim": width}
        return kind(CLIPTextConfig(vocab_size=len(vocabulary()[0]), **config, **heads, **ends))

    torch.manual_seed(0)
    names = ("tokenizer", "tokenizer_2") if is_xl else ("tokenizer",)
    for name in names:
        write_tokenizer(folder / name)
    tokenizers = {name: CLIPTokenizer.from_pretrained(folder / name) for name in names}
    vae = diffusers.AutoencoderKL(
        block_out_channels=(64, 128, 256, 256),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    common = {"sample_size": SIZE // 8, "layers_per_block": 2, "attention_head_dim": 8}
    parts = {"vae": vae, "scheduler": diffusers.DDIMScheduler(beta_schedule="scaled_linear"), **tokenizers}
    if is_xl:
        more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 64, "use_linear_projection": True}
        unet = diffusers.UNet2DConditionModel(
            **common,
            **more,
            block_out_channels=WIDTHS[:3],
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 3),
            cross_attention_dim=512 + 768,
            projection_class_embeddings_input_dim=768 + 6 * 64,
        )
        texts = {
            "text_encoder": encoder(CLIPTextModel, 512, 8),
            "text_encoder_2": encoder(CLIPTextModelWithProjection, 768, 12),
        }
        pipe = diffusers.StableDiffusionXLPipeline(unet=unet, **texts, **parts, add_watermarker=False)
    else:
        unet = diffusers.UNet2DConditionModel(**common, block_out_channels=WIDTHS, cross_attention_dim=768)
        none: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
        texts = {"text_encoder": encoder(CLIPTextModel, 768, 12)}
        pipe = diffusers.StableDiffusionPipeline(unet=unet, **texts, **parts, **none, requires_safety_checker=False)
    pipe.save_pretrained(folder)


def pictures(folder: Path) -> None:
    """Four random pictures with captions."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a picture {number}")


# --- what is measured ------------------------------------------------------------------------------------------------


def forget_peak() -> None:
    """Let the most memory be what there is now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most memory since then, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) // 1024


def ours(kind: str, precision: str, model: Path, data: Path, out: Path) -> dict[str, int]:
    from ddim.training.run import make_trainer
    from ddim.training.settings import ControlNetSettings, LoraSettings, TextToImageSettings

    options: dict[str, Any] = {
        "output_dir": str(out),
        "train_data_dir": str(data),
        "pretrained_model_name_or_path": str(model),
        "resolution": SIZE,
        "train_batch_size": 1,
        "max_train_steps": STEPS,
        "gradient_checkpointing": True,
        "mixed_precision": precision,
        "use_ema": False,
        "validation_steps": 0,
        "report_to": "none",
    }
    options |= {"condition": "layout"} if "control" in kind else {}
    settings: Any = {"full": TextToImageSettings, "lora": LoraSettings, "control": ControlNetSettings}[kind[3:]]
    trainer = make_trainer(settings(**options))
    accumulate, most = trainer._accumulate, {"steps": 0}

    def noted(batches: Any, log: Any) -> None:
        if trainer.step == 1:
            most["start"] = peak()
            forget_peak()
        elif trainer.step == STEPS - 1:
            most["steps"] = peak()
        accumulate(batches, log)

    trainer._accumulate = noted  # type: ignore[method-assign]
    trainer.run()
    return {"all": max(most["start"], peak()), "steps": most["steps"]}


def theirs(kind: str, precision: str, model: Path, data: Path, out: Path) -> dict[str, int]:
    """The loop of the script, step by step: what is in memory when, and in which type of number."""
    import gc

    import diffusers
    import numpy as np
    from peft import LoraConfig
    from PIL import Image
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    is_lora, is_control, is_xl = "lora" in kind, "control" in kind, "xl" in kind
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    unet = diffusers.UNet2DConditionModel.from_pretrained(model / "unet")
    vae: Any = diffusers.AutoencoderKL.from_pretrained(model / "vae").requires_grad_(False)
    ends, kinds = (("", "_2") if is_xl else ("",)), (CLIPTextModel, CLIPTextModelWithProjection)
    encoders: list[Any] = [
        each.from_pretrained(model / f"text_encoder{end}").requires_grad_(False).to(dtype)
        for each, end in zip(kinds, ends, strict=False)
    ]
    tokenizers = [CLIPTokenizer.from_pretrained(model / f"tokenizer{end}") for end in ends]
    vae.to(torch.float32 if is_xl else dtype)
    if is_lora:
        unet.requires_grad_(False)
        unet.to(dtype)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
        for parameter in unet.parameters():
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    network: Any = unet
    if is_control:
        network = diffusers.ControlNetModel.from_unet(unet)
        network.enable_gradient_checkpointing()
        unet.requires_grad_(False)
        unet.to(dtype)
    unet.enable_gradient_checkpointing()
    network.train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    scheduler = diffusers.DDPMScheduler.from_pretrained(model / "scheduler")

    @torch.no_grad()
    def told(caption: str) -> tuple[Any, Any]:
        states, given = [], None
        for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
            ids = tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt").input_ids
            given = encoder(ids, output_hidden_states=True)
            states.append(given.hidden_states[-2] if is_xl else given[0])
        return torch.cat(states, -1), given.text_embeds if is_xl else None

    @torch.no_grad()
    def latents(number: int) -> Any:
        image = torch.from_numpy(np.array(Image.open(data / f"{number}.png"))).permute(2, 0, 1)[None] / 127.5 - 1
        return vae.encode(image.to(vae.dtype)).latent_dist.sample() * vae.config.scaling_factor

    def shown(number: int) -> Any:
        image = torch.from_numpy(np.array(Image.open(data / f"{number}.png"))).permute(2, 0, 1)[None] / 255
        return image.to(dtype)

    known: dict[int, tuple[Any, Any]] = {}
    texts: dict[int, Any] = {}
    if is_xl and is_control:  # this script encodes the texts beforehand and gives their encoders up
        texts, encoders = {number: told(f"a picture {number}") for number in range(4)}, []
        gc.collect()
    elif is_xl and not is_lora:  # and this one all, with the autoencoder
        known = {number: (latents(number), told(f"a picture {number}")) for number in range(4)}
        vae, encoders = None, []
        gc.collect()
    start = steps = 0
    for step in range(STEPS):
        if step == 1:
            start = peak()
            forget_peak()
        elif step == STEPS - 1:
            steps = peak()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            x, (embeds, pooled) = known.get(step) or (latents(step), texts.get(step) or told(f"a picture {step}"))
            x = x.to(dtype) if is_lora or is_control or not is_xl else x
            noise, timesteps = torch.randn_like(x), torch.randint(0, 1000, (1,))
            noisy = scheduler.add_noise(x, noise, timesteps)
            sizes = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]]).to(dtype)
            added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}} if is_xl else {}
            if is_control:
                down, middle = network(noisy, timesteps, embeds, shown(step), **added, return_dict=False)
                down, middle = [each.to(dtype) for each in down], middle.to(dtype)
                added |= {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            out_ = unet(noisy, timesteps, embeds, **added, return_dict=False)[0]
            loss = F.mse_loss(out_.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if is_control:
        network.save_pretrained(out)
    elif is_lora:
        unet.save_lora_adapter(out)
    else:
        diffusers.DiffusionPipeline.from_pretrained(model, unet=unet).save_pretrained(out)
    return {"all": max(start, peak()), "steps": steps}


# --- arithmetic ------------------------------------------------------------------------------------------------------


class _Flash(torch.autograd.Function):
    """Attention that keeps what the fast kernels keep: never a number for each pair of positions."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty(*query.shape[:-1], value.shape[-1], device=query.device, dtype=query.dtype)
        ctx.save_for_backward(query, key, value, out)
        return out


def kept(unet: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> int:
    """How many bytes a forward pass keeps for the backward pass, the weights not counted; on the meta device."""
    seen: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            seen[tensor.untyped_storage()._cdata] = tensor
        return tensor

    attention = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, **_: _Flash.apply(q, k, v)  # type: ignore[assignment]
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            unet(*inputs, **options)
    finally:
        F.scaled_dot_product_attention = attention  # type: ignore[assignment]
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def arithmetic() -> str:
    """A table of what Stable Diffusion 1.5 at 512x512 and XL at 1024x1024 take for one picture, from their sizes."""
    from ddim.lora import UNET_TARGETS
    from ddim.models import UNet2DConditionModel

    lines = ["| | | weights | gradients | Adam | activations | checkpointed |", "|---|---|---|---|---|---|---|"]
    for name, config in (("SD 1.5", {"sample_size": 64, "cross_attention_dim": 768}), ("SDXL", SDXL)):
        with torch.device("meta"):
            unet, size = UNet2DConditionModel(**config).train(), config["sample_size"]
            count = sum(parameter.numel() for parameter in unet.parameters())
            ends = tuple(f".{target}" for target in UNET_TARGETS)
            layers = [m for n, m in unet.named_modules() if n.endswith(ends) and isinstance(m, torch.nn.Linear)]
            adapters = 16 * sum(layer.in_features + layer.out_features for layer in layers)
            held = {}
            for dtype in (torch.float32, torch.bfloat16):
                unet.to(dtype)
                x, text = torch.empty(1, 4, size, size, dtype=dtype), torch.empty(1, 77, unet.text_dim, dtype=dtype)
                added = {"text_embeds": torch.empty(1, 1280, dtype=dtype), "time_ids": torch.empty(1, 6)}
                options = {"added_cond_kwargs": added} if config is SDXL else {}
                for on in (False, True):
                    unet.enable_gradient_checkpointing(on)
                    held[dtype, on] = kept(unet, (x, torch.empty(1), text), options)
        for kind, trained in (("whole", count), ("LoRA of rank 16", adapters)):
            for dtype, told in ((torch.float32, "float32"), (torch.bfloat16, "bf16")):
                weights = count * (dtype.itemsize if trained != count else 4) + adapters * 4 * (trained != count)
                row = (weights, 4 * trained, 8 * trained, held[dtype, False], held[dtype, True])
                lines.append(f"| {name}, {kind} | {told} | {' | '.join(f'{value / 2**30:.2f}' for value in row)} |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["arithmetic"]:
        text = arithmetic()
        print(text)
        if "--write" in sys.argv:
            put_between(MARKS, text, PAGE)
        return
    if len(sys.argv) > 3:
        side, kind, precision, *paths = sys.argv[1:]
        measured = {"ours": ours, "theirs": theirs}[side](kind, precision, *map(Path, paths))
        print(json.dumps(measured))
        return
    chosen = sys.argv[1].split(",") if len(sys.argv) > 1 else KINDS
    precisions = sys.argv[2].split(",") if len(sys.argv) > 2 else ("no", "bf16")
    print("| training | precision | ddim | diffusers' loop | ratio | ddim, steps | diffusers' loop, steps | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="training-memory-") as home:
        folder = Path(home)
        pictures(folder / "data")
        for is_xl in {"xl" in kind for kind in chosen}:
            script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import training_memory as t; "
            script += f"from pathlib import Path; t.make(Path({str(folder / ('xl' if is_xl else 'sd'))!r}), {is_xl})"
            subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
        for kind in chosen:
            for precision in precisions:
                found = {}
                for side in ("ours", "theirs"):
                    out = folder / f"{side}-{kind}-{precision}"
                    paths = [str(folder / kind[:2]), str(folder / "data"), str(out)]
                    command = [sys.executable, __file__, side, kind, precision, *paths]
                    done = subprocess.run(command, capture_output=True, text=True)
                    if done.returncode:
                        sys.exit(done.stderr[-3000:])
                    found[side] = json.loads(done.stdout.splitlines()[-1])
                row = []
                for what in ("all", "steps"):
                    mine, other = found["ours"][what], found["theirs"][what]
                    row += [f"{mine:,}", f"{other:,}", f"{mine / other:.2f}"]
                print(f"| {kind} | {precision} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
