"""With a part of the network replaced, nothing that a pipeline or a backend makes beforehand goes around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from tiny import tiny_pipeline
from tiny_sd import tiny_reference
from torch import Tensor

from ddim.models.attention import Attention
from ddim.pipelines import StableDiffusionPipeline
from ddim.pipelines.conditions import Condition
from ddim.pipelines.denoiser import TextDenoiser

STEPS = 3
OPTIONS: dict[str, Any] = {"num_inference_steps": STEPS, "seed": 0, "output_type": "latent", "height": 16, "width": 16}


@pytest.fixture
def pipe(tmp_path: Path) -> StableDiffusionPipeline:
    tiny_reference(tmp_path, 1)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: StableDiffusionPipeline, **options: Any) -> Tensor:
    images: Tensor = pipe("a cat", **{**OPTIONS, **options}).images
    return images


class Watching:
    """diffusers' own processor, which also notes the texts that it is given."""

    def __init__(self) -> None:
        self.texts: list[Tensor] = []
        self.own = AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        weight: float = 1.0,
    ) -> Tensor:
        if encoder_hidden_states is not None:
            assert isinstance(encoder_hidden_states, Tensor)
            self.texts.append(encoder_hidden_states)
        out: Tensor = self.own(attn, hidden_states, encoder_hidden_states, attention_mask)
        return out * weight


def test_a_processor_is_given_the_text_at_each_step(pipe: StableDiffusionPipeline) -> None:
    own = draw(pipe)
    watching = Watching()
    pipe.unet.set_attn_processor(watching)
    torch.testing.assert_close(draw(pipe), own, rtol=0, atol=1e-4)
    layers = len(pipe.unet.attn_processors) // 2
    assert len(watching.texts) == STEPS * layers
    assert {text.shape[0] for text in watching.texts} == {2}  # both halves of guidance in one batch
    pipe.unet.set_default_attn_processor()
    assert torch.equal(draw(pipe), own)


