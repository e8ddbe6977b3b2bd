"""OpenVINO after any sequence of changes of the weights: each picture is the one that PyTorch draws with them.

Memory is given back, and runs that are under way go on as they began.
"""

from __future__ import annotations

import copy
import gc
import random
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_unet
from torch import Tensor, nn

from ddim import DDIMPipeline, DDIMScheduler, StableDiffusionPipeline
from ddim.backends import accelerate
from ddim.models import AutoencoderKL, UNet2DConditionModel
from ddim.models.core import HasCore

pytest.importorskip("openvino", reason="the `fast` extra is not installed")
from ddim.backends import openvino as backend

LAYERS = ("mid_block.attentions.0.transformer_blocks.0.attn1.to_v", "mid_block.attentions.0.proj_out")
TEXTS = torch.randn(2, 1, 5, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


def pipeline(seed: int = 0) -> StableDiffusionPipeline:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=4, block_out_channels=(8,), layers_per_block=1, down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), norm_num_groups=4, cross_attention_dim=12, attention_head_dim=2,
    ).eval()  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).eval()
    pipe = StableDiffusionPipeline(vae, None, None, unet, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: StableDiffusionPipeline, text: int = 0, steps: int = 2, **more: Any) -> Tensor:
    options: dict[str, Any] = {"guidance_scale": 1.0, "seed": 0, "output_type": "latent", **more}
    return pipe(prompt_embeds=TEXTS[text], num_inference_steps=steps, **options).images  # type: ignore[no-any-return]


def in_pytorch(pipe: StableDiffusionPipeline, text: int = 0, **more: Any) -> Tensor:
    """What a new pipeline draws in PyTorch with the present weights."""
    other = StableDiffusionPipeline(copy.deepcopy(pipe.vae), None, None, copy.deepcopy(pipe.unet), pipe.scheduler)
    other.set_progress_bar_config(disable=True)
    return draw(other, text, **more)


def adapter(pipe: StableDiffusionPipeline, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in LAYERS:
        out, into, *rest = pipe.unet.get_submodule(layer).weight.shape
        tensors[f"unet.{layer}.lora_A.weight"] = torch.randn(2, into, *rest, generator=generator)
        tensors[f"unet.{layer}.lora_B.weight"] = torch.randn(out, 2, *rest, generator=generator)
    return tensors


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, atol=1e-4, rtol=1e-3)


# --- random sequences ------------------------------------------------------------------------------------------------

Change = Callable[[StableDiffusionPipeline, random.Random], Any]


def layer_of(pipe: StableDiffusionPipeline, rng: random.Random) -> Any:
    return pipe.unet.get_submodule(rng.choice((*LAYERS, "conv_in", "mid_block.resnets.0.conv1", "conv_out")))


def load(pipe: StableDiffusionPipeline, rng: random.Random) -> None:
    pipe.load_lora_weights(adapter(pipe, rng.randrange(3)))


def strength(pipe: StableDiffusionPipeline, rng: random.Random) -> None:
    names = pipe.get_list_adapters().get("unet", [])
    if names:
        pipe.set_adapters(rng.choice(names), rng.choice((0.0, 0.5, -1.0, 2.0)))


def take_out(pipe: StableDiffusionPipeline, rng: random.Random) -> None:
    if rng.random() < 0.5:
        pipe.fuse_lora()
    pipe.unload_lora_weights()


def assigned(pipe: StableDiffusionPipeline, rng: random.Random) -> None:
    own = {name: tensor.clone() for name, tensor in pipeline(rng.randrange(9)).unet.state_dict().items()}
    pipe.unload_lora_weights()
    pipe.unet.load_state_dict(own, assign=rng.random() < 0.5)


