"""Drawing and training on a CUDA device beside diffusers, on the same weights and the same card, in one run.

    python benchmarks/cuda.py --json docs/cuda.json
    python benchmarks/cuda_page.py                         # and the tables of docs/cuda.md
    python benchmarks/cuda.py --device cpu --tiny          # tries the program out; its figures mean nothing

Each row of the table is one thing that is timed. The peers of a row group are timed in turn, several rounds over, after
runs that warm them up; every time is a median over the rounds, taken from before the first call of a round to when the
device has finished the last one. "beside" is the time of the group's first row, which is diffusers', over that of the
row: more than 1 is faster. "difference" is the largest one to the first row's result, relative to its largest number.

A row is printed, and the file of `--json` written anew, as soon as it is known; what is compiled comes last.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ddim import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, __version__
from ddim.checkpoint import Repository
from ddim.models import AutoencoderKL, UNet2DConditionModel
from ddim.training.diffusion import DiffusionLoss

PROMPT = "a red heart, noto style"
GUIDED: dict[str, Any] = {"guidance_scale": 3.0, "guidance_rescale": 0.7}
# The U-Net of Stable Diffusion 1.5.
FULL: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
# What stands for it in a trial.
SMALL: dict[str, Any] = {
    **FULL,
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
TOKENS = 77
RATE = 1e-6


class Bench:
    """Where it runs, how much is timed, and the rows that are known.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.is_tiny: bool = options.tiny
        self.rounds = 1 if self.is_tiny else options.rounds
        self.budget = 0.01 if self.is_tiny else 0.1  # seconds of each peer in a round, if one call takes less
        self.half = torch.float16 if self.device.type == "cuda" else torch.float32
        self.file: Path | None = options.json
        self.rows: list[dict[str, Any]] = []
        self.began = time.perf_counter()
        self.about = machine(self.device)

    def wait(self) -> None:
        """Until the device has done all it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, function: Callable[[], object], calls: int) -> float:
        """Of a call, on average over so many."""
        self.wait()
        started = time.perf_counter()
        for _ in range(calls):
            function()
        self.wait()
        return (time.perf_counter() - started) / calls

    def measure(
        self, functions: Mapping[str, Callable[[], object]], warm: int = 3, rounds: int | None = None
    ) -> dict[str, float]:
        """The median seconds of a call of each, which are called in turn."""
        calls = {}
        for name, function in functions.items():
            for _ in range(1 if self.is_tiny else warm):
                function()
            calls[name] = max(1, int(self.budget / self.seconds(function, 1)))
        times: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(min(self.rounds, rounds or self.rounds)):
            for name, function in functions.items():
                times[name].append(self.seconds(function, calls[name]))
        return {name: statistics.median(values) for name, values in times.items()}

    def tell(
        self,
        section: str,
        what: str,
        times: Mapping[str, float],
        unit: float = 1e3,
        count: int = 0,
        first: float | None = None,
        **more: Mapping[str, Any],
    ) -> None:
        """Print the rows of peers, and write them down.

        Args:
            section, what: which measurement it is, and of what.
            times: the seconds of each peer, diffusers' first.
            unit: 1e3 shows milliseconds, 1e6 microseconds.
            count: how many pictures or samples a call makes, for a rate; 0 shows none.
            first: the seconds that they are compared with, if these are not the first peer's.
            more: further figures, for each peer.
        """
        first = next(iter(times.values())) if first is None else first
        for peer, spent in times.items():
            row = {"section": section, "what": what, "peer": peer, "seconds": spent, "beside": first / spent}
            if count:
                row["per_second"] = count / spent
            row |= {name: values[peer] for name, values in more.items() if peer in values}
            self.rows.append(row)
            figures = [f"{spent * unit:.4g} {'ms' if unit == 1e3 else 'µs'}", f"{count / spent:.4g}" if count else ""]
            figures += [f"{first / spent:.2f}x", f"{row['difference']:.1e}" if "difference" in row else ""]
            print(f"| {section} | {what} | {peer} | {' | '.join(figures)} |", flush=True)
        self.write()

    def write(self) -> None:
        if self.file is None:
            return
        text = json.dumps({**self.about, "seconds": time.perf_counter() - self.began, "rows": self.rows}, indent=1)
        beside = self.file.with_name(self.file.name + ".tmp")
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(self.file)

    def clean(self) -> None:
        """Free what the last section used."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def machine(device: torch.device) -> dict[str, Any]:
    """The device and the versions."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    info: dict[str, Any] = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"}
    info |= {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    info |= {"cudnn": torch.backends.cudnn.version(), "diffusers": diffusers.__version__}
    return {**info, "transformers": transformers.__version__, "ddim": __version__}


def difference(results: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The largest difference of each result to the first one, relative to that one's largest number."""
    first = next(iter(results.values())).float()
    largest = first.abs().max().clamp_min(1e-12)
    return {name: float((each.float() - first).abs().max() / largest) for name, each in results.items()}


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what diffusers' class of the same name does not know."""
    return {name: value for name, value in config.items() if name[0] != "_" and name not in DDIMScheduler.own_keys}


