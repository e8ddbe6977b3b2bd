"""What people do with our schedulers inside diffusers' pipelines: checks that run under any version of diffusers.

    python tests/support/in_diffusers.py                 # all of them, under the diffusers that is imported
    python tests/support/in_diffusers.py --no-text       # those without transformers, which then cannot be imported

Each function that begins with `check_` is one check. It is given an empty folder, and asserts what is right.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if "--no-text" in sys.argv:
    for library in ("transformers", "peft", "accelerate"):
        sys.modules[library] = None  # type: ignore[assignment]

import diffusers
import safetensors.torch  # noqa: F401  (diffusers before 0.30 forgets it)
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

import ddim

NEEDS_TEXT: set[str] = set()  # the checks that need transformers


def with_text(check: Callable[[Path], None]) -> Callable[[Path], None]:
    """Mark a check that needs transformers."""
    NEEDS_TEXT.add(check.__name__)
    return check


def checks() -> Iterator[tuple[str, Callable[[Path], None]]]:
    """All of them by their names, without those that cannot run here."""
    without = "--no-text" in sys.argv
    for name, check in list(globals().items()):
        if name.startswith("check_") and not (without and name in NEEDS_TEXT):
            yield name, check


# --- tiny pipelines --------------------------------------------------------------------------------------------------


def pixels() -> Any:
    """diffusers' DDIMPipeline with its own scheduler."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    pipe = diffusers.DDIMPipeline(unet.eval(), diffusers.DDIMScheduler(clip_sample_range=2.0))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def texts(folder: Path, **scheduler: Any) -> Any:
    """diffusers' StableDiffusionPipeline with its own scheduler."""
    from tiny_sd import tiny_parts

    pipe = diffusers.StableDiffusionPipeline(
        **tiny_parts(folder / "parts", 1, **scheduler), requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(pipe: Any, **changes: Any) -> Any:
    """The pipeline with our scheduler in the place of its own."""
    pipe.scheduler = ddim.DDIMScheduler.from_config(pipe.scheduler.config, **changes)
    return pipe


def drawn(pipe: Any, **options: Any) -> Any:
    options = {"num_inference_steps": 4, "output_type": "np", **options}
    return pipe(generator=torch.Generator().manual_seed(0), **options).images


def written(pipe: Any, prompt: str = "a red cat", **options: Any) -> Any:
    return drawn(pipe, prompt=prompt, **options)


def near(first: Any, second: Any, atol: float = 1e-4) -> bool:
    return bool(abs(first - second).max() < atol)


def without_ddim(code: str, *arguments: Any) -> str:
    """What code prints where `ddim` cannot be imported."""
    path = [folder for folder in sys.path if not (Path(folder) / "ddim").is_dir()]
    block = "import sys; sys.modules['ddim'] = None\n"
    if "--no-text" in sys.argv:
        block += "for name in ('transformers', 'peft', 'accelerate'): sys.modules[name] = None\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", block + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- what it is ------------------------------------------------------------------------------------------------------


def check_what_it_is(folder: Path) -> None:
    for name in ("DDIMScheduler", "DDIMInverseScheduler"):
        own, theirs = getattr(ddim, name), getattr(diffusers, name)
        scheduler = own()
        for kind in (own, theirs, SchedulerMixin, ConfigMixin):
            assert isinstance(scheduler, kind), kind
            assert issubclass(scheduler.__class__, kind), kind
        assert not isinstance(scheduler, diffusers.DDPMScheduler)
        assert type(scheduler) is own
        assert scheduler.__class__.__name__ == own.__name__ == name
        assert scheduler.__module__ == theirs.__module__
        assert not isinstance(theirs(), own)
    assert not isinstance(ddim.DDIMScheduler(), diffusers.DDIMInverseScheduler)
    found = ddim.DDIMScheduler().compatibles
    usable = {cls for cls in diffusers.DDIMScheduler().compatibles if not isinstance(cls, diffusers.utils.DummyObject)}
    assert {diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler} < usable <= set(found)
    assert ddim.DDIMScheduler in found
    assert all(cls.from_config(ddim.DDIMScheduler(beta_end=0.012).config).config.beta_end == 0.012 for cls in found)


def check_one_of_its_class_is_one_of_ours(folder: Path) -> None:
    """`pipe.scheduler.__class__.from_config(pipe.scheduler.config)`, as diffusers' own pipelines make a second one."""
    scheduler = ddim.DDIMScheduler(beta_end=0.012)
    kind = scheduler.__class__
    for made in (
        kind.from_config(scheduler.config, steps_offset=1),
        kind(beta_end=0.012, steps_offset=1),
    ):
        assert type(made) is ddim.DDIMScheduler
        assert made.__class__ is kind
        assert (made.config.beta_end, made.config.steps_offset) == (0.012, 1)
        assert type(pickle.loads(pickle.dumps(made))) is ddim.DDIMScheduler
    scheduler.save_pretrained(folder)
    assert type(kind.from_pretrained(folder)) is ddim.DDIMScheduler

    class Derived(kind):  # type: ignore[misc, valid-type]
        """As scripts write it: `class Mine(pipe.scheduler.__class__)`."""

        def step(self, *args: Any, **options: Any) -> str:
            return "mine"

    derived = Derived(beta_end=0.012)
    assert type(derived) is Derived
    assert derived.step() == "mine"
    assert derived.config.beta_end == 0.012
    assert isinstance(derived, diffusers.DDIMScheduler)


def check_copies(folder: Path) -> None:
    for own in (ddim.DDIMScheduler, ddim.DDIMInverseScheduler):
        scheduler = own(beta_end=0.012)
        scheduler.set_timesteps(5)
        buffer = io.BytesIO()
        torch.save({"scheduler": scheduler}, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)["scheduler"]
        for other in (copy.copy(scheduler), copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler)), loaded):
            assert type(other) is own
            assert isinstance(other, SchedulerMixin)
            assert other.config == scheduler.config
            assert other.timesteps.tolist() == scheduler.timesteps.tolist()
            other.set_timesteps(3)
            assert len(scheduler.timesteps) == 5


