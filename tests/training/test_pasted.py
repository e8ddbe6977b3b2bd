"""Flags of diffusers' training scripts: each does what it says, or says in a line why it need not."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from tiny_sd import tiny_reference
from tiny_training import Place, place

from ddim.checkpoint import read_json
from ddim.cli import COMMANDS, _parse, load, main
from ddim.errors import MissingExtraError
from ddim.training import pasted, train
from ddim.training.settings import PixelSettings

__all__ = ["place"]

# What all flags of the scripts of diffusers 0.30 to 0.42 are called, each with a value, and what then is the setting
# of ours with that name; "-" where there is no setting, since the flag is not needed, and "!" where it is refused.
SHARED = """
--pretrained_model_name_or_path some/model => some/model
--revision main => main
--variant fp16 => fp16
--dataset_config_name small => small
--image_column picture => picture
--caption_column words => words
--max_train_samples 7 => 7
--output_dir out => out
--cache_dir cache => cache
--seed 42 => 42
--resolution 512 => 512
--center_crop => True
--random_flip => True
--train_batch_size 3 => 3
--num_train_epochs 100 => 100
--max_train_steps 15000 => 15000
--gradient_accumulation_steps 4 => 4
--gradient_checkpointing => True
--learning_rate 1e-05 => 1e-05
--scale_lr => True
--lr_scheduler constant => constant
--lr_scheduler constant_with_warmup => constant_with_warmup
--lr_scheduler cosine_with_restarts => cosine_with_restarts
--lr_scheduler polynomial => polynomial
--lr_warmup_steps 0 => 0
--snr_gamma 5.0 => 5.0
--use_8bit_adam => True
--allow_tf32 => True
--dataloader_num_workers 2 => 2
--adam_beta1 0.8 => 0.8
--adam_beta2 0.99 => 0.99
--adam_weight_decay 1e-2 => 0.01
--adam_epsilon 1e-07 => 1e-07
--max_grad_norm 1 => 1.0
--push_to_hub => True
--hub_token hf_secret => hf_secret
--prediction_type v_prediction => v_prediction
--hub_model_id me/mine => me/mine
--logging_dir events => events
--mixed_precision fp16 => fp16
--report_to wandb => wandb
--report_to comet_ml => comet_ml
--report_to clearml => clearml
--report_to all => all
--report_to tensorboard => tensorboard
--local_rank -1 => -
--checkpointing_steps 50 => 50
--checkpoints_total_limit 3 => 3
--resume_from_checkpoint latest => latest
--enable_xformers_memory_efficient_attention => -
--enable_npu_flash_attention => -
--noise_offset 0.05 => 0.05
--validation_epochs 5 => 5
--image_interpolation_mode bicubic => bicubic
--image_interpolation_mode nearest_exact => nearest_exact
--input_perturbation 0.1 => 0.1
--dream_training => True
--dream_detail_preservation 2.0 => 2.0
--use_ema => True
--offload_ema => True
--foreach_ema => -
--tracker_project_name fine-tune => fine-tune
--validation_prompts cat "a dog" => ('cat', 'a dog')
--validation_prompt "a cute dragon" => validation_prompts=('a cute dragon',)
--num_validation_images 4 => 4
"""
TEXT_TO_IMAGE = f"""{SHARED}
--non_ema_revision non-ema => non-ema
--rank 4 => !
"""
OF_XL = """
--pretrained_vae_model_name_or_path some/vae => some/vae
--proportion_empty_prompts 0.2 => caption_dropout=0.2
--timestep_bias_strategy later => later
--timestep_bias_multiplier 2.0 => 2.0
--timestep_bias_begin 10 => 10
--timestep_bias_end 900 => 900
--timestep_bias_portion 0.5 => 0.5
--train_text_encoder => True
--debug_loss => -
"""
TEXT_TO_IMAGE += OF_XL
LORA = f"""{SHARED}{OF_XL}
--rank 4 => 4
--non_ema_revision non-ema => !
"""
OF_TEXTS = "caption_column", "validation_prompt"
PIXELS = "\n".join(line for line in SHARED.splitlines() if not line.startswith(tuple(f"--{name}" for name in OF_TEXTS)))
PIXELS += """
--dataset_name huggan/flowers => data='huggan/flowers'
--train_data_dir photos => data='photos'
--model_config_name_or_path some/unet => some/unet
--overwrite_output_dir => -
--eval_batch_size 4 => num_validation_images=4
--num_epochs 100 => num_train_epochs=100
--save_images_epochs 10 => validation_epochs=10
--save_model_epochs 10 => 10
--ema_inv_gamma 1.0 => 1.0
--ema_power 0.6 => 0.6
--ema_max_decay 0.9999 => ema_decay=0.9999
--hub_private_repo => True
--logger wandb => report_to='wandb'
--ddpm_num_steps 500 => num_train_timesteps=500
--ddpm_num_inference_steps 100 => validation_inference_steps=100
--ddpm_beta_schedule squaredcos_cap_v2 => beta_schedule='squaredcos_cap_v2'
--preserve_input_precision => !
--caption_column words => !
"""
OF_OTHERS = """
--validation_steps 100 => 100
--tokenizer_name some/tokenizer => -
--lr_num_cycles 2 => 2
--lr_power 0.5 => 0.5
--rank 4 => RANK
"""
CONTROLNET = f"""{SHARED}{OF_XL.replace("=> True", "=> !")}{OF_OTHERS.replace("RANK", "4")}
--controlnet_model_name_or_path some/net => some/net
--validation_image shown.png => validation_images=('shown.png',)
--set_grads_to_none => -
--crops_coords_top_left_h 0 => -
--crops_coords_top_left_w 8 => -
"""
WORD = f"""{SHARED.replace("=> words", "=> !")}{OF_OTHERS.replace("RANK", "!")}
--learnable_property style => style
--num_vectors 3 => 3
--repeats 100 => -
--save_steps 500 => checkpointing_steps=500
--save_as_full_pipeline => -
--no_safe_serialization => -
"""
FOLDER = ["--train_data_dir", "photos"]
NEEDED = {
    "pixels": [],
    "text-to-image": FOLDER,
    "lora": FOLDER,
    "controlnet": [*FOLDER, "--conditioning_image_column", "pose"],
    "textual-inversion": [*FOLDER, "--placeholder_token", "<toy>", "--initializer_token", "cat"],
}
COMMAND = {
    "text-to-image": TEXT_TO_IMAGE,
    "lora": LORA,
    "pixels": PIXELS,
    "controlnet": CONTROLNET,
    "textual-inversion": WORD,
}
Flag = tuple[str, list[str], str]  # what it is called, its values, what comes of it


def flags(command: str) -> list[Flag]:
    found = []
    for line in filter(None, COMMAND[command].splitlines()):
        typed, _, wanted = line.partition(" => ")
        name, *values = shlex.split(typed)
        found.append((name, values, wanted))
    return found


def rounds(command: str) -> list[list[Flag]]:
    """The flags that are settings, in as few command lines as it takes for none to have one setting twice."""
    made: list[dict[str, Flag]] = []
    for flag in flags(command):
        name, _, wanted = flag
        if wanted in ("-", "!"):
            continue
        field = pasted.RENAMED.get(name[2:], name[2:])
        free = next((line for line in made if field not in line), None)
        if free is None:
            made.append(free := {})
        free[field] = flag
    return [list(line.values()) for line in made]


SPELLINGS = {
    "underscores": lambda name, values: [name, *values],
    "hyphens": lambda name, values: [name.replace("_", "-"), *values],
    "equals": lambda name, values: [f"{name}={values[0]}"] if len(values) == 1 else [name, *values],
}


@pytest.mark.parametrize("command", COMMAND)
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.thin(fast=["underscores-pixels", "hyphens-lora", "equals-text-to-image"])
def test_a_flag_does_what_it_says(command: str, spelling: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line in rounds(command) if spelling == "underscores" else rounds(command)[:1]:
        typed = [word for name, values, _ in line for word in SPELLINGS[spelling](name, values)]
        _, settings, _ = _parse(["train", command, "--output_dir", "x", *NEEDED[command], *typed])
        for name, _, wanted in line:
            field, equals, value = wanted.partition("=")
            got = getattr(settings, field if equals else name[2:])
            if equals or isinstance(got, (bool, tuple)):
                assert got == eval(value or wanted), name
            else:
                assert got == type(got)(wanted), name
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", COMMAND)
@pytest.mark.parametrize("hyphens", [False, True])
def test_a_flag_that_is_not_needed_says_why(command: str, hyphens: bool, capsys: pytest.CaptureFixture[str]) -> None:
    for name, values, wanted in flags(command):
        name = "--" + name[2:].replace("_", "-") if hyphens else name
        if wanted == "-":
            kind = load(COMMANDS[f"train {command}"].settings)
            assert pasted.translate(kind, ["--seed", "1", name, *values, "--use_ema"]) == ["--seed", "1", "--use_ema"]
            said = capsys.readouterr().err
            assert said.startswith(f"ddim: {name} is not needed: ")
            assert said.count("\n") == 1
        elif wanted == "!":
            assert main(["train", command, "--output_dir", "x", *NEEDED[command], name, *values]) == 1
            assert capsys.readouterr().err.startswith(f"ddim: {name} is ")


def test_the_average_of_train_unconditional_rises() -> None:
    for given, power in ([], None), (["--ema_max_decay=0.9999"], 0.75), (["--ema_inv_gamma", "2"], 0.75):
        arguments = pasted.translate(PixelSettings, ["--output_dir", "x", *given])
        assert _parse(["train", "pixels", *arguments])[1].ema_power == power


@pytest.mark.parametrize("words", [words for words in COMMANDS if words.startswith("train ")])
def test_what_is_no_flag_of_any_script_is_left_as_it_is(words: str) -> None:
    arguments = ["--no-use-ema", "--output-dir=x", "--no_such_thing", "value", "--", "-x"]
    assert pasted.translate(load(COMMANDS[words].settings), arguments) == arguments


def test_a_secret_is_written_nowhere(tmp_path: Path) -> None:
    chosen = PixelSettings(
        str(tmp_path), block_out_channels=(8,), attention_head_dim=8, max_train_steps=1, hub_token="hf_sesame"
    )
    assert "hf_sesame" not in repr(chosen)
    train(chosen)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in written)
    assert not [path for path in written if b"hf_sesame" in path.read_bytes()]


# --- what is not installed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--report_to", "wandb"], "pip install wandb"),
        (["--report_to=comet_ml"], "pip install comet-ml"),
        (["--use_8bit_adam"], "pip install bitsandbytes"),
    ],
)
def test_what_needs_a_library_says_so_before_anything_is_loaded(
    flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ddim.training.settings.is_installed", lambda name: name == "tensorboard")
    monkeypatch.setattr("ddim.training.run.make_objective", lambda settings: pytest.fail("something was loaded"))
    assert main(["train", "pixels", "--output_dir", str(tmp_path / "run"), *flags]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    with pytest.raises(MissingExtraError, match=said):
        train(PixelSettings(str(tmp_path / "run"), **options_of(flags)))


def options_of(flags: list[str]) -> dict[str, Any]:
    name, _, value = " ".join(flags).replace(" ", "=").removeprefix("--").partition("=")
    return {name: value or True}


def test_all_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddim.training.settings.is_installed", lambda name: name in ("tensorboard", "clearml"))
    settings = PixelSettings("x", report_to="all")
    settings.check_installed()
    assert settings.trackers == ("tensorboard", "clearml")


# --- commands of the documentation of diffusers' scripts -------------------------------------------------------------

OF_TEXT_TO_IMAGE = """
  --pretrained_model_name_or_path=$MODEL_NAME \
  --train_data_dir=$TRAIN_DIR \
  --use_ema \
  --resolution=512 --center_crop --random_flip \
  --train_batch_size=1 \
  --gradient_accumulation_steps=4 \
  --gradient_checkpointing \
  --max_train_steps=15000 \
  --learning_rate=1e-05 \
  --max_grad_norm=1 \
  --enable_xformers_memory_efficient_attention \
  --lr_scheduler="constant" --lr_warmup_steps=0 \
  --output_dir="sd-naruto-model"
