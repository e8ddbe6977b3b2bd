"""Backends: the same pictures, whatever runs the networks; and PyTorch when it fails."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddim import DDIMPipeline, DDIMScheduler
from ddim.backends import accelerate, choose_backend, describe
from ddim.errors import ConfigError
from ddim.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel, UNet2DModel
from ddim.models.core import HasCore

openvino = pytest.importorskip("openvino", reason="the `fast` extra is not installed")
from ddim.backends import openvino as backend  # noqa: E402

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests keep what they converted: a conversion takes nearly a second, and many run the same network."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(autouse=True)
def _kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDIM_CACHE", str(kept))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _kept: None) -> Path:
    """A test's own folder of converted networks, empty at first, for those that look into it or need a conversion."""
    monkeypatch.setenv("DDIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


def pixels() -> UNet2DModel:
    torch.manual_seed(1)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        num_class_embeds=4,
    ).eval()


def latents() -> UNet2DConditionModel:
    torch.manual_seed(2)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
    ).eval()


def autoencoder() -> AutoencoderKL:
    torch.manual_seed(3)
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).eval()


def text_encoder() -> CLIPTextModel:
    torch.manual_seed(4)
    return CLIPTextModel(
        vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=10, eos_token_id=29,
    ).eval()  # fmt: skip


def predict(network: Any, batch: int = 2) -> Tensor:
    """What a network of any of these kinds makes of the same inputs."""
    torch.manual_seed(batch)
    with torch.no_grad():
        if isinstance(network, UNet2DModel):
            labels = torch.arange(batch) % 4
            return network(torch.randn(batch, 1, 8, 8), 300, labels).sample
        if isinstance(network, UNet2DConditionModel):
            return network(torch.randn(batch, 4, 8, 8), 300, torch.randn(batch, 5, 12)).sample
        if isinstance(network, AutoencoderKL):
            return network.decode(torch.randn(batch, 4, 4, 4)).sample
        return network(torch.randint(0, 29, (batch, 10))).last_hidden_state


NETWORKS: tuple[Callable[[], HasCore], ...] = (pixels, latents, autoencoder, text_encoder)
FLOAT = {"dtype": torch.float32}


def without_conversion(*_: Any) -> None:
    raise AssertionError("it was converted again")


def pipeline() -> DDIMPipeline:
    pipe = DDIMPipeline(pixels(), DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: DDIMPipeline, count: int = 2, seed: int = 0) -> Tensor:
    images: Tensor = pipe(
        class_labels=[k % 3 for k in range(count)], num_inference_steps=4, seed=seed, guidance_scale=2.0,
        output_type="pt",
    ).images  # fmt: skip
    return images


# --- OpenVINO: the same results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.thin(fast=["pixels", "autoencoder", "text_encoder"])
def test_each_network_gives_what_pytorch_gives(make: Callable[[], HasCore]) -> None:
    network = make()
    expected = predict(network)
    accelerate([network], "openvino", torch.float32)
    torch.testing.assert_close(predict(network), expected, atol=TOLERANCE, rtol=1e-4)
    assert describe(network) == "OpenVINO, f32"


# The fast test beside it is test_half_precision_weights.
@pytest.mark.slow
def test_its_own_precision_is_near() -> None:
    network = latents()
    expected = predict(network)
    accelerate([network], "openvino")
    found = predict(network)
    assert describe(network) in ("OpenVINO, bf16", "OpenVINO, f32", "OpenVINO, f16")
    assert (found - expected).norm() / expected.norm() < 0.05


def test_half_precision_weights() -> None:
    network = latents().to(torch.bfloat16)
    expected = predict(network.float())
    network.to(torch.bfloat16)
    accelerate([network], "openvino", torch.float32)
    with torch.no_grad():
        torch.manual_seed(2)
        x, text = torch.randn(2, 4, 8, 8).bfloat16(), torch.randn(2, 5, 12).bfloat16()
        found = network(x, 300, text).sample
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() / expected.norm() < 0.05


# The fast test beside it is test_parts_give_what_the_whole_gives.
@pytest.mark.slow
def test_any_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "BATCH_SIZES", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    network = pixels()
    sizes = [2, 1, 5, 3, 2, 9]
    expected = [predict(network, size) for size in sizes]
    accelerate([network], "openvino", torch.float32)
    for size, each in zip(sizes, expected, strict=True):
        torch.testing.assert_close(predict(network, size), each, atol=TOLERANCE, rtol=1e-4)
    shapes = {shape[0] for shape, _ in network.runner.compiled}  # type: ignore[union-attr]
    assert (-1, 1, 8, 8) in shapes  # the third size and all later ones share one
    assert len({id(model) for model in network.runner.compiled.values()}) == backend.BATCH_SIZES + 1  # type: ignore[union-attr]


