"""The files that networks are written to, in all the forms that diffusers writes and reads, and options of loading."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny import CONFIG, tiny_pipeline, tiny_unet

from ddim.checkpoint.saving import size_in_bytes
from ddim.errors import CheckpointError
from ddim.models import UNet2DModel

NAME = "diffusion_pytorch_model"
SAVED: dict[str, tuple[dict[str, Any], str]] = {
    "whole": ({}, f"{NAME}.safetensors"),
    "variant": ({"variant": "fp16"}, f"{NAME}.fp16.safetensors"),
    "bin": ({"safe_serialization": False}, f"{NAME}.bin"),
    "bin, variant": ({"safe_serialization": False, "variant": "ema"}, f"{NAME}.ema.bin"),
    "shards": ({"max_shard_size": "40KB"}, f"{NAME}.safetensors.index.json"),
    "shards, variant": ({"max_shard_size": 40_000, "variant": "fp16"}, f"{NAME}.safetensors.index.fp16.json"),
    "shards, bin": ({"max_shard_size": "40KB", "safe_serialization": False}, f"{NAME}.bin.index.json"),
}


def same(one: Any, other: Any) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("form", list(SAVED))
def test_each_form_is_read_here_and_by_diffusers(form: str, tmp_path: Path) -> None:
    options, file = SAVED[form]
    unet = tiny_unet()
    unet.save_pretrained(tmp_path, **options)
    assert (tmp_path / file).is_file()
    asked = {"variant": options["variant"]} if "variant" in options else {}
    assert same(unet, UNet2DModel.from_pretrained(tmp_path, **asked))
    theirs = diffusers.UNet2DModel.from_pretrained(
        tmp_path, use_safetensors=options.get("safe_serialization", True), **asked
    )
    assert same(unet, theirs)


@pytest.mark.parametrize("form", ["shards", "shards, variant", "variant"])
def test_the_files_have_the_names_that_diffusers_gives_them(form: str, tmp_path: Path) -> None:
    options, _ = SAVED[form]
    tiny_unet().save_pretrained(tmp_path / "ours", **options)
    diffusers.UNet2DModel(**CONFIG).save_pretrained(tmp_path / "theirs", **options)
    ours, theirs = ({path.name for path in (tmp_path / whose).iterdir()} for whose in ("ours", "theirs"))
    numbers = r"-\d{5}-of-\d{5}"
    assert {_masked(name, numbers) for name in ours} == {_masked(name, numbers) for name in theirs}


def _masked(name: str, numbers: str) -> str:
    return re.sub(numbers, "-N-of-M", name)


def test_a_shard_is_no_larger_than_asked_for(tmp_path: Path) -> None:
    unet = tiny_unet()
    unet.save_pretrained(tmp_path, max_shard_size="40KB")
    index = json.loads((tmp_path / f"{NAME}.safetensors.index.json").read_text())
    state = unet.state_dict()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
    assert set(index["weight_map"]) == set(state)
    for shard in set(index["weight_map"].values()):
        tensors = [state[name] for name, place in index["weight_map"].items() if place == shard]
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors) <= 40_000
    assert len(set(index["weight_map"].values())) > 2


@pytest.mark.parametrize("before", list(SAVED))
@pytest.mark.parametrize("after", ["whole", "bin", "shards", "shards, bin"])
@pytest.mark.thin(every=3)
def test_what_was_saved_last_is_what_is_loaded(before: str, after: str, tmp_path: Path) -> None:
    tiny_unet(0).save_pretrained(tmp_path, **SAVED[before][0])
    tiny_unet(1).save_pretrained(tmp_path, **SAVED[after][0])
    assert same(tiny_unet(1), UNet2DModel.from_pretrained(tmp_path))
    if "variant" in before:  # another variant is another network
        kept = UNet2DModel.from_pretrained(tmp_path, variant=SAVED[before][0]["variant"])
        assert same(tiny_unet(0), kept)


def test_a_pipeline_passes_on_how_its_networks_are_saved(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path, safe_serialization=False, variant="fp16", max_shard_size="40KB")
    names = {path.name for path in (tmp_path / "unet").iterdir()}
    assert f"{NAME}.bin.index.fp16.json" in names
    assert not any(name.endswith(".safetensors") for name in names)
    loaded = diffusers.DDIMPipeline.from_pretrained(tmp_path, variant="fp16", use_safetensors=False)
    assert same(pipe.unet, loaded.unet)


def test_only_the_main_process_saves(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path / "unet", is_main_process=False)
    assert not (tmp_path / "unet").exists()
    with pytest.warns(UserWarning, match="save_function is not used"):
        tiny_unet().save_pretrained(tmp_path / "unet", save_function=torch.save)
    assert same(tiny_unet(), UNet2DModel.from_pretrained(tmp_path / "unet"))


@pytest.mark.parametrize(
    ("size", "expected"),
    [(7, 7), ("7", 7), ("1.5KB", 1500), ("2 MiB", 2 * 2**20), ("10GB", 10**10), ("3gib", 3 * 2**30), ("5B", 5)],
)
def test_sizes(size: Any, expected: int) -> None:
    assert size_in_bytes(size) == expected


@pytest.mark.parametrize("size", ["", "GB", "-1GB", "0", 0, -5, "1XB", None, "1e9"])
def test_what_is_no_size_is_refused_before_anything_is_written(size: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_shard_size must be a number of bytes or a text such as '5GB'"):
        tiny_unet().save_pretrained(tmp_path / "unet", max_shard_size=size)
    assert not (tmp_path / "unet").exists()


# --- loading ---------------------------------------------------------------------------------------------------------


def test_one_kind_of_file_can_be_asked_for(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path)
    assert same(tiny_unet(), UNet2DModel.from_pretrained(tmp_path, use_safetensors=True))
    with pytest.raises(CheckpointError, match=rf"looked for {NAME}\.bin, {NAME}\.bin\.index\.json$"):
        UNet2DModel.from_pretrained(tmp_path, use_safetensors=False)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_stored_type_can_be_asked_for(name: str, tmp_path: Path) -> None:
    tiny_unet().to(torch.bfloat16).save_pretrained(tmp_path)
    assert UNet2DModel.from_pretrained(tmp_path).dtype == torch.float32
    options: dict[str, Any] = {name: "auto"}
    assert UNet2DModel.from_pretrained(tmp_path, **options).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="or 'auto', not 'half'"):
        UNet2DModel.from_pretrained(tmp_path, dtype="half")


@pytest.mark.parametrize("device_map", ["cpu", torch.device("cpu"), {"": "cpu"}, "auto", "balanced"])
def test_a_device_map_names_the_one_device(device_map: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tiny_unet().save_pretrained(tmp_path)
    assert UNet2DModel.from_pretrained(tmp_path, device_map=device_map).device.type == "cpu"
    assert UNet2DModel.from_pretrained(tmp_path, device_map="meta").device.type == "meta"
    with pytest.raises(ValueError, match="divides the network, which is not implemented: name one device"):
        UNet2DModel.from_pretrained(tmp_path, device_map={"conv_in": "cpu", "conv_out": "meta"})


def test_what_is_not_done_here_is_said(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="max_memory, offload_folder of from_pretrained have no effect"):
        UNet2DModel.from_pretrained(tmp_path, offload_folder="x", max_memory={0: "1GB"})
    with pytest.raises(ValueError, match="ignore_mismatched_sizes is not implemented: load the weights that fit"):
        UNet2DModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    UNet2DModel.from_pretrained(tmp_path, low_cpu_mem_usage=False, ignore_mismatched_sizes=False)
    unet, info = UNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert same(tiny_unet(), unet)
    assert info["missing_keys"] == info["unexpected_keys"] == []