def fused_step(pipe: StableDiffusionPipeline, rng: random.Random) -> None:
    parameters = list(pipe.unet.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    torch.optim.SGD(parameters, lr=0.02, fused=True).step()
    for parameter in parameters:
        parameter.grad = None


def in_place(pipe: StableDiffusionPipeline, rng: random.Random) -> None:
    layer_of(pipe, rng).weight.mul_(1.5)


def one_number(pipe: StableDiffusionPipeline, rng: random.Random) -> None:
    layer_of(pipe, rng).weight.data.view(-1)[rng.randrange(8)] = rng.uniform(1, 3)


def in_data(pipe: StableDiffusionPipeline, rng: random.Random) -> None:
    layer_of(pipe, rng).weight.data += 0.1


def other_memory(pipe: StableDiffusionPipeline, rng: random.Random) -> None:
    layer = layer_of(pipe, rng)
    layer.weight.data = layer.weight.data * rng.choice((0.5, 2.0))


def other_parameter(pipe: StableDiffusionPipeline, rng: random.Random) -> None:
    layer = layer_of(pipe, rng)
    layer.weight = nn.Parameter(layer.weight * rng.choice((0.5, 2.0)))


def types(pipe: StableDiffusionPipeline, rng: random.Random) -> None:
    pipe.to(torch.bfloat16).to(torch.float32)


def collect(pipe: StableDiffusionPipeline, rng: random.Random) -> None:
    gc.collect()


def switch(pipe: StableDiffusionPipeline, rng: random.Random) -> None:
    pipe.accelerate("eager")
    pipe.accelerate("openvino", dtype=torch.float32)


CHANGES: list[Change] = [
    load, load, strength, strength, take_out, assigned, fused_step, in_place, one_number, in_data, other_memory,
    other_parameter, types, collect, switch,
]  # fmt: skip


@torch.no_grad()
def tried(seed: int, rounds: int) -> None:
    """Make random changes, one to three at a time, and draw after each, sometimes with a further one in the run."""
    rng, pipe, done = random.Random(seed), pipeline(), []
    pipe.accelerate("openvino", dtype=torch.float32)
    for _ in range(rounds):
        for change in rng.choices(CHANGES, k=rng.randint(1, 3)):
            change(pipe, rng)
            done.append(change.__name__)
        text, within = rng.randrange(2), rng.random() < 0.3
        start = copy.deepcopy(pipe)
        if not within:
            assert close(draw(pipe, text), in_pytorch(pipe, text)), done
            continue
        number, noticed = rng.randrange(1 << 30), (load, in_place, in_data, other_memory, other_parameter)
        change = rng.choice(noticed)
        done.append(f"{change.__name__} in a run")

        def callback(own: Any, index: int, timestep: Tensor, given: Any) -> None:
            if index == 0:
                change(own, random.Random(number))  # noqa: B023

        found = draw(pipe, text, callback_on_step_end=callback)
        assert close(found, in_pytorch(start, text, callback_on_step_end=callback)), done


# The fast test beside it is test_inputs_are_read_anew_wherever_they_lie.
@pytest.mark.slow
def test_random_changes() -> None:
    tried(seed=1, rounds=6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 10))
def test_many_random_changes(seed: int) -> None:
    tried(seed, rounds=30)


@torch.no_grad()
def test_two_threads_draw_while_weights_change_between() -> None:
    """Each of two threads has networks of its own and changes them; both use OpenVINO and the collector at once."""
    wrong: list[str] = []

    def work(seed: int) -> None:
        try:
            tried(seed, rounds=2)
        except BaseException as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (21, 22)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.no_grad()
# The fast test beside it is test_two_threads_draw_while_weights_change_between.
@pytest.mark.slow
def test_a_change_by_another_thread_is_in_the_pictures_that_begin_after_it() -> None:
    pipe = pipeline()
    pipe.accelerate("openvino", dtype=torch.float32)
    draw(pipe)
    stop, wrong = threading.Event(), []

    def go_on() -> None:
        while not stop.is_set():
            if not draw(pipe, 1).isfinite().all():
                wrong.append("not finite")

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        for seed in range(3):
            pipe.unload_lora_weights()
            pipe.load_lora_weights(adapter(pipe, seed))
            assert close(draw(pipe), in_pytorch(pipe))
    finally:
        stop.set()
        thread.join()
    assert not wrong