def check_subclasses(folder: Path) -> None:
    """A subclass with diffusers' own decorator and one more argument, in a pipeline and through a folder."""

    class Stronger(ddim.DDIMScheduler):
        @register_to_config
        def __init__(self, num_train_timesteps: int = 1000, beta_end: float = 0.02, strength: float = 0.1) -> None:
            super().__init__(num_train_timesteps=num_train_timesteps, beta_end=beta_end)

    made = Stronger(beta_end=0.012)
    assert (made.config.strength, made.config.beta_end) == (0.1, 0.012)
    assert float(made.alphas_cumprod[-1]) == float(ddim.DDIMScheduler(beta_end=0.012).alphas_cumprod[-1])
    assert isinstance(made, diffusers.DDIMScheduler)
    made.save_pretrained(folder)
    assert json.loads((folder / "scheduler_config.json").read_text())["strength"] == 0.1
    assert Stronger.from_pretrained(folder).config.strength == 0.1
    again = Stronger.from_config(made.config, strength=0.7)
    assert (type(again), again.config.strength, again.config.beta_end) == (Stronger, 0.7, 0.012)
    pipe = pixels()
    pipe.scheduler = made
    reference = pixels()
    reference.scheduler = diffusers.DDIMScheduler(beta_end=0.012)
    assert near(drawn(pipe), drawn(reference))

    class Mixed(ddim.DDIMScheduler, SchedulerMixin, ConfigMixin):  # type: ignore[misc]
        """As some write it who copied the bases from diffusers' class."""

    assert isinstance(Mixed(), diffusers.DDIMScheduler)


@with_text
def check_accelerate_and_peft(folder: Path) -> None:
    """Trainers hand all they have to accelerate, and put adapters into the networks beside the scheduler."""
    import accelerate
    import peft

    scheduler = ddim.DDIMScheduler()
    accelerator = accelerate.Accelerator(cpu=True)
    model, prepared = accelerator.prepare(torch.nn.Linear(2, 2), scheduler)
    assert prepared is scheduler
    assert type(accelerator.unwrap_model(model)) is torch.nn.Linear
    pipe = ours(texts(folder))
    config = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    pipe.unet.add_adapter(config)
    assert written(pipe).shape == (1, 16, 16, 3)