# --- the step --------------------------------------------------------------------------------------------------------


def step(bench: Bench) -> None:
    """One step of the scheduler on latents of Stable Diffusion's size."""
    for dtype in dict.fromkeys((bench.half, torch.float32)):
        for batch in (1, 16):
            x, out = torch.randn(2, batch, 4, 64, 64, device=bench.device, dtype=dtype)
            one_step(bench, x, out)


def one_step(bench: Bench, x: torch.Tensor, out: torch.Tensor) -> None:
    """One step from x, (b c h w), by what a network predicted.

    diffusers' pipelines have the timesteps on the device, and ours on the host.
    """
    import diffusers

    config = {"clip_sample": False, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    theirs, ours = diffusers.DDIMScheduler(**config), DDIMScheduler(**config)  # type: ignore[arg-type]
    theirs.set_timesteps(50)
    ours.set_timesteps(50)
    plan = ours.plan(50)
    here, number = ours.timesteps[10], int(ours.timesteps[10])
    there = here.to(bench.device)
    functions: dict[str, Callable[[], Any]] = {
        "diffusers, timestep on the device": lambda: theirs.step(out, there, x),
        "diffusers, timestep on the host": lambda: theirs.step(out, here, x),
        "ddim, timestep on the device": lambda: ours.step(out, there, x),
        "ddim, timestep on the host": lambda: ours.step(out, here, x),
        "ddim, a plan's step without x0": lambda: plan.step(out, number, x, return_x0=False),
    }
    results = {name: function().prev_sample for name, function in functions.items()}
    what = f"batch {len(x)}, {' x '.join(map(str, x.shape[1:]))}, {str(x.dtype)[6:]}"
    bench.tell("step", what, bench.measure(functions), 1e6, difference=difference(results))


# --- the U-Net -------------------------------------------------------------------------------------------------------


def full_size(bench: Bench) -> tuple[Any, Any]:
    """Our U-Net of Stable Diffusion 1.5's size with random weights, and diffusers' with the same."""
    import diffusers

    config = SMALL if bench.is_tiny else FULL
    torch.manual_seed(0)
    with torch.device(bench.device):
        ours = UNet2DConditionModel(**config).eval().requires_grad_(False).to(bench.half)
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**config).eval().requires_grad_(False)
    theirs.load_state_dict({name: value.clone() for name, value in ours.state_dict().items()}, assign=True)
    return ours, theirs.eval().requires_grad_(False)


def their_unet(ours: Any) -> Any:
    """diffusers' network with a copy of our U-Net's weights, on its device and of its type."""
    import diffusers

    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**{k: v for k, v in ours.config.items() if k[0] != "_"})
    theirs.load_state_dict({name: value.clone() for name, value in ours.state_dict().items()}, assign=True)
    return theirs


@torch.no_grad()
def evaluations(bench: Bench, name: str, ours: Any, theirs: Any, batches: tuple[int, ...], tokens: int) -> None:
    """One evaluation of a U-Net, as its weights are laid out by themselves and in channels last."""
    for layout in ("usual layout", "channels last"):
        if layout == "channels last":
            ours, theirs = (each.to(memory_format=torch.channels_last) for each in (ours, theirs))
        for batch in batches:
            evaluation(bench, f"{name}, batch {batch}", ours, theirs, torch.Size((batch, tokens)), layout)


