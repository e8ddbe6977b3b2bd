"""Training: what is learnt and saved, and that an interruption changes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_training import interrupt

from ddim import DDIMPipeline, DiffusionPipeline
from ddim.checkpoint import read_json, read_tensors, write_json
from ddim.cli import main
from ddim.errors import CheckpointError, ConfigError, DataError, DDIMError, NonFiniteError
from ddim.training import train
from ddim.training.checkpoints import checkpoints
from ddim.training.run import make_trainer
from ddim.training.settings import PixelSettings
from ddim.training.trainer import learning_rate_factor


def settings(output_dir: Path, **changes: object) -> PixelSettings:
    """A network so small that a step takes a few milliseconds."""
    base = PixelSettings(
        output_dir=str(output_dir),
        class_conditional=True,
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=8,
        dropout=0.1,
        train_batch_size=8,
        max_train_steps=8,
        learning_rate=1e-3,
        lr_warmup_steps=2,
        ema_decay=0.9,
        checkpointing_steps=4,
        checkpoints_total_limit=None,
        validation_steps=0,
        report_to="none",
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "unet" / "diffusion_pytorch_model.safetensors")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def test_a_run_leaves_a_pipeline_that_says_what_was_trained(tmp_path: Path) -> None:
    chosen = settings(
        tmp_path,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        beta_schedule="scaled_linear",
        snr_gamma=5.0,
        noise_offset=0.05,
        input_perturbation=0.1,
        gradient_accumulation_steps=2,
        save_dtype="float16",
        validation_steps=8,
        report_to="tensorboard",
    )
    folder = train(chosen)
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert isinstance(pipe, DDIMPipeline)
    config = pipe.scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert (config.timestep_spacing, config.beta_schedule) == ("trailing", "scaled_linear")
    assert pipe.unet.config.num_class_embeds == 11
    pipe.set_progress_bar_config(disable=True)
    assert len(pipe(class_labels=[1, 2], num_inference_steps=2).images) == 2
    assert all(value.dtype == torch.float16 for value in weights(folder).values())
    assert read_json(folder / "training.json")["step"] == 8
    with Image.open(folder / "samples" / "step-0000008.png") as grid:
        assert grid.size[0] > 64
    assert list(folder.glob("logs/**/events.out.tfevents.*"))


def test_diffusers_loads_what_was_trained(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    folder = train(settings(tmp_path, class_conditional=False))
    theirs = diffusers.DDIMPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    ours = DDIMPipeline.from_pretrained(folder)
    ours.set_progress_bar_config(disable=True)
    images = [
        pipe(generator=torch.Generator().manual_seed(1), num_inference_steps=4, output_type="np").images
        for pipe in (theirs, ours)
    ]
    assert abs(images[0] - images[1]).max() < 1e-4


def test_the_loss_falls(tmp_path: Path) -> None:
    trainer = make_trainer(
        settings(tmp_path, max_train_steps=150, checkpointing_steps=1000, learning_rate=5e-3, dropout=0.0)
    )
    losses: list[float] = []
    trainer._report = lambda log, norm, bar: losses.extend(float(v) for v in log.losses)  # type: ignore[method-assign]
    trainer.run()
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])


@pytest.mark.parametrize("use_ema", [True, False])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.thin(together=1)
def test_a_run_in_two_parts_ends_with_the_same_weights(tmp_path: Path, accumulation: int, use_ema: bool) -> None:
    chosen = settings(tmp_path / "whole", use_ema=use_ema, gradient_accumulation_steps=accumulation, random_flip=True)
    whole = weights(train(chosen))
    stopped = dataclasses.replace(chosen, output_dir=str(tmp_path / "parts"))
    interrupt(stopped)
    assert [path.name for path in checkpoints(tmp_path / "parts")] == ["checkpoint-4"]
    assert_same(whole, weights(train(stopped)))
    for name in ("model", "optimizer", *(["average"] if use_ema else [])):
        file = f"checkpoint-8/{name}.safetensors"
        assert_same(read_tensors(tmp_path / "whole" / file), read_tensors(tmp_path / "parts" / file))


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    first, same, other = (
        weights(train(settings(tmp_path / str(n), seed=seed, max_train_steps=3))) for n, seed in enumerate((5, 5, 6))
    )
    assert_same(first, same)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_workers_do_not_change_the_result(tmp_path: Path) -> None:
    alone = weights(train(settings(tmp_path / "0", max_train_steps=3)))
    assert_same(alone, weights(train(settings(tmp_path / "2", max_train_steps=3, dataloader_num_workers=2))))


def test_the_average_is_what_is_saved(tmp_path: Path) -> None:
    folder = train(settings(tmp_path, max_train_steps=4))
    average, plain = (
        {k.removeprefix("unet."): v for k, v in read_tensors(folder / "checkpoint-4" / file).items()}
        for file in ("average.safetensors", "model.safetensors")
    )
    assert_same(average, weights(folder))
    assert any(not torch.equal(plain[name], value) for name, value in weights(folder).items())


def test_old_checkpoints_are_dropped_after_the_new_one_is_whole(tmp_path: Path) -> None:
    train(settings(tmp_path, checkpointing_steps=2, checkpoints_total_limit=2))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-8"]
    assert not list(tmp_path.glob(".*"))


def test_a_half_written_checkpoint_is_not_taken_for_one(tmp_path: Path) -> None:
    whole = weights(train(settings(tmp_path / "whole")))
    train(settings(tmp_path / "b", max_train_steps=4))
    for name in ("checkpoint-7", ".checkpoint-6.tmp"):
        (tmp_path / "b" / name).mkdir()
        (tmp_path / "b" / name / "model.safetensors").write_bytes(b"half")
    # The learning rate of a cosine depends on the whole length, so the shorter run is no prefix of the longer one.
    assert learning_rate_factor(settings(tmp_path), 3, 4) != learning_rate_factor(settings(tmp_path), 3, 8)
    resumed = weights(train(settings(tmp_path / "b")))
    assert resumed.keys() == whole.keys()


def test_other_settings_or_a_broken_checkpoint_are_refused(tmp_path: Path) -> None:
    train(settings(tmp_path, max_train_steps=4))
    with pytest.raises(ConfigError, match=r"learning_rate: 0\.001 -> 0\.5"):
        train(settings(tmp_path, learning_rate=0.5))
    with pytest.raises(ConfigError, match="another output_dir"):
        train(settings(tmp_path, resume_from_checkpoint="none"))
    with pytest.raises(CheckpointError):
        train(settings(tmp_path, resume_from_checkpoint=str(tmp_path / "nowhere")))
    (tmp_path / "checkpoint-4" / "optimizer.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors"):
        train(settings(tmp_path))


def test_nan_stops_the_run_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    train(settings(tmp_path, max_train_steps=4))
    trainer = make_trainer(settings(tmp_path))
    trainer.objective.loss.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="at step 8"):
        trainer.run()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_batch_size": 0}, "train_batch_size"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"dropout": 2.0}, "dropout"),
        ({"rescale_betas_zero_snr": True}, "v_prediction"),
        ({"snr_gamma": -5.0}, "snr_gamma"),
        ({"checkpoints_total_limit": 0}, "checkpoints_total_limit"),
        ({"adam_beta2": 1.0}, "adam_beta2"),
        ({"seed": -1}, "seed"),
        ({"noise_offset": float("nan")}, "noise_offset"),
        ({"resolution": 9}, "9"),
        ({"data": "/no/such/folder"}, "no/such"),
        ({"block_out_channels": ()}, "block_out_channels"),
        ({"pretrained_model_name_or_path": "/no/such/model"}, "no/such/model"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((DDIMError, ValueError), match=message):
        train(settings(tmp_path / "run", **changes))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


# The fast test beside it is test_a_run_in_two_parts_ends_with_the_same_weights.
@pytest.mark.slow
def test_training_goes_on_from_a_pretrained_model(tmp_path: Path) -> None:
    first = train(settings(tmp_path / "a"))
    again = settings(tmp_path / "b", pretrained_model_name_or_path=str(first), max_train_steps=1, learning_rate=1e-9)
    for name, value in weights(train(again)).items():
        torch.testing.assert_close(value, weights(first)[name], rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match="class embeddings"):
        train(dataclasses.replace(again, output_dir=str(tmp_path / "c"), class_conditional=False))


def test_image_folders_train_in_colour(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (20, 30), "red").save(tmp_path / "data" / name / "x.png")
    folder = train(settings(tmp_path / "run", data=str(tmp_path / "data"), resolution=16, max_train_steps=2))
    unet = DDIMPipeline.from_pretrained(folder).unet
    assert (unet.config.in_channels, unet.config.sample_size, unet.config.num_class_embeds) == (3, 16, 3)


def test_no_readable_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        train(settings(tmp_path / "run", data=str(tmp_path)))


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_the_learning_rate_warms_up_and_falls(kind: str) -> None:
    chosen = settings(Path("unused"), lr_scheduler=kind, lr_warmup_steps=10)
    factors = [learning_rate_factor(chosen, step, 100) for step in range(101)]
    assert factors[:10] == sorted(factors[:10])
    assert 0 < factors[0] < factors[9] < factors[10] == 1
    assert factors[100] == pytest.approx(1.0 if kind == "constant" else 0.0, abs=1e-12)
    assert max(factors) == 1


def _command(output_dir: Path, steps: int) -> list[str]:
    options = (
        f"--output-dir {output_dir} --class-conditional --block-out-channels 8 16 --layers-per-block 1 "
        f"--attention-head-dim 8 --train-batch-size 8 --max-train-steps {steps} --lr-warmup-steps 2 "
        "--checkpointing-steps 3 --checkpoints-total-limit 2 --validation-steps 0 --report-to none"
    )
    return [sys.executable, "-m", "ddim", "train", "pixels", *options.split()]


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(_command(tmp_path / "whole", 150), check=True, env=environment, capture_output=True)
    rng = random.Random(0)
    for _ in range(20):
        process = subprocess.Popen(
            _command(tmp_path / "killed", 150), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(3.0, 8.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for checkpoint in checkpoints(tmp_path / "killed"):
            for file in ("model", "average", "optimizer"):
                read_tensors(checkpoint / f"{file}.safetensors")
    subprocess.run(_command(tmp_path / "killed", 150), check=True, env=environment, capture_output=True)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


@pytest.mark.slow
def test_two_processes_train_together(tmp_path: Path) -> None:
    command = _command(tmp_path / "run", 4)
    # `accelerate launch --cpu` makes one process, whatever --num_processes says.
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", *command[2:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(launch, check=True, env=environment, capture_output=True, timeout=300)
    assert DDIMPipeline.from_pretrained(tmp_path / "run").unet.config.num_class_embeds == 11
    assert read_json(tmp_path / "run" / "training.json")["processes"] == 2


def test_another_number_of_processes_cannot_go_on(tmp_path: Path) -> None:
    train(settings(tmp_path, max_train_steps=4))
    (state,) = checkpoints(tmp_path)[0].glob("*.json")
    write_json(state, {**read_json(state), "processes": 3})
    with pytest.raises(ConfigError, match=r"was made by 3 processes, and now there is 1: .* Start 3 again"):
        train(settings(tmp_path, max_train_steps=8))


class Nodes:
    """A run on two machines, each of which is a launcher's process of its own at this one's loopback.

    Args:
        launcher: torchrun or accelerate. The second is told that there are GPUs, since it starts several machines for
            these alone, but what it starts then computes on the processor, as the environment says.
        output_dir: which they share.
        steps: of the run.
    """

    def __init__(self, launcher: str, output_dir: Path, steps: int) -> None:
        self.output_dir = output_dir
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"
        }  # fmt: skip
        self.processes = []
        for rank in range(2):
            launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(rank)]
            launch += ["--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port), "-m"]
            if launcher == "accelerate":
                launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2"]
                launch += ["--num_processes", "2", "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1"]
                launch += ["--main_process_port", str(port), "-m"]
            self.processes.append(
                subprocess.Popen(
                    [*launch, *_command(output_dir, steps)[2:]],
                    env=environment,
                    start_new_session=True,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )

    def wait(self) -> None:
        assert [process.wait(200) for process in self.processes] == [0, 0]

    def kill(self) -> None:
        """Kill all processes of both, and all that they have started."""
        for process in self.processes:
            for child in _below(process.pid):
                os.kill(child, signal.SIGKILL)
            process.kill()
            process.wait()


def _below(root: int) -> list[int]:
    """The processes that a process has started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    return [child for child, parent in parents.items() if parent == root]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_machines_that_are_killed_go_on_to_the_same_weights(
    launcher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Nodes(launcher, tmp_path / "whole", 60).wait()
    run = Nodes(launcher, tmp_path / "killed", 60)
    end = time.monotonic() + 200
    while not checkpoints(tmp_path / "killed"):
        assert time.monotonic() < end
        time.sleep(0.05)
    run.kill()
    assert not (tmp_path / "killed" / "training.json").exists()
    assert 3 <= int(checkpoints(tmp_path / "killed")[-1].name.partition("-")[2]) < 60

    assert main(_command(tmp_path / "killed", 60)[3:]) == 1  # one process cannot go on
    assert "was made by 2 processes, and now there is 1" in capsys.readouterr().err
    Nodes(launcher, tmp_path / "killed", 60).wait()
    assert read_json(tmp_path / "killed" / "training.json")["processes"] == 2
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