# --- pipelines: from_pretrained, save_pretrained, from_pipe ----------------------------------------------------------


def check_pixels_agree(folder: Path) -> None:
    reference = drawn(pixels())
    assert near(drawn(ours(pixels())), reference)
    pixels().save_pretrained(folder)
    for scheduler in (
        ddim.DDIMScheduler(clip_sample_range=2.0),
        ddim.DDIMScheduler.from_pretrained(folder, subfolder="scheduler"),
    ):
        for kind in (diffusers.DDIMPipeline, diffusers.DiffusionPipeline):
            pipe = quiet(kind.from_pretrained(folder, scheduler=scheduler))
            assert pipe.scheduler.config.clip_sample_range == 2.0  # this pipeline makes a scheduler of its own of any
            assert near(drawn(pipe), reference)


def check_saved_without_us(folder: Path) -> None:
    """What is saved loads where nobody has heard of this package, and draws the same."""
    pipe = ours(pixels(), timestep_spacing="trailing")
    expected = drawn(pipe)
    pipe.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (config["_class_name"], config["timestep_spacing"]) == ("DDIMScheduler", "trailing")
    for kind in (diffusers.DDIMPipeline, diffusers.DiffusionPipeline, ddim.DDIMPipeline, ddim.DiffusionPipeline):
        loaded = kind.from_pretrained(folder)
        assert loaded.scheduler.config.timestep_spacing == "trailing"
        assert type(loaded.scheduler).__module__.partition(".")[0] == kind.__module__.partition(".")[0]
    torch.save(torch.from_numpy(expected), folder / "expected.pt")
    code = """
import sys, torch, safetensors.torch, diffusers
pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
images = pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images
print(type(pipe.scheduler).__module__, float(abs(torch.from_numpy(images) - torch.load(sys.argv[2])).max()))
"""
    module, difference = without_ddim(code, folder, folder / "expected.pt").split()
    assert module.startswith("diffusers.")
    assert float(difference) < 1e-4


def check_from_pipe_and_components(folder: Path) -> None:
    pipe = ours(pixels())
    assert pipe.components["scheduler"] is pipe.scheduler
    assert type(pipe.scheduler) is ddim.DDIMScheduler
    again = quiet(diffusers.DDIMPipeline(**pipe.components))
    assert near(drawn(again), drawn(pipe))