def evaluation(bench: Bench, what: str, ours: Any, theirs: Any, texts: torch.Size, layout: str) -> None:
    """One evaluation on so many samples, each with a text of so many tokens."""
    config = ours.config
    size, batch = config.sample_size, texts[0]
    x = torch.randn(batch, config.in_channels, size, size, device=bench.device, dtype=bench.half)
    x = x.to(memory_format=torch.channels_last) if layout == "channels last" else x
    text = torch.randn(*texts, config.cross_attention_dim, device=bench.device, dtype=bench.half)
    here = torch.tensor(500)
    there = here.to(bench.device)
    known = {"text_cache": ours.project_text(text), "time_cache": ours.project_time(torch.tensor([999, 500, 1]))}
    functions: dict[str, Callable[[], Any]] = {
        "diffusers": lambda: theirs(x, there, text).sample,
        "ddim": lambda: ours(x, there, text).sample,
        "ddim, with what a run computes once": lambda: ours(x, here, **known).sample,
    }
    results = {peer: function() for peer, function in functions.items()}
    times = bench.measure(functions, rounds=5)
    bench.tell("unet", f"{what}, {str(bench.half)[6:]}, {layout}", times, count=batch, difference=difference(results))


def unet(bench: Bench) -> None:
    """One evaluation of U-Nets of two sizes."""
    ours, theirs = full_size(bench)
    evaluations(bench, "Stable Diffusion 1.5's size", ours, theirs, (2,) if bench.is_tiny else (2, 16), TOKENS)
    del ours, theirs
    bench.clean()
    pipe: Any = DiffusionPipeline.from_pretrained("emoji", dtype=bench.half).to(bench.device)
    network = pipe.unet.eval().requires_grad_(False)
    tokens = pipe.text_encoder.config.max_position_embeddings
    batches = (2,) if bench.is_tiny else (16, 256)
    evaluations(bench, "the emoji model", network, their_unet(network).eval().requires_grad_(False), batches, tokens)


# --- pictures --------------------------------------------------------------------------------------------------------