@pytest.mark.parametrize(("batch", "threads", "parts"), [(6, 4, 3), (5, 4, 1), (1, 2, 1), (8, 2, 2), (2, 32, 2)])
def test_a_batch_is_shared_out_evenly(batch: int, threads: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, shared = torch.randn(batch, 3), torch.randn(1, 7)
    found = backend.shared_out((x, shared))
    assert len(found) == parts
    assert torch.equal(torch.cat([part[0] for part in found]), x)
    assert all(len(part[0]) == batch // parts and torch.equal(part[1], shared) for part in found)


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.thin(fast=["3"])
def test_parts_give_what_the_whole_gives(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = latents()
    expected = predict(network, 6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    accelerate([network], "openvino", torch.float32)
    for _ in range(2):
        torch.testing.assert_close(predict(network, 6), expected, atol=TOLERANCE, rtol=1e-4)
    ((_, count),) = network.runner.compiled  # type: ignore[union-attr]
    assert count == threads


def test_another_picture_size() -> None:
    network = autoencoder()
    z = torch.randn(1, 4, 6, 4)
    with torch.no_grad():
        expected = network.decode(z).sample
        accelerate([network], "openvino", torch.float32)
        predict(network)
        torch.testing.assert_close(network.decode(z).sample, expected, atol=TOLERANCE, rtol=1e-4)


def test_a_pipeline_draws_the_same_pictures() -> None:
    pipe = pipeline()
    expected = draw(pipe)
    assert pipe.backend == "eager, float32"
    assert pipe.accelerate("openvino", dtype=torch.float32) is pipe
    torch.testing.assert_close(draw(pipe), expected, atol=1e-4, rtol=0)
    assert pipe.backend == "OpenVINO, f32"
    pipe.accelerate("eager")
    assert torch.equal(draw(pipe), expected)


def test_threads_share_a_pipeline() -> None:
    pipe = pipeline()
    expected = [draw(pipe, seed=seed) for seed in range(4)]
    pipe.accelerate("openvino", dtype=torch.float32)
    found: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: found.update({seed: draw(pipe, seed=seed)})) for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        torch.testing.assert_close(found[seed], expected[seed], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("is_contiguous", [True, False])
def test_what_is_given_once_may_change_where_it_is(is_contiguous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text's keys stay where they are for a whole run, and are given once; those that need a copy, each time."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    network, plain = latents(), latents()
    accelerate([network], "openvino", torch.float32)
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    cache = network.project_text(text) if is_contiguous else network._keys_and_values(text)

    def check() -> dict[int, Tensor]:
        found, expected = (each(x, 300, text_cache=cache).sample for each in (network, plain))
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=1e-4)
        ((_, (request,)),) = network.runner.local.requests.values()  # type: ignore[union-attr]
        return dict(request.given)

    first = check()
    for key, value in cache:
        key.mul_(-3)
        value.add_(2)
    second = check()
    same = [first[index] is second[index] for index in first]
    assert same == [True, False, *([is_contiguous] * (len(same) - 2))]  # x, times, keys and values


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_this_thread_may_run_on_any_processor_afterwards() -> None:
    before = os.sched_getaffinity(0)
    network = pixels()
    accelerate([network], "openvino", torch.float32)
    predict(network)
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs a POSIX system")
def test_signals_arrive_after_runners_are_gone() -> None:
    script = """
import os, signal
from ddim.backends.openvino import OpenVINORunner
from ddim.models import UNet2DModel
network = UNet2DModel(block_out_channels=(32, 32), down_block_types=["DownBlock2D"] * 2,
                      up_block_types=["UpBlock2D"] * 2)
runners = [OpenVINORunner(network) for _ in range(3)]
while runners:
    del runners[0]
signal.signal(signal.SIGUSR1, lambda *_: print("arrived"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "arrived\n"), done.stderr


def test_changed_weights_are_seen() -> None:
    network = pixels()
    accelerate([network], "openvino", torch.float32)
    before = predict(network)
    for change in (
        lambda: network.conv_out.bias.data.add_(1),  # below autograd's notice
        lambda: setattr(network.conv_out.weight, "data", network.conv_out.weight * 2),  # as adapters are merged
        lambda: network.load_state_dict({**network.state_dict(), "conv_out.bias": torch.zeros(1)}),
    ):
        with torch.no_grad():
            change()
        found = predict(network)
        network.runner, kept = None, network.runner
        torch.testing.assert_close(found, predict(network), atol=TOLERANCE, rtol=1e-4)
        network.runner = kept
        assert (found - before).abs().max() > 0.1
        before = found


# --- what is kept on disk --------------------------------------------------------------------------------------------


def test_a_second_run_converts_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = text_encoder(), text_encoder()
    accelerate([first], "openvino", torch.float32)
    expected = predict(first)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(backend, "convert", without_conversion)
    accelerate([second], "openvino", torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(predict(second), expected)


def test_other_weights_are_another_file(cache: Path) -> None:
    first, second = pixels(), pixels()
    with torch.no_grad():
        second.conv_out.bias += 1
    expected = predict(second)
    for network in (first, second):
        accelerate([network], "openvino", torch.float32)
        found = predict(network)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=1e-4)
    assert len(list(cache.iterdir())) == 2


def test_a_file_is_for_one_class_config_and_type(cache: Path) -> None:
    class Other(UNet2DModel):
        pass

    network = pixels()
    other = Other(**{name: value for name, value in network.config.items() if name[0] != "_"})
    other.load_state_dict(network.state_dict())
    changed = copy.deepcopy(network)
    changed.register_to_config(sample_size=16)
    zeros, same_bytes = (pixels().to(dtype) for dtype in (torch.float16, torch.bfloat16))
    for each in (zeros, same_bytes):
        for parameter in each.parameters():
            parameter.data.zero_()
    every = [network, other, changed, zeros, same_bytes]
    assert len({backend.identity(each) for each in every}) == len(every)
    assert backend.identity(network) == backend.identity(pixels())


def test_a_file_is_for_one_structure(cache: Path) -> None:
    """Another activation has neither weights nor an entry in the config."""
    network, other = pixels(), pixels()
    other.conv_act = torch.nn.Tanh()
    told = pixels()
    told.mid_block.resnets[0].conv1.padding_mode = "circular"
    assert len({backend.identity(each) for each in (network, other, told)}) == 3
    expected = predict(other)
    for each in (network, other):
        accelerate([each], "openvino", torch.float32)
        found = predict(each)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=1e-4)


def test_a_class_of_somebody_elses_is_not_kept(cache: Path) -> None:
    """Its code may change without its name."""

    class Other(UNet2DModel):
        def body(self, *inputs: Any) -> Tensor:
            return super().body(*inputs) * 2

    network = Other(**{name: value for name, value in pixels().config.items() if name[0] != "_"}).eval()
    expected = predict(network)
    accelerate([network], "openvino", torch.float32)
    torch.testing.assert_close(predict(network), expected, atol=TOLERANCE, rtol=1e-4)
    assert not cache.exists()


# The fast test beside it is test_other_weights_are_another_file.
@pytest.mark.slow
def test_weights_that_live_for_one_run_are_not_kept(cache: Path) -> None:
    pipe = pipeline()
    pipe.accelerate("openvino", dtype=torch.float32)
    draw(pipe)
    assert len(list(cache.iterdir())) == 1  # the first that it meets, which a command's only run would be
    for strength in (2, 3):
        pipe.unet.conv_out.weight.data.mul_(strength)
        draw(pipe)
    assert len(list(cache.iterdir())) == 1
    draw(pipe)  # these are here to stay
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "changed"])
@pytest.mark.thin(every=3)
def test_a_damaged_file_is_made_anew(cache: Path, damage: str) -> None:
    network = text_encoder()
    expected = predict(network)
    accelerate([network], "openvino", torch.float32)
    predict(network)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "changed": bytes(changed)}[damage])
    accelerate([network], "openvino", torch.float32)
    torch.testing.assert_close(predict(network), expected, atol=TOLERANCE, rtol=1e-4)
    assert backend.read_whole(file) is not None


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DDIM_CACHE", str(tmp_path / "file"))
    network = text_encoder()
    expected = predict(network)
    accelerate([network], "openvino", torch.float32)
    torch.testing.assert_close(predict(network), expected, atol=TOLERANCE, rtol=1e-4)


# --- what fails ------------------------------------------------------------------------------------------------------


def test_a_conversion_that_fails_is_one_warning(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Check 'false' failed at src/x.cpp:1:\nno such operation")

    pipe = pipeline()
    expected = draw(pipe)
    monkeypatch.setattr(backend, "convert", fail)
    pipe.accelerate("openvino")
    with pytest.warns(UserWarning, match="no such operation.*PyTorch runs it instead") as warned:
        assert torch.equal(draw(pipe), expected)
    assert len(warned) == 1
    assert pipe.backend == "PyTorch, as OpenVINO failed"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(draw(pipe), expected)


def test_a_network_that_is_converted_wrongly_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, convert = pixels(), backend.convert
    expected = predict(network)

    def wrong(other: HasCore, inputs: tuple[Tensor, ...]) -> Any:
        other = copy.deepcopy(other)
        with torch.no_grad():
            other.conv_out.weight *= 1.2  # type: ignore[operator]
        return convert(other, inputs)

    monkeypatch.setattr(backend, "convert", wrong)
    accelerate([network], "openvino", torch.float32)
    with pytest.warns(UserWarning, match="differs from PyTorch's"):
        assert torch.equal(predict(network), expected)
    assert not cache.exists()


def test_wrong_inputs_are_the_callers_error_and_not_the_backends() -> None:
    network = text_encoder()
    accelerate([network], "openvino", torch.float32)
    with pytest.raises(ValueError, match="positions"):
        network(torch.zeros(1, 11, dtype=torch.long))
    assert describe(network) == "OpenVINO, f32"


def test_a_library_that_is_missing_is_a_warning_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    pipe = pipeline()
    with pytest.warns(UserWarning, match=r"pip install 'ddim\[fast\]'"):
        pipe.accelerate("openvino")
    assert pipe.backend == "eager, float32"


def test_settings_that_cannot_work_are_refused() -> None:
    pipe = pipeline()
    for arguments in (("tensorrt",), ("openvino", "bf16"), ("openvino", torch.int8), ("openvino", torch.float64)):
        with pytest.raises(ConfigError):
            pipe.accelerate(*arguments)
        assert pipe.backend == "eager, float32"


# --- what stays as it is ---------------------------------------------------------------------------------------------


def test_gradients_and_training_are_pytorchs() -> None:
    network = latents()
    accelerate([network], "openvino", torch.float32)
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    network(x, 300, torch.randn(1, 5, 12)).sample.sum().backward()
    assert x.grad is not None
    network.train()
    assert network(x.detach(), 300, torch.randn(1, 5, 12)).sample.requires_grad
    assert not network.runner.compiled  # type: ignore[union-attr]


def test_a_copy_runs_in_pytorch() -> None:
    network = latents()
    accelerate([network], "openvino", torch.float32)
    predict(network)
    assert copy.deepcopy(network).runner is None


def test_an_accelerated_pipeline_is_saved_like_any(tmp_path: Path) -> None:
    pipe = pipeline()
    expected = draw(pipe)
    pipe.accelerate("openvino", dtype=torch.float32)
    draw(pipe)
    pipe.save_pretrained(tmp_path / "model")
    again = DDIMPipeline.from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again), expected)


def test_auto_says_what_it_picked() -> None:
    pipe = pipeline().accelerate("auto")
    assert pipe.backend.startswith("OpenVINO")
    assert choose_backend(torch.device("mps")) == "eager"
    assert choose_backend(torch.device("cuda")) == "compile"


def test_eager_in_another_type() -> None:
    pipe = pipeline().accelerate("eager", dtype=torch.bfloat16)
    assert pipe.dtype == torch.bfloat16
    assert pipe.backend == "eager, bfloat16"


# --- torch.compile ---------------------------------------------------------------------------------------------------


def test_a_compiler_that_fails_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: Any, **_: Any) -> Any:
        def run(*inputs: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    pipe = pipeline()
    expected = draw(pipe)
    pipe.accelerate("compile")
    with pytest.warns(UserWarning, match=r"torch\.compile cannot run .*no C\+\+ compiler"):
        assert torch.equal(draw(pipe), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_networks_give_what_pytorch_gives() -> None:
    pipe = pipeline()
    expected = draw(pipe)
    pipe.accelerate("compile")
    torch.testing.assert_close(draw(pipe), expected, atol=1e-4, rtol=0)
    assert pipe.backend == "torch.compile"