@with_text
def check_texts_agree(folder: Path) -> None:
    reference = texts(folder)
    expected, noisy = written(reference), written(reference, eta=0.7)
    reference.save_pretrained(folder / "saved")
    pipe = ours(reference)
    assert near(written(pipe), expected)
    assert near(written(pipe, eta=0.7), noisy)
    pipe.save_pretrained(folder / "ours")
    assert json.loads((folder / "ours/model_index.json").read_text())["scheduler"] == ["diffusers", "DDIMScheduler"]
    own = ddim.DDIMScheduler.from_pretrained(folder / "saved", subfolder="scheduler")
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(folder / "saved", scheduler=own, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.scheduler is own
    assert near(written(loaded), expected)


@with_text
def check_siblings_of_a_pipeline(folder: Path) -> None:
    """`from_pipe`, other pipelines of the same parts, and the automatic choice of one."""
    from PIL import Image

    reference = texts(folder)
    image = Image.new("RGB", (16, 16), "red")
    options: dict[str, Any] = {"image": image, "strength": 0.5, "num_inference_steps": 8}
    kind = diffusers.StableDiffusionImg2ImgPipeline
    expected = written(quiet(kind.from_pipe(reference)), **options)
    pipe = ours(reference)
    made_of = [kind.from_pipe(pipe), kind(**pipe.components)]
    with contextlib.suppress(RuntimeError):  # older ones ask transformers 5 for what it no longer has
        made_of.append(diffusers.AutoPipelineForImage2Image.from_pipe(pipe))
    for made in made_of:
        assert type(made.scheduler) is ddim.DDIMScheduler
        assert near(written(quiet(made), **options), expected)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@with_text
def check_another_scheduler_of_ours(folder: Path) -> None:
    """Schedulers of diffusers made from ours, as people try one after the other, and ours from those."""
    pipe = ours(texts(folder), timestep_spacing="trailing")
    for kind in (diffusers.EulerDiscreteScheduler, diffusers.DPMSolverMultistepScheduler, diffusers.DDIMScheduler):
        made = kind.from_config(pipe.scheduler.config)
        assert (made.config.beta_end, made.config.timestep_spacing) == (0.012, "trailing")
        back = ddim.DDIMScheduler.from_config(made.config)
        assert (back.config.beta_end, back.config.timestep_spacing) == (0.012, "trailing")


# --- pipelines that ask for DDIM -------------------------------------------------------------------------------------


@with_text
def check_ledits(folder: Path) -> None:
    """LEdits++ replaces a scheduler that is not diffusers' DDIMScheduler by another sampler, in its constructor.

    It cannot be run with either: diffusers gives its scheduler's `add_noise` timesteps that are no integers.
    """
    parts = texts(folder).components
    parts = {name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "unet")}
    scheduler = ddim.DDIMScheduler(beta_end=0.012, steps_offset=1)
    pipe = diffusers.LEditsPPPipelineStableDiffusion(
        **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    assert pipe.scheduler is scheduler


@with_text
def check_marigold(folder: Path) -> None:
    """Marigold's depth pipeline warns of a scheduler of another kind, and reads and writes its config."""
    import tiny_sd
    from PIL import Image

    parts = tiny_sd.tiny_parts(folder / "parts", 1, in_channels=8, prediction_type="v_prediction")
    parts = {name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    depths = []
    for library in (diffusers, ddim):
        parts["scheduler"] = library.DDIMScheduler.from_config(
            parts["scheduler"].config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
        )
        pipe = diffusers.MarigoldDepthPipeline(
            **parts, default_denoising_steps=2, default_processing_resolution=32, scale_invariant=True
        )
        quiet(pipe)
        image = Image.new("RGB", (32, 32), "red")
        made = pipe(image, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
        depths.append(made.prediction)
    assert near(*depths, atol=1e-3)


@with_text
def check_inverse(folder: Path) -> None:
    """Pipelines that take an inverse scheduler get ours as theirs: pix2pix-zero's loop of inversion."""
    pipe = texts(folder)
    text = pipe.text_encoder(pipe.tokenizer("a cat", return_tensors="pt").input_ids)[0].detach()
    ends = []
    for library in (diffusers, ddim):
        inverse = library.DDIMInverseScheduler.from_config(pipe.scheduler.config)
        assert isinstance(inverse, diffusers.DDIMInverseScheduler)
        inverse.set_timesteps(5)
        x = torch.ones(1, 4, 8, 8)
        with torch.no_grad():
            for t in inverse.timesteps:
                x = inverse.step(pipe.unet(x, t, encoder_hidden_states=text).sample, t, x).prev_sample
        ends.append(x)
    assert near(*ends)
    saved = ddim.DDIMInverseScheduler.from_config(pipe.scheduler.config)
    saved.save_pretrained(folder / "inverse")
    assert diffusers.DDIMInverseScheduler.from_pretrained(folder / "inverse").config.beta_end == 0.012


@with_text
def check_callbacks_and_writes(folder: Path) -> None:
    """Pipelines and scripts that write into the scheduler's config, and callbacks that look at it."""
    reference, pipe = texts(folder), ours(texts(folder))
    seen = []

    def look(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((type(pipe.scheduler).__module__.partition(".")[0], int(timestep)))
        return tensors

    expected = []
    for each in (reference, pipe):
        each.scheduler.config.timestep_spacing = "trailing"
        expected.append(written(each, callback_on_step_end=look))
    assert near(*expected)
    assert [t for where, t in seen if where == "ddim"] == [t for where, t in seen if where == "diffusers"]


def main() -> None:
    warnings.simplefilter("ignore")
    for name, check in checks():
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder))
        print("right:", name, flush=True)
    print("diffusers", diffusers.__version__)


if __name__ == "__main__":
    main()