def test_a_callback_may_replace_a_part_between_two_steps(pipe: StableDiffusionPipeline) -> None:
    watching = Watching()

    def callback(pipe: Any, index: int, timestep: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        if index == 0:
            pipe.unet.set_attn_processor(watching)
        else:
            pipe.unet.set_default_attn_processor()
        return given

    own = draw(pipe)
    torch.testing.assert_close(draw(pipe, callback_on_step_end=callback), own, rtol=0, atol=1e-4)
    assert len(watching.texts) == len(pipe.unet.attn_processors) // 2


@pytest.mark.parametrize(
    "part",
    [
        "mid_block.attentions.0.transformer_blocks.0.attn2",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
        "down_blocks.0.resnets.0.time_emb_proj",
        "time_embedding",
        "mid_block",
        "conv_in",
        "",
    ],
)
@pytest.mark.thin(every=2)
def test_a_hook_is_called_at_each_step(pipe: StableDiffusionPipeline, part: str) -> None:
    own = draw(pipe)
    calls: list[Any] = []
    module = pipe.unet.get_submodule(part)
    handle = module.register_forward_hook(lambda *given: calls.append(given))
    torch.testing.assert_close(draw(pipe), own, rtol=0, atol=1e-4)
    assert len(calls) == STEPS
    handle.remove()
    assert torch.equal(draw(pipe), own)


def test_a_network_whose_forward_is_replaced_is_given_the_text(pipe: StableDiffusionPipeline) -> None:
    own, original, texts = draw(pipe), pipe.unet.forward, []

    def forward(sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, return_dict: bool = True) -> Any:
        texts.append(encoder_hidden_states)
        return original(sample, timestep, encoder_hidden_states, return_dict=return_dict)

    pipe.unet.forward = forward
    torch.testing.assert_close(draw(pipe), own, rtol=0, atol=1e-4)
    assert len(texts) == STEPS


def test_a_runner_is_left_out_as_long_as_a_part_is_replaced(pipe: StableDiffusionPipeline) -> None:
    own = draw(pipe)
    runs: list[int] = []
    decoded: list[int] = []

    def run(network: Any, noted: list[int]) -> Callable[..., Tensor]:
        def runner(*inputs: Tensor) -> Tensor:
            noted.append(len(inputs))
            out: Tensor = network.core(*inputs)
            return out

        return runner

    pipe.unet.runner, pipe.vae.runner = run(pipe.unet, runs), run(pipe.vae, decoded)
    assert torch.equal(draw(pipe), own)
    assert len(runs) == STEPS
    pipe.unet.set_attn_processor(Watching())
    torch.testing.assert_close(draw(pipe), own, rtol=0, atol=1e-4)
    assert len(runs) == STEPS
    draw(pipe, output_type="pt")
    assert len(decoded) == 1
    handle = pipe.vae.decoder.mid_block.register_forward_hook(lambda *_: None)
    draw(pipe, output_type="pt")
    assert len(decoded) == 1
    handle.remove()
    pipe.vae.set_attn_processor(AttnProcessor2_0())
    draw(pipe, output_type="pt")
    assert len(decoded) == 1
    pipe.vae.set_default_attn_processor()
    draw(pipe, output_type="pt")
    assert len(decoded) == 2


# The fast test beside it is test_a_runner_does_not_run_what_was_replaced of test_processors.py.
@pytest.mark.slow
def test_openvino_does_not_run_what_was_replaced(pipe: StableDiffusionPipeline) -> None:
    pytest.importorskip("openvino")
    own = draw(pipe)
    pipe.accelerate("openvino", dtype=torch.float32)
    torch.testing.assert_close(draw(pipe), own, rtol=0, atol=1e-2)

    def halved(_: Any, __: Any, out: Tensor) -> Tensor:
        return out * 0.5

    handle = pipe.unet.mid_block.register_forward_hook(halved)
    changed = draw(pipe)
    assert not torch.allclose(changed, own, atol=1e-2)
    pipe.accelerate("eager")
    torch.testing.assert_close(draw(pipe), changed, rtol=0, atol=1e-2)
    handle.remove()


def test_more_arguments_for_processors_reach_them_at_each_step(pipe: StableDiffusionPipeline) -> None:
    plan = pipe.scheduler.plan(STEPS)
    text, x = torch.randn(1, 5, 32), torch.randn(1, 4, 8, 8)
    pipe.unet.set_attn_processor(Watching())

    @torch.no_grad()
    def predict(**more: Any) -> Tensor:
        return TextDenoiser(pipe.unet, plan, Condition(text), None, scale=1.0, **more)(x, torch.tensor(500))

    plain = predict()
    assert torch.equal(plain, predict(cross_attention_kwargs={"weight": 1.0}))
    assert not torch.allclose(plain, predict(cross_attention_kwargs={"weight": 0.0}), atol=1e-3)


def test_without_a_replaced_part_all_is_made_beforehand(
    pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look at the parts for each step, and no text or timestep that is embedded again."""
    embedded: list[int] = []
    embed = pipe.unet.embed
    monkeypatch.setattr(pipe.unet, "embed", lambda *given, **more: embedded.append(1) or embed(*given, **more))
    looks: list[int] = []
    import ddim.pipelines.told as module

    is_replaced = module.is_replaced
    monkeypatch.setattr(module, "is_replaced", lambda network: looks.append(1) or is_replaced(network))
    draw(pipe)
    assert len(embedded) == 1
    assert len(looks) == STEPS + 1


def test_a_pipeline_on_pixels_calls_what_was_put_in_place_at_each_step() -> None:
    pipe = tiny_pipeline()
    options: dict[str, Any] = {"num_inference_steps": STEPS, "seed": 0, "output_type": "pt"}
    own = pipe(**options).images
    calls: list[Any] = []
    handle = pipe.unet.down_blocks[0].resnets[0].time_emb_proj.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(pipe(**options).images, own, rtol=0, atol=1e-5)
    assert len(calls) == STEPS
    handle.remove()
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    torch.testing.assert_close(pipe(**options).images, own, rtol=0, atol=1e-5)
