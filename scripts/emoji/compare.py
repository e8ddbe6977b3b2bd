"""Which learning rate and which length of the average train the emoji model on best, at equal time?

    python scripts/emoji/compare.py --seconds 1200                     # four rates, each for 20 minutes
    python scripts/emoji/compare.py --steps 1500 --rates 2e-4 4e-4     # by steps, on a machine that does other work too
    python scripts/emoji/compare.py --seconds 1200 --write             # and the table into docs/

Each run begins from the same weights (--from) and has the settings of further.py, with another learning rate. Its
weights are averaged in several ways at once. All are judged by the loss, the mean squared error of v, on pictures that
were never trained on, and on some that were: `--count` of each, on backgrounds and with captions as in training, whose
noises and timesteps are the same for all. So differences are known better than the losses themselves: beside each loss
is how far it is from that of the weights in the beginning, with the standard error of that, picture by picture.

What was measured is kept in runs/emoji/compare and gone on from; a run that was broken off is made anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import train as stages
from further import beginning, by_device, go_settings, goes
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ddim import __version__
from ddim.checkpoint import atomic_write, read_json, write_json
from ddim.data import captioned_source
from ddim.data.preparation import Preparation
from ddim.data.progress import progress
from ddim.data.stream import CaptionedStream
from ddim.training.diffusion import DiffusionLoss
from ddim.training.run import make_trainer

RATES = (1e-4, 2e-4, 4e-4, 8e-4)
DECAYS = (0.0, 0.99, 0.998, 0.9995)  # 0 is the weights themselves
RISING = "rising"  # the average of further.py
BATCH = 64
PAGE, TABLE = stages.HERE / "docs" / "emoji.md", stages.HERE / "docs" / "emoji-rates.json"
MARKS = ("<!-- rates: by scripts/emoji/compare.py -->", "<!-- end of rates -->")


class Samples(NamedTuple):
    """What a loss is measured on, n of each."""

    x0: Tensor  # (n z h w), latents
    eps: Tensor  # (n z h w)
    timesteps: Tensor  # (n)
    ids: Tensor  # (n s), tokens of the captions


@torch.no_grad()
def samples(pipe: Any, split: str, count: int) -> Samples:
    """Pictures of a split of the data: "train" or "held-out". Timesteps are spread evenly."""
    path = stages.RUNS / f"{split}.parquet"
    if not path.exists():
        stages.write_data(split, path)
    source = captioned_source(
        train_data_dir=None, dataset_name=str(path), image_column="image", caption_column="text"
    )  # fmt: skip
    prepare = Preparation(pipe.picture_shape()[-1], 3, background="named")
    stream = CaptionedStream(source, prepare, seed=0)
    items = [stream[position] for position in progress(range(count), desc=f"{split} pictures", unit="picture")]
    images = torch.stack([item["image"] for item in items])
    latents = torch.cat([pipe.vae.encode(part).latent_dist.mode() for part in images.split(BATCH)])
    x0 = (latents - (pipe.vae.config.shift_factor or 0.0)) * pipe.vae.config.scaling_factor
    dice = torch.Generator().manual_seed(0)
    total = pipe.scheduler.config.num_train_timesteps
    timesteps = (torch.arange(count) * total // count)[torch.randperm(count, generator=dice)]
    ids = pipe.tokenizer.ids([item["caption"] for item in items], warn=False)
    return Samples(x0, torch.randn(x0.shape, generator=dice), timesteps, ids)


@torch.no_grad()
def losses(networks: Any, loss: DiffusionLoss, of: Samples) -> Tensor:
    """The loss of each sample: (n)."""
    device, found = next(networks.parameters()).device, []
    loss.to(device)
    for first in range(0, len(of.x0), BATCH):
        x0, eps, timesteps, ids = (each[first : first + BATCH].to(device) for each in of)
        text = networks["text_encoder"](ids)[0]

        def denoiser(x: Tensor, t: Tensor, text: Tensor = text) -> Tensor:
            out: Tensor = networks["unet"](x, t, text).sample
            return out

        found.append(loss(denoiser, x0, eps, timesteps).cpu())
    return torch.cat(found)


class Averages:
    """Averages of the same networks with several decays, as they are trained."""

    def __init__(self, networks: nn.Module, decays: tuple[float, ...]) -> None:
        self.networks, self.count = networks, 0
        self.models = {
            f"{decay:g}": AveragedModel(networks, multi_avg_fn=get_ema_multi_avg_fn(decay)) for decay in decays
        }
        self.models[RISING] = AveragedModel(networks, multi_avg_fn=self._rising)

    def update(self, *_: object) -> None:
        """After a step of the optimizer."""
        self.count += 1
        for model in self.models.values():
            model.update_parameters(self.networks)

    def _rising(self, averaged: list[Tensor], current: list[Tensor], _: Any) -> None:
        torch._foreach_lerp_(averaged, current, 10 / (10 + self.count))


def run(rate: float, pipe: Any, options: argparse.Namespace, judged: dict[str, Samples]) -> dict[str, Any]:
    """Train from a pipeline with a learning rate; gives the steps, and losses by average and set of samples."""
    folder, encoded = (stages.RUNS / "compare" / name for name in (f"{rate:g}", "encoded"))
    shutil.rmtree(folder, ignore_errors=True)
    pipe.save_pretrained(folder / "start")
    for other in (encoded, *reversed(goes()), stages.RUNS / "refine"):
        stages.share_cache(other, folder)
    settings = dataclasses.replace(
        go_settings(folder, argparse.Namespace(**{**vars(options), "rate": rate, "ema": 0.999})),
        use_ema=False,  # there are averages enough
        checkpointing_steps=10**9,
        report_to="none",
        seed=0,
    )
    trainer = make_trainer(settings)
    averages = Averages(trainer.objective.networks, tuple(options.emas))
    with trainer.accelerator.autocast():  # as the trainer does it, which finds it done then
        trainer.objective.prepare({})
    trainer.optimizer.optimizer.register_step_post_hook(averages.update)
    trainer.run()
    stages.share_cache(folder, encoded)
    loss = DiffusionLoss(pipe.scheduler)
    found = {
        name: {which: losses(model.module.eval(), loss, of).tolist() for which, of in judged.items()}
        for name, model in averages.models.items()
    }
    shutil.rmtree(folder)
    return {"steps": trainer.step, "losses": found}


def compared(found: dict[str, Any], start: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each rate and average: its losses, and how far they are from those in the beginning."""
    rows = []
    for rate, one in found.items():
        for average, by_set in one["losses"].items():
            row: dict[str, Any] = {"rate": float(rate), "average": average, "steps": one["steps"]}
            for which, values in by_set.items():
                apart = torch.tensor(values).double() - torch.tensor(start[which]).double()
                row[which] = {
                    "loss": round(float(torch.tensor(values).double().mean()), 5),
                    "change": round(float(apart.mean()), 5),
                    "error": round(float(apart.std() / len(apart) ** 0.5), 5),
                }
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], start: dict[str, list[float]], about: dict[str, Any]) -> str:
    """All rows as Markdown; the lowest loss on held-out pictures is bold."""
    best = min(rows, key=lambda row: float(row["held-out"]["loss"]))
    lines = [
        f"`{about['command']}`: {about['count']} pictures of each kind; the beginning has "
        + " and ".join(f"{sum(values) / len(values):.4f} ({which})" for which, values in start.items())
        + ". An average is told by its decay; 0 is the weights themselves, and \"rising\" that of `further`.",
        "",
        "| learning rate | average | steps | loss, held-out | change | loss, training | change |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        cells = [f"{row['rate']:g}", row["average"], f"{row['steps']:,}"]
        for which in ("held-out", "train"):
            one = row[which]
            cells += [f"{one['loss']:.4f}", f"{one['change']:+.4f} ± {one['error']:.4f}"]
        if row is best:
            cells = [f"**{cell}**" for cell in cells]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_page(text: str, page: Path) -> None:
    """Put the table between its marks on a page."""
    told = page.read_text(encoding="utf-8")
    before, found, rest = told.partition(MARKS[0])
    _, ends, after = rest.partition(MARKS[1])
    if not (found and ends):
        raise SystemExit(f"{page} has no place for the table, between {MARKS[0]} and {MARKS[1]}")
    with atomic_write(page) as path:
        path.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="of each run; pictures are encoded before")
    parser.add_argument("--steps", type=int, help="of each run")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--emas", type=float, nargs="+", default=DECAYS, help="decays of the averages")
    parser.add_argument("--batch", type=int, help="as for further")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), help="as for further")
    parser.add_argument("--anneal", type=float, nargs="?", const=0.3, metavar="SHARE", help="as for further")
    parser.add_argument("--from", dest="start", metavar="MODEL", help="the weights: the newest average if none is said")
    parser.add_argument("--count", type=int, default=1024, help="pictures of each kind: %(default)s")
    parser.add_argument(
        "--write", action="store_true", help="write docs/emoji-rates.json, and the table in docs/emoji.md"
    )
    options = parser.parse_args()
    if not (options.seconds or options.steps):
        parser.error("say how long each run is: --seconds or --steps")
    os.chdir(stages.HERE)
    if not stages.TRAIN.exists():
        stages.write_data()
    pipe, _ = beginning(options.start)
    print(compare(pipe, options))