"""
OF_LORA = """
  --pretrained_model_name_or_path=$MODEL_NAME \
  --train_data_dir=$TRAIN_DIR --caption_column="text" \
  --resolution=512 --random_flip \
  --train_batch_size=1 \
  --num_train_epochs=100 --checkpointing_steps=5000 \
  --learning_rate=1e-04 --lr_scheduler="constant" --lr_warmup_steps=0 \
  --seed=42 \
  --output_dir="sd-naruto-model-lora" \
  --validation_prompt="cute dragon creature" --report_to="tensorboard"
"""
OF_UNCONDITIONAL = """
  --train_data_dir=$TRAIN_DIR \
  --resolution=64 --center_crop --random_flip \
  --output_dir="ddpm-ema-pokemon-64" \
  --train_batch_size=16 \
  --num_epochs=100 \
  --gradient_accumulation_steps=1 \
  --use_ema \
  --learning_rate=1e-4 \
  --lr_warmup_steps=500 \
  --mixed_precision=no \
  --logger="tensorboard"
"""
TINY = "--block-out-channels 8 16 --layers-per-block 1 --attention-head-dim 8"


@pytest.mark.parametrize(
    ("command", "given", "more"),
    [("text-to-image", OF_TEXT_TO_IMAGE, ""), ("lora", OF_LORA, ""), ("pixels", OF_UNCONDITIONAL, TINY)],
)
@pytest.mark.thin(fast=["lora-given1-"])
def test_a_whole_command_runs(
    command: str, given: str, more: str, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_reference(tmp_path / "model", 1)
    monkeypatch.chdir(tmp_path)
    given = given.replace("$MODEL_NAME", str(tmp_path / "model")).replace("$TRAIN_DIR", str(place.data))
    for size in (512, 64):
        given = given.replace(f"--resolution={size}", "--resolution=16")
    arguments = ["train", command, *shlex.split(given), *more.split(), "--max_train_steps=2"]
    assert main(arguments) == 0
    (out,) = (word.partition("=")[2] for word in arguments if word.startswith("--output_dir"))
    made = read_json(tmp_path / out / "training.json")
    assert made["step"] == 2
    assert list((tmp_path / out / "samples").glob("*.png"))
    assert list((tmp_path / out / "logs").rglob("*tfevents*"))