def test_adapters_that_come_and_go_are_never_one_anothers() -> None:
    """Memory that is given back is often used for the next adapter at once: addresses say nothing."""
    pipe = pipeline()
    right = {}
    for seed in (1, 2):
        pipe.load_lora_weights(adapter(pipe, seed))
        right[seed] = draw(pipe)
        pipe.unload_lora_weights()
    assert not close(right[1], right[2])
    pipe.accelerate("openvino", dtype=torch.float32)
    for seed in (1, 2) * 3:
        pipe.load_lora_weights(adapter(pipe, seed))
        assert close(draw(pipe), right[seed])
        pipe.unload_lora_weights()


@pytest.mark.parametrize("backend_name", ["eager", "openvino"])
@pytest.mark.parametrize("part", ["attn2.to_v", "time_embedding"])
@torch.no_grad()
@pytest.mark.thin(fast=["attn2.to_v-openvino", "time_embedding-eager"])
def test_what_is_computed_once_a_run_follows_weights_that_a_callback_changes(part: str, backend_name: str) -> None:
    """A text's keys and the timesteps' embeddings, whatever way their weights are changed in."""
    pipe = pipeline()
    name = next(n for n, _ in pipe.unet.named_parameters() if part in n and n.endswith("weight"))
    plain = draw(pipe)
    for way in ("in place", "data", "load_state_dict"):
        pipe = pipeline()
        pipe.accelerate(backend_name, *([torch.float32] if backend_name == "openvino" else []))

        def callback(own: Any, index: int, timestep: Tensor, given: Any, way: str = way) -> None:
            weight = own.unet.get_parameter(name)
            if index:
                return
            if way == "in place":
                weight.mul_(-30)
            elif way == "data":
                weight.data.mul_(-30)
            else:
                own.unet.load_state_dict({name: weight * -30}, strict=False)

        found = draw(pipe, callback_on_step_end=callback)
        # The same by hand: the first step with the one network, the second with the other.
        by_hand = pipeline()
        first = draw(by_hand, callback_on_step_end=lambda *_: False)
        by_hand.unet.get_parameter(name).mul_(-30)
        timesteps = by_hand.scheduler.plan(2).timesteps
        out = by_hand.unet(first, timesteps[1], TEXTS[0]).sample
        expected = by_hand.scheduler.plan(2).step(out, timesteps[1], first).prev_sample
        assert not close(expected, plain)
        assert close(found, expected)


@torch.no_grad()
def test_a_text_that_a_callback_writes_into_is_looked_at_anew() -> None:
    def returns(own: Any, index: int, timestep: Tensor, given: Any) -> dict[str, Tensor]:
        return {"prompt_embeds": given["prompt_embeds"] * 3} if index == 0 else {}

    def writes(own: Any, index: int, timestep: Tensor, given: Any) -> None:
        if index == 0:
            given["prompt_embeds"].mul_(3)

    shown = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    expected = draw(pipeline(), callback_on_step_end=returns, **shown)
    text = TEXTS[0].clone()
    pipe = pipeline()
    options: dict[str, Any] = {"guidance_scale": 1.0, "seed": 0, "output_type": "latent", "num_inference_steps": 2}
    found = pipe(prompt_embeds=text, callback_on_step_end=writes, **options, **shown).images
    assert close(found, expected)
    assert not close(found, draw(pipeline()))


@torch.no_grad()
def test_classes_and_times_of_pixels_follow_weights_that_a_callback_changes() -> None:
    def pixels() -> DDIMPipeline:
        pipe = DDIMPipeline(tiny_unet(num_class_embeds=3), DDIMScheduler())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def callback(own: Any, index: int, timestep: int, given: Any) -> None:
        if index == 0:
            own.unet.class_embedding.weight.data.mul_(-5)

    options: dict[str, Any] = {"class_labels": [1], "num_inference_steps": 2, "seed": 0, "output_type": "pt"}
    plain, found = pixels()(**options).images, pixels()(**options, callback_on_step_end=callback).images
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddim.pipelines.pixels.LARGEST_CACHE", 0)  # so that nothing is made beforehand
        expected = pixels()(**options, callback_on_step_end=callback).images
    assert close(found, expected)
    assert not close(found, plain)


