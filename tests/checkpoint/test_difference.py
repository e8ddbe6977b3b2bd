"""A network that is kept as its difference to another one's, and the folder that adds to a bundled model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny, tiny_unet

from ddim import DiffusionPipeline
from ddim.checkpoint import Repository, bundled_controlnets, bundled_models, hub, read_tensors, save_tensors
from ddim.checkpoint.difference import DIFFERENCE, DOWN, SCALE, UP, save_difference
from ddim.cli import main
from ddim.errors import CheckpointError, WeightsError
from ddim.models import ControlNetModel, UNet2DConditionModel, UNet2DModel

TEXT_UNET: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def student_of(network: UNet2DModel) -> UNet2DModel:
    """The network, moved a little."""
    torch.manual_seed(3)
    state = {name: weight + 0.02 * torch.randn_like(weight) for name, weight in network.state_dict().items()}
    student = tiny_unet()
    student.load_state_dict(state)
    return student


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of bundled models: "one" is whole, in half precision, and "two" is a difference to it."""
    weights = tmp_path / "weights"
    save_tiny(weights / "one")
    tiny_unet().half().save_pretrained(weights / "one" / "unet")
    (weights / "one" / "words.json").write_text("{}")
    (weights / "two" / "unet").mkdir(parents=True)
    shutil.copytree(weights / "one" / "scheduler", weights / "two" / "scheduler")
    shutil.copy(weights / "one" / "model_index.json", weights / "two")
    (weights / "two" / "base.json").write_text('{"base": "one"}')
    base = read_tensors(weights / "one" / "unet" / WEIGHTS)
    save_difference(weights / "two" / "unet" / DIFFERENCE, base, student_of(tiny_unet()).state_dict())
    monkeypatch.setattr(hub, "BUNDLED", weights)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return weights


def loaded(model: str, **options: Any) -> UNet2DModel:
    network: UNet2DModel = UNet2DModel.from_pretrained(model, subfolder="unet", **options)
    return network


def test_it_takes_half_of_the_bytes_and_gives_the_weights_back(bundled: Path) -> None:
    found, wanted, base = loaded("two").state_dict(), student_of(tiny_unet()).state_dict(), tiny_unet().state_dict()
    for name, weight in wanted.items():
        apart = (weight - base[name].half().float()).abs()
        off = (found[name] - weight).abs()
        if weight.ndim > 1:  # half a level of the row's largest difference, and what rounding the scale to 11 bits adds
            assert (off.flatten(1).amax(1) <= apart.flatten(1).amax(1) / 254 * 1.15).all(), name
        else:
            assert off.max() <= 2**-11 * apart.max(), name
    assert found.keys() == wanted.keys()
    whole = (bundled / "one" / "unet" / WEIGHTS).stat().st_size
    assert (bundled / "two" / "unet" / DIFFERENCE).stat().st_size < 0.75 * whole  # of which most is the header


def test_the_type_is_the_one_that_is_asked_for(bundled: Path) -> None:
    exact = loaded("two")
    assert exact.dtype == torch.float32
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        other = loaded("two", dtype=dtype)
        for mine, theirs in zip(exact.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine.to(dtype), theirs)  # rounded once
    assert loaded("two", dtype="auto").dtype == torch.float16
    assert not loaded("two").training


def test_the_base_keeps_its_own_weights(bundled: Path) -> None:
    before = (bundled / "one" / "unet" / WEIGHTS).read_bytes()
    DiffusionPipeline.from_pretrained("two", dtype="auto")
    assert (bundled / "one" / "unet" / WEIGHTS).read_bytes() == before
    assert torch.equal(loaded("one").conv_in.weight, tiny_unet().half().float().conv_in.weight)


def test_what_a_folder_has_not_is_the_bases(bundled: Path) -> None:
    repository = Repository("two")
    assert repository.find("words.json") == bundled / "one" / "words.json"
    assert repository.find("model_index.json") == bundled / "two" / "model_index.json"
    assert repository.find("nothing.json") is None
    with pytest.raises(CheckpointError, match="is not a path inside a checkpoint"):
        repository.find("../one/words.json")
    assert Repository("one").base is None