def their_pipeline(bench: Bench, ours: Any, kind: str) -> Any:
    """diffusers' pipeline of the emoji model with one of its schedulers."""
    import diffusers

    folder = Repository.open("emoji", {}).find("model_index.json").parent  # type: ignore[union-attr]
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=bench.half).to(bench.device)
    pipe.scheduler = getattr(diffusers, kind).from_config(plain(ours.scheduler.config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(bench: Bench) -> None:
    """From texts to decoded pictures on the device, by the emoji model."""
    ours: Any = DiffusionPipeline.from_pretrained("emoji", dtype=bench.half).to(bench.device)
    ours.set_progress_bar_config(disable=True)
    theirs, solver = (their_pipeline(bench, ours, kind) for kind in ("DDIMScheduler", "DPMSolverMultistepScheduler"))
    many, some = (3, 2) if bench.is_tiny else (50, 20)
    recommended = ours.scheduler.config.recommended_steps
    for batch in (1, 2) if bench.is_tiny else (1, 16, 256):
        latents = torch.randn(ours.sample_shape(batch), device=bench.device, dtype=bench.half)
        prompts = [PROMPT] * batch
        asked: dict[str, Any] = {"latents": latents, "output_type": "pt", **GUIDED}
        functions: dict[str, Callable[[], Any]] = {
            f"diffusers, DDIM, {many} steps": lambda p=prompts, a=asked: theirs(p, num_inference_steps=many, **a),
            f"diffusers, DPM-Solver++, {some} steps": lambda p=prompts, a=asked: solver(
                p, num_inference_steps=some, **a
            ),
            f"ddim, first order, {many} steps": lambda p=prompts, a=asked: ours(
                p, num_inference_steps=many, order=1, **a
            ),
            f"ddim, {recommended} steps as recommended": lambda p=prompts, a=asked: ours(p, **a),
        }
        results = {name: function().images for name, function in functions.items()}
        far = {name: float((each.float() - next(iter(results.values())).float()).square().mean().sqrt())
               for name, each in results.items()}  # fmt: skip
        what = f"emoji, batch {batch}, {str(bench.half)[6:]}, guidance 3, rescale 0.7"
        times = bench.measure(functions, warm=1, rounds=3)
        bench.tell("text to image", what, times, count=batch, rms_to_first=far)


@torch.no_grad()
def latency(bench: Bench) -> None:
    """The loop of 50 steps under guidance at Stable Diffusion 1.5's size for one picture: latents to latents."""
    import diffusers

    ours_unet, theirs_unet = full_size(bench)
    widths = ours_unet.config.block_out_channels
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * len(widths), "norm_num_groups": 8, "layers_per_block": 1}
    kinds |= {"up_block_types": ("UpDecoderBlock2D",) * len(widths), "block_out_channels": (8,) * len(widths)}
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    config |= {"set_alpha_to_one": False, "steps_offset": 1}
    # The autoencoder, which is not run, says how much smaller latents are than pictures.
    ours: Any = StableDiffusionPipeline(AutoencoderKL(**kinds), None, None, ours_unet, DDIMScheduler(**config))  # type: ignore[arg-type]
    theirs = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(**kinds), text_encoder=None, tokenizer=None, unet=theirs_unet,
        scheduler=diffusers.DDIMScheduler(**config), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    width, size = ours_unet.config.cross_attention_dim, ours_unet.config.sample_size
    embeds, negative = torch.randn(2, 1, TOKENS, width, device=bench.device, dtype=bench.half)
    steps = 3 if bench.is_tiny else 50
    asked: dict[str, Any] = {
        "prompt_embeds": embeds,
        "negative_prompt_embeds": negative,
        "latents": torch.randn(1, 4, size, size, device=bench.device, dtype=bench.half),
        "num_inference_steps": steps,
        "guidance_scale": 7.5,
        "output_type": "latent",
    }
    for pipe in (ours, theirs):
        pipe.to(bench.device, bench.half)
        pipe.set_progress_bar_config(disable=True)
    for layout in ("usual layout", "channels last"):
        if layout == "channels last":
            ours.unet.to(memory_format=torch.channels_last)
            theirs.unet.to(memory_format=torch.channels_last)
        functions = {"diffusers": lambda: theirs(**asked).images, "ddim": lambda: ours(**asked).images}
        results = {name: function() for name, function in functions.items()}
        what = f"Stable Diffusion 1.5's size, random weights, {steps} steps, batch 1, {str(bench.half)[6:]}, {layout}"
        bench.tell("latency", what, bench.measure(functions, warm=0, rounds=3), count=1, difference=difference(results))


# --- training --------------------------------------------------------------------------------------------------------


def train_step(bench: Bench, network: Any, scheduler: Any, batch: int, layout: str) -> Callable[[], None]:
    """A step that only the network decides: noise, forward and backward in bfloat16, and fused AdamW.

    Args:
        network: a U-Net that reads a text, of either library, in training.
        scheduler: of the model.
        batch: how many latents and texts, which were encoded before.
        layout: "channels last" or another word.
    """
    config = network.config
    torch.manual_seed(0)
    x0 = torch.randn(batch, config.in_channels, config.sample_size, config.sample_size, device=bench.device)
    x0 = x0.to(memory_format=torch.channels_last) if layout == "channels last" else x0
    text = torch.randn(batch, TOKENS if bench.is_tiny else 64, config.cross_attention_dim, device=bench.device)
    loss = DiffusionLoss(scheduler).to(bench.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, fused=True)

    def run() -> None:
        noise = torch.randn_like(x0)
        timesteps = torch.randint(0, loss.weight.shape[0], (batch,), device=bench.device)
        with torch.autocast(bench.device.type, torch.bfloat16):
            each = loss(lambda x, t: network(x, t, text, return_dict=False)[0], x0, noise, timesteps)
        each.mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def networks(bench: Bench) -> tuple[Any, Any]:
    """The emoji model's scheduler, and a function that makes its U-Net anew for training: ours, or diffusers'."""
    pipe: Any = DiffusionPipeline.from_pretrained("emoji").to(bench.device)

    def make(peer: str, layout: str) -> Any:
        made = their_unet(pipe.unet) if peer == "diffusers" else copy.deepcopy(pipe.unet)
        made = made.train().requires_grad_(True)
        return made.to(memory_format=torch.channels_last) if layout == "channels last" else made

    return pipe.scheduler, make


def training(bench: Bench) -> None:
    """A step of training the emoji U-Net, without the compiler."""
    scheduler, make = networks(bench)
    for batch in (4,) if bench.is_tiny else (512, 1024):
        functions = {
            f"{peer}, {layout}": train_step(bench, make(peer, layout), scheduler, batch, layout)
            for peer in ("diffusers", "ddim")
            for layout in ("usual layout", "channels last")
        }
        what = f"emoji U-Net, batch {batch}, bfloat16 autocast, fused AdamW"
        bench.tell("training", what, bench.measure(functions, rounds=5), count=batch, memory=memory(bench, functions))
        bench.clean()


def memory(bench: Bench, functions: Mapping[str, Callable[[], object]]) -> dict[str, int]:
    """The most bytes that a call of each has allocated beside what was there before it."""
    if bench.device.type != "cuda":
        return {}
    found = {}
    for name, function in functions.items():
        bench.wait()
        before = torch.cuda.memory_allocated(bench.device)
        torch.cuda.reset_peak_memory_stats(bench.device)
        function()
        bench.wait()
        found[name] = torch.cuda.max_memory_allocated(bench.device) - before
    return found


def compiled(bench: Bench, peers: tuple[str, ...]) -> None:
    """The same step with a U-Net that torch.compile has compiled, which takes a minute or so each time.

    It is compared with diffusers' without the compiler, if that was timed before.
    """
    scheduler, make = networks(bench)
    for batch in (4,) if bench.is_tiny else (512, 1024):
        for peer in peers:
            torch.compiler.reset()
            started = time.perf_counter()
            network = torch.compile(make(peer, "usual layout"))
            function = train_step(bench, network, scheduler, batch, "usual layout")
            function()
            bench.wait()
            first = time.perf_counter() - started
            what = f"emoji U-Net, batch {batch}, bfloat16 autocast, fused AdamW"
            name = f"{peer}, compiled"
            times = bench.measure({name: function}, rounds=5)
            eager = [r["seconds"] for r in bench.rows if (r["what"], r["peer"]) == (what, "diffusers, usual layout")]
            how_long = {name: first}
            bench.tell(
                "training", what, times, count=batch, first=eager[0] if eager else None, seconds_to_compile=how_long
            )
            bench.clean()


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "step": step,
    "unet": unet,
    "pictures": pictures,
    "training": training,
    "latency": latency,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}, compiled; all if none is named"
    )
    parser.add_argument("--device", default="cuda", help="the device to measure on")
    parser.add_argument("--rounds", type=int, default=9, help="the most rounds; what takes long has fewer")
    parser.add_argument("--json", type=Path, help="write all figures into this file, anew after each group of rows")
    parser.add_argument("--tiny", action="store_true", help="small sizes and one round: to try the program out")
    parser.add_argument("--skip-compile", action="store_true", help="leave out what torch.compile has compiled")
    parser.add_argument("--compile-both", action="store_true", help="compile diffusers' network too")
    options = parser.parse_args()
    unknown = sorted(set(options.sections) - {*SECTIONS, "compiled"})
    if unknown:
        parser.error(f"there is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)} and compiled")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    bench = Bench(options)
    print(", ".join(f"{name} {value}" for name, value in bench.about.items()))
    print("\n| section | what | peer | a call | a second | beside | difference |\n|---|---|---|---|---|---|---|")
    wanted = options.sections or [*SECTIONS, "compiled"]
    failed = []
    for name in wanted:
        if name == "compiled" and options.skip_compile:
            continue
        try:
            if name == "compiled":
                compiled(bench, ("ddim", "diffusers") if options.compile_both else ("ddim",))
            else:
                SECTIONS[name](bench)
        except Exception as error:  # one section that fails must not lose the others
            failed.append(name)
            print(f"{name} failed: {type(error).__name__}: {str(error)[:2000]}", file=sys.stderr, flush=True)
        bench.clean()
    bench.write()
    print(f"\n{time.perf_counter() - bench.began:.0f} s", flush=True)
    if failed:
        sys.exit(f"these sections failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