@torch.no_grad()
def test_compiled_graphs_read_the_weights_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda core, **how: compiled(core, backend="aot_eager", **how))
    pipe, rng = pipeline(), random.Random(3)
    pipe.accelerate("compile")
    assert close(draw(pipe), in_pytorch(pipe))
    for change in (load, strength, take_out, in_place, one_number, in_data, other_memory, other_parameter, assigned):
        change(pipe, rng)
        assert close(draw(pipe), in_pytorch(pipe)), change.__name__
    assert "failed" not in pipe.backend


# --- what is switched in a run ---------------------------------------------------------------------------------------


class Noted:
    """A runner that notes its name at each step."""

    def __init__(self, network: HasCore, name: str, notes: list[str]) -> None:
        self.network, self.name, self.notes = network, name, notes

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.notes.append(self.name)
        return self.network.core(*inputs)


@pytest.mark.parametrize("by_thread", [True, False])
def test_a_run_goes_on_with_the_backend_that_it_began_with(by_thread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    for name in ("eager", "openvino"):
        monkeypatch.setitem(
            __import__("ddim.backends", fromlist=["BACKENDS"]).BACKENDS,
            name,
            lambda network, dtype, name=name: Noted(network, name, notes),
        )
    pipe = pipeline()
    pipe.accelerate("openvino")

    def callback(own: Any, index: int, timestep: Tensor, given: Any) -> None:
        if index == 1:
            thread = threading.Thread(target=pipe.accelerate, args=("eager",))
            (thread.start if by_thread else thread.run)()
            if by_thread:
                thread.join()

    draw(pipe, steps=4, output_type="pt", callback_on_step_end=callback)
    assert notes == ["openvino"] * 5  # four steps and the decoder
    notes.clear()
    draw(pipe, steps=2)
    assert notes == ["eager"] * 2


@torch.no_grad()
# The fast test beside it is test_two_threads_draw_while_weights_change_between.
@pytest.mark.slow
def test_openvino_is_switched_off_and_on_while_two_threads_draw() -> None:
    pipe = pipeline()
    expected = [draw(pipe, text) for text in (0, 1)]
    pipe.accelerate("openvino", dtype=torch.float32)
    wrong: list[Any] = []
    stop = threading.Event()

    def go_on(text: int) -> None:
        while not stop.is_set():
            try:
                if not close(draw(pipe, text), expected[text]):
                    wrong.append(text)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=go_on, args=(text,)) for text in (0, 1)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        for name in ("eager", "openvino"):
            pipe.accelerate(name, **({"dtype": torch.float32} if name == "openvino" else {}))
            draw(pipe)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


# --- memory ----------------------------------------------------------------------------------------------------------


class Counted:
    """Counts the compiled models that are alive."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        own = backend.Made.__init__

        def made(this: Any, *given: Any) -> None:
            own(this, *given)
            self.alive.add(this)

        monkeypatch.setattr(backend.Made, "__init__", made)


# The fast test beside it is test_adapters_that_come_and_go_are_never_one_anothers.
@pytest.mark.slow
def test_weights_that_are_gone_take_their_models_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, pipe = Counted(monkeypatch), pipeline()
    pipe.accelerate("openvino", dtype=torch.float32)
    pipe.load_lora_weights(adapter(pipe, 1), "a")
    gc.disable()  # nothing waits for a collection
    try:
        for number in range(3):
            pipe.set_adapters("a", 0.1 + number)
            thread = threading.Thread(target=draw, args=(pipe,))  # with requests of its own, which end with it
            thread.start()
            thread.join()
            draw(pipe)
            assert len(counted.alive) == 1
        pipe.accelerate("eager")
        assert not counted.alive
        pipe.accelerate("openvino", dtype=torch.float32)
        draw(pipe)
        assert counted.alive
        del pipe
        assert not counted.alive
    finally:
        gc.enable()


def test_other_weights_are_put_into_the_model_and_not_traced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's tracer never gives back its memory: 15 MB for each trace of the emoji U-Net."""
    converted: list[int] = []
    own = backend.convert
    monkeypatch.setattr(backend, "convert", lambda *given: converted.append(1) or own(*given))
    pipe = pipeline()
    pipe.accelerate("openvino", dtype=torch.float32)
    pipe.load_lora_weights(adapter(pipe, 1), "a")
    for number in range(3):
        pipe.set_adapters("a", 0.1 + number)
        assert close(draw(pipe), in_pytorch(pipe))
    assert len(converted) == 1


