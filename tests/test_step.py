"""What is beside the sums of a step: dynamic thresholding, and outputs. The steps themselves are in test_plan.py."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from diffusers.models.autoencoders import vae
from diffusers.models.unets import unet_2d
from diffusers.schedulers import scheduling_ddim
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_map

from ddim.models.backbone import UNet2DOutput
from ddim.models.clip import CLIPTextOutput
from ddim.models.vae import DecoderOutput
from ddim.pipelines import ImagePipelineOutput
from ddim.sampling import SampleStep
from ddim.step import DDIMSchedulerOutput, Output, described, threshold


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_sorting(x0: Tensor, ratio: float, maximum: float) -> Tensor:
    rows = []
    for row in x0:
        s = np.quantile(row.abs().double().numpy().ravel(), ratio)
        s = min(max(float(s), 1.0), maximum)
        rows.append(row.clamp(-s, s) / s)
    return torch.stack(rows)


@given(
    ratio=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.995, 1.0])),
    maximum=st.sampled_from([1.0, 1.5, 3.0, 100.0]),
    count=st.sampled_from([1, 2, 3, 48, 257]),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
    seed=st.integers(0, 99),
    double=st.booleans(),
)
def test_threshold_is_the_quantile_of_each_sample(
    ratio: float, maximum: float, count: int, scale: float, seed: int, double: bool
) -> None:
    x0 = torch.randn(3, count, generator=generator(seed), dtype=torch.float64 if double else torch.float32)
    x0 = x0 * torch.tensor([[scale], [1.0], [3 * scale]])
    exact = by_sorting(x0, ratio, maximum)
    torch.testing.assert_close(threshold(x0, ratio, maximum), exact, rtol=1e-5, atol=1e-6)
    # the way that accelerators, autograd and the compiler take
    other = threshold(x0.clone().requires_grad_(), ratio, maximum).detach()
    torch.testing.assert_close(other, exact, rtol=1e-5, atol=1e-6)


def test_threshold_leaves_its_input_and_the_range_alone() -> None:
    x0 = torch.randn(2, 3, 8, 8) * 4
    before = x0.clone()
    found = threshold(x0, 0.9, 100.0)
    assert torch.equal(x0, before)
    assert found.abs().max() == 1
    small = torch.rand(2, 3, 8, 8) - 0.5
    assert torch.equal(threshold(small, 0.995, 10.0), small)  # s = 1
    assert torch.equal(threshold(x0, 0.995, 1.0), x0.clamp(-1, 1))


def test_threshold_of_nan_is_nan_and_only_there() -> None:
    x0 = torch.full((2, 4), 0.5)
    x0[0, 1] = math.nan
    found = threshold(x0, 0.5, 2.0)
    assert found.isnan().sum() == 1
    assert torch.equal(found[1], x0[1])


# --- outputs ---------------------------------------------------------------------------------------------------------

OUTPUTS = [
    (DDIMSchedulerOutput, scheduling_ddim.DDIMSchedulerOutput, ("prev_sample", "pred_original_sample")),
    (UNet2DOutput, unet_2d.UNet2DOutput, ("sample",)),
    (DecoderOutput, vae.DecoderOutput, ("sample",)),
    (ImagePipelineOutput, diffusers.ImagePipelineOutput, ("images",)),
]


@pytest.mark.parametrize(("ours", "theirs", "names"), OUTPUTS, ids=lambda value: getattr(value, "__name__", ""))
def test_outputs_read_as_those_of_diffusers(ours: Any, theirs: Any, names: tuple[str, ...]) -> None:
    values = [torch.full((2,), float(k)) for k in range(len(names))]
    mine, other = ours(*values), theirs(*values)
    assert isinstance(mine, dict)
    for name, value in zip(names, values, strict=True):
        for out in (mine, other):
            assert getattr(out, name) is value
            assert out[name] is value
            assert out.get(name) is value
            assert name in out
            assert dict(out)[name] is {**out}[name] is value
    for read in (lambda out: [*out.keys()], lambda out: [*out.items()], lambda out: out.to_tuple(), len):
        assert read(mine) == read(other)
    assert mine[0] is other[0]
    assert mine[:1] == other[:1]
    assert "colour" not in mine
    assert mine.get("colour", 5) == 5
    with pytest.raises(KeyError, match="colour"):
        mine["colour"]
    assert [*mine] == values  # unlike there, where the names come: `prev, x0 = scheduler.step(…)`
    new = torch.zeros(2)
    for out in (mine, other):
        setattr(out, names[0], new)
        assert out[names[0]] is out[0] is new
        out[names[0]] = values[0]
        assert getattr(out, names[0]) is values[0]


def test_a_field_that_is_none_is_no_key() -> None:
    out = DDIMSchedulerOutput(torch.ones(1))
    assert out.keys() == ("prev_sample",)
    assert len(out) == 1
    assert out.to_tuple() == (out.prev_sample,)
    prev, x0 = out
    assert prev is out.prev_sample
    assert x0 is None


@pytest.mark.parametrize("kind", [UNet2DOutput, CLIPTextOutput, DDIMSchedulerOutput])
def test_what_goes_over_nested_tensors_goes_over_outputs(kind: Any) -> None:
    out = kind(*[torch.ones(2, dtype=torch.float16)] * len(kind.__dataclass_fields__))
    for made in (
        convert_outputs_to_fp32(lambda: out)(),  # accelerate, around a network in mixed precision
        tree_map(lambda x: x.float(), out),
    ):
        assert type(made) is kind
        assert all(value.dtype == torch.float32 for value in made)
    for made in (copy.copy(out), copy.deepcopy(out), pickle.loads(pickle.dumps(out))):
        assert type(made) is kind
        assert all(torch.equal(one, other) for one, other in zip(made, out, strict=True))
    assert out == out
    assert out != copy.copy(out)


# --- how it prints ---------------------------------------------------------------------------------------------------


def test_an_output_prints_what_its_tensors_are() -> None:
    wide = torch.linspace(-1, 3, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64)
    assert repr(DDIMSchedulerOutput(wide, torch.zeros(1, 2, dtype=torch.bfloat16))) == (
        "DDIMSchedulerOutput\n"
        "  prev_sample: tensor (2 3 64 64), float32, from -1 to 3\n"
        "  pred_original_sample: tensor (1 2), bfloat16, all 0"
    )
    assert repr(DDIMSchedulerOutput(wide)).splitlines()[2] == "  pred_original_sample: None"
    assert str(DDIMSchedulerOutput(wide)) == repr(DDIMSchedulerOutput(wide))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.tensor([1.0, math.nan]), "tensor (2), float32, with NaN"),
        (torch.tensor([1.0, math.inf]), "tensor (2), float32, from 1 to inf"),
        (torch.tensor([-0.0]), "tensor (1), float32, all 0"),
        (torch.tensor(3), "tensor (), int64, all 3"),
        (torch.tensor([True]), "tensor (1), bool"),
        (torch.zeros(0, 3), "tensor (0 3), float32"),
        (torch.zeros(2, device="meta"), "tensor (2), float32 on meta"),
        (torch.ones(2, requires_grad=True), "tensor (2), float32, all 1"),
        (torch.ones(2, dtype=torch.complex64), "tensor (2), complex64"),
        (np.zeros((2, 8, 8, 3), np.uint8), "array (2 8 8 3), uint8, all 0"),
        (np.array(["a"]), "array (1), <U1"),
        (Image.new("RGB", (8, 4)), "picture 8x4, RGB"),
        ([Image.new("L", (8, 8))] * 3, "list of 3: picture 8x8, L"),
        ([Image.new("L", (8, 8))] * 9, "list of 9: picture 8x8, L; …"),
        ((torch.ones(1), torch.zeros(2)), "tuple of 2: tensor (1), float32, all 1; tensor (2), float32, all 0"),
        ([False, True], "[False, True]"),
        (list(range(1000)), "[0, 1, 2, 3, 4, 5, ...]"),
        (None, "None"),
    ],
)
def test_any_value_is_described_in_a_line(value: Any, text: str) -> None:
    assert described(value) == text


def test_an_output_prints_while_it_is_traced_and_mapped() -> None:
    said = []

    def told(x: torch.Tensor) -> torch.Tensor:
        said.append(repr(DDIMSchedulerOutput(x)))
        return x

    torch.func.vmap(told)(torch.ones(3, 2))
    with torch._subclasses.FakeTensorMode():
        told(torch.ones(3, 2))
    assert [text.splitlines()[1] for text in said] == [
        "  prev_sample: tensor (2), float32",
        "  prev_sample: tensor (3 2), float32",
    ]


def test_every_output_prints_so() -> None:
    kinds = {kind.__name__: kind for kind in Output.__subclasses__()}
    assert {"DDIMSchedulerOutput"} <= set(kinds)
    for kind in kinds.values():
        assert kind.__repr__ is Output.__repr__


@pytest.mark.parametrize("ends", ["the image", "timestep 4"])
def test_a_step_of_a_run_prints_in_four_lines(ends: str) -> None:
    step = SampleStep(2, 7, -1 if ends == "the image" else 4, torch.ones(1, 3), None, torch.zeros(1, 3))
    assert repr(step).splitlines() == [
        f"SampleStep 2: from timestep 7 to {ends}",
        "  sample: tensor (1 3), float32, all 1",
        "  pred_original_sample: None",
        "  model_output: tensor (1 3), float32, all 0",
    ]