def test_a_copy_elsewhere_is_the_same_model(bundled: Path) -> None:
    shutil.copytree(bundled / "two", "copy")
    for mine, theirs in zip(loaded("copy").parameters(), loaded("two").parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_is_saved_is_whole(bundled: Path) -> None:
    DiffusionPipeline.from_pretrained("two").save_pretrained("saved")
    assert not Path("saved/base.json").exists()
    assert not list(Path("saved").rglob(DIFFERENCE))
    for mine, theirs in zip(loaded("saved").parameters(), loaded("two").parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("content", ['{"base": "three"}', '{"base": "two"}', '{"base": ["one"]}', "{}", "[]", "{"])
def test_a_base_that_is_none_is_one_error(content: str, bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundled / "two" / "base.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"two/base\.json "):
        DiffusionPipeline.from_pretrained("two")
    assert main(["sample", "--model", "two"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "base.json" in line


def broken(path: Path, how: str) -> None:
    """Damage a file of a difference."""
    if how == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
        return
    if how == "no tensors":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
        return
    tensors = {name: tensor.clone() for name, tensor in read_tensors(path).items()}
    if how == "a scale missing":
        del tensors["conv_in.weight" + SCALE]
    elif how == "another shape":
        tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :, :1]
    elif how == "no whole numbers":
        tensors["conv_in.weight"] = tensors["conv_in.weight"].float()
    elif how == "a stranger":
        tensors["stranger"] = torch.zeros(3)
    save_tensors(path, tensors)  # without the hash of the base


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut off", "is not a readable safetensors file"),
        ("no tensors", "git lfs pull"),
        ("a scale missing", r"missing: conv_in\.weight\.scale \(16,\)"),
        ("another shape", r"wrong shape: conv_in\.weight is \(16, 3, 1, 3\)"),
        ("no whole numbers", r"wrong type: conv_in\.weight is torch\.float32, needed is torch\.int8"),
        ("a stranger", r"unexpected: stranger \(3,\)"),
        ("no hash", "is a difference to other weights than its base has now"),
    ],
)
def test_a_broken_difference_is_one_error_that_names_it(how: str, words: str, bundled: Path) -> None:
    broken(bundled / "two" / "unet" / DIFFERENCE, how)
    with pytest.raises(CheckpointError, match=words) as caught:
        DiffusionPipeline.from_pretrained("two")
    assert str(bundled / "two" / "unet" / DIFFERENCE) in str(caught.value)


def test_a_base_that_was_trained_since_is_noticed(bundled: Path) -> None:
    student_of(tiny_unet()).half().save_pretrained(bundled / "one" / "unet")
    with pytest.raises(WeightsError, match="other weights than its base has now"):
        loaded("two")


def test_networks_that_are_not_alike_have_no_difference(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="the two networks are not alike"):
        save_difference(tmp_path / DIFFERENCE, {"a": torch.zeros(2)}, {"b": torch.zeros(2)})
    assert not (tmp_path / DIFFERENCE).exists()


def test_rows_that_are_alike_stay_so(tmp_path: Path) -> None:
    base = {"a": torch.randn(3, 4).half()}
    save_difference(tmp_path / DIFFERENCE, base, {"a": base["a"].float()})
    tensors = read_tensors(tmp_path / DIFFERENCE)
    assert tensors.keys() == {f"a{part}{of}" for part in (UP, DOWN) for of in ("", SCALE)}
    assert not any(tensor.any() for tensor in tensors.values())


# --- of low rank -----------------------------------------------------------------------------------------------------


def moved(weights: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """The weights, of which matrices and kernels are moved by products of that rank."""
    torch.manual_seed(4)
    state = {name: weight.float() for name, weight in weights.items()}
    for name, weight in state.items():
        if weight.ndim > 1:
            change = torch.randn(len(weight), rank) @ torch.randn(rank, weight[0].numel())
            state[name] = weight + 0.02 * change.view_as(weight)
    return state


def test_a_difference_of_low_rank_is_kept_as_its_factors(bundled: Path) -> None:
    path = bundled / "two" / "unet" / DIFFERENCE
    base = read_tensors(bundled / "one" / "unet" / WEIGHTS)
    full = path.stat().st_size
    wanted = moved(base, 2)
    save_difference(path, base, wanted)
    name = "mid_block.resnets.0.conv1.weight"
    tensors = read_tensors(path)
    assert tensors[name + UP].shape == (2, len(base[name]))
    assert tensors[name + DOWN].shape == (2, base[name][0].numel())
    assert name not in tensors
    assert path.stat().st_size < full / 2
    found = loaded("two").state_dict()
    for each, weight in wanted.items():
        # Two factors, each off by half a level of its largest number, and what rounding the scales adds.
        off, largest = (found[each] - weight).abs().max(), (weight - base[each].float()).abs().max()
        assert off <= 0.02 * largest, each


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        (UP, lambda tensor: tensor[:, :-1], r"wrong shape: .*\.up is \(2, 31\)"),
        (UP, lambda tensor: tensor.sum(), r"wrong shape: .*\.up is \(\)"),
        (UP, lambda tensor: tensor.repeat(2, 1), r"wrong shape: .*\.down is"),
        (DOWN, lambda tensor: None, r"missing: .*\.down \("),
        (UP, lambda tensor: None, r"unexpected: .*\.down \("),
        (UP + SCALE, lambda tensor: tensor.half()[:1], r"wrong shape: .*\.up\.scale"),
    ],
)
def test_broken_factors_are_one_error(key: str, change: Any, words: str, bundled: Path) -> None:
    path, base = bundled / "two" / "unet" / DIFFERENCE, read_tensors(bundled / "one" / "unet" / WEIGHTS)
    save_difference(path, base, moved(base, 2))
    tensors = {name: tensor.clone() for name, tensor in read_tensors(path).items()}
    name = "mid_block.resnets.0.conv1.weight" + key
    changed = change(tensors.pop(name))
    save_tensors(path, tensors if changed is None else {**tensors, name: changed.contiguous()})
    with pytest.raises(WeightsError, match=words):
        loaded("two")


# --- of a ControlNet to the U-Net that it is a copy of ---------------------------------------------------------------


@pytest.fixture
def with_controlnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ControlNetModel:
    """The ControlNet of which "hints" is the difference to the U-Net of "texts", both bundled."""
    weights = tmp_path / "weights"
    unet = UNet2DConditionModel(**TEXT_UNET).half()
    unet.save_pretrained(weights / "texts" / "unet")
    (weights / "texts" / "model_index.json").write_text("{}")
    network = ControlNetModel.from_unet(unet.float(), conditioning_embedding_out_channels=(4, 8))
    base = {name: tensor.half() for name, tensor in network.state_dict().items() if name in unet.state_dict()}
    base |= {name: torch.zeros_like(one).half() for name, one in network.state_dict().items() if name not in base}
    network.load_state_dict(moved(network.state_dict(), 1))
    network.save_config(weights / "hints")
    save_difference(weights / "hints" / DIFFERENCE, base, network.state_dict())
    (weights / "hints" / "base.json").write_text('{"base": "texts"}')
    monkeypatch.setattr(hub, "BUNDLED", weights)
    monkeypatch.chdir(tmp_path)
    return network


def test_a_controlnet_is_bundled_as_a_difference_to_a_unet(with_controlnet: ControlNetModel) -> None:
    assert bundled_controlnets() == ["hints"]
    assert bundled_models() == ["texts"]
    found = ControlNetModel.from_pretrained("hints")
    assert (found.dtype, found.training) == (torch.float32, False)
    for name, weight in with_controlnet.state_dict().items():
        assert (found.state_dict()[name] - weight).abs().max() <= 0.02 * weight.abs().max() + 1e-6, name
    found.save_pretrained("saved")
    for name, weight in ControlNetModel.from_pretrained("saved").state_dict().items():
        assert torch.equal(weight, found.state_dict()[name])


def test_a_controlnet_of_another_unet_is_one_error(with_controlnet: ControlNetModel) -> None:
    UNet2DConditionModel(**{**TEXT_UNET, "layers_per_block": 2}).half().save_pretrained("weights/texts/unet")
    path = Path("weights/hints/config.json")
    path.write_text(path.read_text().replace('"cross_attention_dim": 8', '"cross_attention_dim": 12'))
    with pytest.raises(WeightsError, match="is no U-Net for this ControlNet"):
        ControlNetModel.from_pretrained("hints")