# The fast test beside it is test_other_weights_are_put_into_the_model_and_not_traced_again.
@pytest.mark.slow
def test_a_model_that_computed_with_weights_is_converted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[int] = []
    own = backend.convert
    monkeypatch.setattr(backend, "convert", lambda *given: converted.append(1) or own(*given))
    monkeypatch.setattr(backend, "has_named_weights", lambda *_: False)
    pipe = pipeline()
    pipe.accelerate("openvino", dtype=torch.float32)
    for factor in (2, 3):
        pipe.unet.conv_out.weight.data.mul_(factor)
        assert close(draw(pipe), in_pytorch(pipe))
    assert len(converted) == 2


@torch.no_grad()
def test_weights_that_change_during_the_conversion_are_not_used_or_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline()
    pipe.accelerate("openvino", dtype=torch.float32)
    own, calls = backend.convert, []

    def convert(network: Any, inputs: Any) -> Any:
        calls.append(1)
        model = own(network, inputs)
        if len(calls) == 1:
            with torch.no_grad():
                network.conv_in.weight.data[0, 0, 0, 0] = 7.0  # by another thread, say
        return model

    monkeypatch.setattr(backend, "convert", convert)
    expected = draw(pipe)
    assert close(draw(pipe), in_pytorch(pipe))
    assert close(expected, draw(pipe))
    other = pipeline()  # with the first weights, under whose name nothing else may have been kept
    other.accelerate("openvino", dtype=torch.float32)
    assert close(draw(other), in_pytorch(other))
    assert not close(draw(other), expected)


# --- inputs ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", ["as it is", "bfloat16", "strided", "expanded", "half of one"])
@pytest.mark.thin(fast=["strided"])
def test_inputs_are_read_anew_wherever_they_lie(kind: str) -> None:
    """Written to in place, or at the address of one that is gone: as it is, or where a copy of it was handed over."""
    pipe = pipeline()
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    unet, plain = pipe.unet.to(dtype), copy.deepcopy(pipe.unet)
    accelerate([unet], "openvino", torch.float32)

    def made(seed: int) -> Tensor:
        x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
        if kind == "bfloat16":
            return x.to(dtype)
        if kind == "strided":
            return x.transpose(2, 3)
        if kind == "expanded":
            return x[:1, :, :, :1].expand(2, 4, 4, 4)
        return torch.cat([x, x])[1:3] if kind == "half of one" else x

    text = torch.randn(2, 5, 12, dtype=dtype)
    times, keys = unet.project_time(torch.tensor([5])), unet.project_text(text)

    def check(x: Tensor) -> None:
        found = unet(x, 5, time_cache=times, text_cache=keys).sample
        expected = plain(x, 5, time_cache=times, text_cache=keys).sample
        torch.testing.assert_close(found, expected, atol=3e-2 if kind == "bfloat16" else 1e-4, rtol=1e-2)

    for seed in range(6):
        x = made(seed)
        check(x)
        if kind != "expanded":
            x.mul_(-2)
            check(x)
        del x
        gc.collect()


@torch.no_grad()
def test_tokens_are_read_anew_when_they_are_written_to() -> None:
    from ddim.models import CLIPTextModel

    torch.manual_seed(4)
    network = CLIPTextModel(
        vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=10, eos_token_id=29,
    ).eval()  # fmt: skip
    plain = copy.deepcopy(network)
    accelerate([network], "openvino", torch.float32)
    ids = torch.randint(0, 29, (1, 10))
    for _ in range(3):
        assert close(network(ids).last_hidden_state, plain(ids).last_hidden_state)
        ids.copy_((ids + 7) % 29)
    network.text_model.encoder.layers[0].mlp.fc1.weight.mul_(3)
    plain.load_state_dict(network.state_dict())
    assert close(network(ids).last_hidden_state, plain(ids).last_hidden_state)
