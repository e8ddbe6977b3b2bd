"""What a type checker knows of programs that use the package, and that its types are those that there are."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pytest

from ddim import (
    DDIMInverseScheduler,
    DDIMPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from ddim.backends import BACKENDS, BackendName
from ddim.images import OUTPUT_TYPES, OutputType
from ddim.pipelines.outputs import LatentOutputType
from ddim.process import PREDICTIONS, SIGMA_HAT, Eta, PredictionType
from ddim.schedule import BETA_SCHEDULES, SPACINGS, BetaSchedule, Spacing

SOURCE = Path(__file__).parent.parent / "src"

# Each line that reveals a type, or is wrong, says so.
PROGRAM = """
import numpy as np
import torch
from PIL import Image
from ddim import DDIMPipeline, DDIMScheduler, DiffusionPipeline, SampleStep, StableDiffusionPipeline, sample
from ddim import StableDiffusionImg2ImgPipeline

pipe = DiffusionPipeline.from_pretrained("emoji")
pipe("a red heart", num_inference_steps=5).images[0].save("heart.png")
first: Image.Image = pipe("a red heart").images[0]
array: np.ndarray = pipe("a red heart", output_type="np").images
tensor: torch.Tensor = pipe("a red heart", output_type="pt").images
plain: tuple = pipe("a red heart", return_dict=False)  # type: ignore[type-arg]
images, found = pipe("a red heart", return_dict=False)
pipe("a red heart").imagse  # wrong: attr-defined

sd = StableDiffusionPipeline.from_pretrained("emoji")
reveal_type(sd("a red heart", seed=3).images)  # list[Image]
reveal_type(sd("a red heart", output_type="latent").images)  # Tensor
reveal_type(sd("a red heart", output_type="np").images)  # ndarray
reveal_type(sd("a red heart").nsfw_content_detected)  # list[bool] | None
sd("a red heart", num_steps=3)  # wrong: call-overload
sd("a red heart", order=3)  # wrong: call-overload
other = StableDiffusionImg2ImgPipeline.from_pipe(sd)
other("a red heart", image=first).images[0].save("other.png")

digits = DDIMPipeline.from_pretrained("digits")
reveal_type(digits(class_labels=[3], order=2).images)  # list[Image]
reveal_type(digits(num_inference_steps=None, guidance_scale=None, order=None).images)  # list[Image]
reveal_type(digits(output_type="pt").images)  # Tensor
digits(output_type="jpeg")  # wrong: call-overload

scheduler = DDIMScheduler(beta_schedule="linear", prediction_type="v_prediction", timestep_spacing="trailing")
DDIMScheduler(timestep_spacing="trailling")  # wrong: arg-type
DDIMScheduler(recommended_steps=8, recommended_order=2, recommended_spacing="optimized", trained_timesteps=[9, 1])
DDIMScheduler(recommended_order=3)  # wrong: arg-type
plan = scheduler.plan(10, eta="sigma_hat")
scheduler.plan(10, order=3)  # wrong: arg-type
scheduler.plan(10, spacing="trailling")  # wrong: arg-type
reveal_type(plan[-1])  # Row
reveal_type(plan[2:5])  # tuple
scheduler.set_timesteps(10)
x = torch.randn(1, 1, 8, 8)
reveal_type(scheduler.step(x, 0, x).prev_sample)  # Tensor
reveal_type(scheduler.step(x, 0, x, return_dict=False)[0])  # Tensor
for step in sample(lambda x, t: x, x, plan):
    reveal_type(step)  # SampleStep
pipe.accelerate("openvino").accelerate("onnx")  # wrong: arg-type
"""


@pytest.mark.slow  # ten seconds, or a minute where nothing of torch is in mypy's cache yet
def test_a_program_of_a_user_is_understood(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
    command += ["--no-error-summary", f"--cache-dir={SOURCE.parent / '.mypy_cache' / 'programs'}", str(file)]
    environment = {**os.environ, "MYPYPATH": str(SOURCE)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert not done.stderr
    said: dict[int, str] = {}
    for line in done.stdout.splitlines():
        if ": note: Revealed" in line or ": error:" in line:
            number = int(line.split(":")[1])
            said[number] = said.get(number, "") + line
    expected = {
        number: line.rpartition("  # ")[2]
        for number, line in enumerate(PROGRAM.splitlines(), start=1)
        if "reveal_type" in line or "# wrong" in line
    }
    assert set(said) == set(expected), done.stdout
    for number, text in expected.items():
        if text.startswith("wrong: "):
            assert f"[{text.removeprefix('wrong: ')}]" in said[number]
        else:
            assert "error" not in said[number]
            assert all(word in said[number] for word in text.replace("[", " ").replace("]", " ").split()), said[number]


@pytest.mark.parametrize(
    ("kinds", "table"),
    [
        (PredictionType, PREDICTIONS),
        (BetaSchedule, BETA_SCHEDULES),
        (Spacing, SPACINGS),
        (OutputType, OUTPUT_TYPES),
        (LatentOutputType, (*OUTPUT_TYPES, "latent")),
        (BackendName, (*BACKENDS, "auto")),
        (get_args(Eta)[1], [SIGMA_HAT]),
    ],
)
def test_the_types_name_what_there_is(kinds: Any, table: Iterable[str]) -> None:
    assert sorted(get_args(kinds)) == sorted(table)


@pytest.mark.parametrize(
    "function",
    [DDIMPipeline.__call__, StableDiffusionPipeline.__call__, DDIMScheduler.step, DDIMInverseScheduler.step],
)
def test_the_usual_overload_has_the_arguments_that_the_function_has(function: Any) -> None:
    """The signature is written twice, as a type checker wants it."""
    usual = typing.get_overloads(inspect.unwrap(function))[-1]
    told, real = (inspect.signature(each).parameters for each in (usual, function))
    assert list(told) == list(real)
    for name, parameter in real.items():
        assert (told[name].kind, told[name].default) == (parameter.kind, parameter.default), name
        if name not in ("output_type", "return_dict"):
            assert told[name].annotation == parameter.annotation, name


@pytest.mark.parametrize(
    "kind",
    [
        DDIMInverseScheduler,
        DDIMPipeline,
        DDIMScheduler,
        DiffusionPipeline,
        StableDiffusionImg2ImgPipeline,
        StableDiffusionInpaintPipeline,
        StableDiffusionPipeline,
    ],
)
def test_annotations_can_be_read_at_run_time(kind: type) -> None:
    """As documentation tools and diffusers do."""
    for name in ("__init__", "__call__", "step", "plan", "set_timesteps", "accelerate", "encode", "decode"):
        if hasattr(kind, name) and not (name == "__call__" and kind in (DDIMScheduler, DDIMInverseScheduler)):
            assert typing.get_type_hints(inspect.unwrap(getattr(kind, name)))