def compare(pipe: Any, options: argparse.Namespace) -> str:
    """All runs that are not made yet, and the table of all of them."""
    judged = {which: samples(pipe, which, options.count) for which in ("held-out", "train")}
    networks = nn.ModuleDict({"unet": pipe.unet, "text_encoder": pipe.text_encoder})
    start = {which: losses(networks, DiffusionLoss(pipe.scheduler), of).tolist() for which, of in judged.items()}
    how = {name: getattr(options, name) for name in ("seconds", "steps", "batch", "precision", "anneal", "count")}
    how |= {"emas": list(options.emas), "device": by_device(), "start": start}
    file = stages.RUNS / "compare" / "found.json"
    kept = read_json(file) if file.exists() else {}
    found: dict[str, Any] = kept.get("found", {}) if kept.get("how") == json.loads(json.dumps(how)) else {}
    for rate in options.rates:
        if f"{rate:g}" not in found:
            found[f"{rate:g}"] = run(rate, pipe, options, judged)
            write_json(file, {"how": how, "found": found})
    about = {
        "command": " ".join(["python", "scripts/emoji/compare.py", *sys.argv[1:]]),
        **{name: value for name, value in how.items() if name != "start"},
        "versions": {"ddim": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    rows = compared({f"{rate:g}": found[f"{rate:g}"] for rate in options.rates}, start)
    text = table(rows, start, about)
    if options.write:
        write_page(text, PAGE)
        means = {which: sum(values) / len(values) for which, values in start.items()}
        write_json(TABLE, {**about, "start": means, "rows": rows})
    return text


if __name__ == "__main__":
    main()
