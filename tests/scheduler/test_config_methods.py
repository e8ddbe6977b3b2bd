"""What scripts ask of a scheduler's config, with the answers of diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import ddim

PAIRS = [
    pytest.param(ddim.DDIMScheduler, diffusers.DDIMScheduler, id="scheduler"),
    pytest.param(ddim.DDIMInverseScheduler, diffusers.DDIMInverseScheduler, id="inverse"),
]
OF_SAMPLING = {
    *("recommended_steps", "recommended_order", "recommended_spacing", "trained_timesteps"),
    *("recommended_guidance_scale", "recommended_guidance_rescale"),
}
OWN = {"legacy_previous_timestep", "optimized_timesteps", *OF_SAMPLING}
SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_a_fresh_scheduler_says_what_it_is(ours: Any, theirs: Any) -> None:
    config, other = ours(**SD).config, theirs(**SD)
    other.to_json_string()  # puts both into the config
    expected = other.config
    assert config["_class_name"] == expected["_class_name"] == ours.__name__
    assert isinstance(config["_diffusers_version"], str)
    assert set(config) - OWN == set(expected)
    unset = {"_use_default_values", "_diffusers_version"}
    assert {k: v for k, v in config.items() if k not in OWN | unset} == {
        k: v for k, v in expected.items() if k not in unset
    }


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_a_path_is_loaded_in_the_place_of_a_config(ours: Any, theirs: Any, tmp_path: Path) -> None:
    theirs(**SD).save_pretrained(tmp_path / "scheduler")
    for path in (tmp_path, str(tmp_path)):
        made = ours.from_config(path, subfolder="scheduler", timestep_spacing="trailing")
        assert type(made) is ours
        assert (made.config.beta_end, made.config.timestep_spacing) == (0.012, "trailing")
    made, unused = ours.from_config(str(tmp_path / "scheduler"), return_unused_kwargs=True, colour="red")
    assert (made.config.steps_offset, unused["colour"]) == (1, "red")
    with pytest.raises(ddim.errors.CheckpointError, match="nowhere"):
        ours.from_config(str(tmp_path / "nowhere"), local_files_only=True)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_configs_in_and_out(ours: Any, theirs: Any, tmp_path: Path) -> None:
    scheduler = ours(**SD)
    scheduler.to_json_file(tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == json.loads(scheduler.to_json_string())
    scheduler.save_config(tmp_path / "folder", push_to_hub=False)
    assert (tmp_path / "folder" / "scheduler_config.json").read_text() == scheduler.to_json_string()
    with pytest.raises(TypeError, match="no argument flavour"):
        scheduler.save_config(tmp_path / "folder", flavour="vanilla")
    loaded = ours.get_config_dict(tmp_path / "folder")
    assert loaded == ours.load_config(tmp_path / "folder") == theirs.load_config(tmp_path / "folder")
    given = {**loaded, "_hidden": 1}
    arguments, unused, rest = ours.extract_init_dict(given, beta_end=0.5, colour="red")
    expected, their_unused, their_rest = theirs.extract_init_dict(dict(given), beta_end=0.5, colour="red")
    assert arguments == expected
    assert unused == their_unused == {"colour": "red"}
    assert rest == their_rest
    assert ours(**arguments).config.beta_end == 0.5
    assert ours.has_compatibles is theirs.has_compatibles is True


def test_an_inverse_scheduler_of_a_schedulers_config() -> None:
    """As pix2pix-zero and others make it: the arguments of thresholding are taken, and change nothing."""
    settings = {**SD, "thresholding": True, "dynamic_thresholding_ratio": 0.5, "sample_max_value": 0.25}
    config = {k: v for k, v in diffusers.DDIMScheduler(**settings).config.items() if not k.startswith("_")}
    made, theirs = ddim.DDIMInverseScheduler(**config), diffusers.DDIMInverseScheduler(**config)
    assert {key for key in made.config if key[0] != "_"} - OWN == {key for key in theirs.config if key[0] != "_"}
    same = ddim.DDIMInverseScheduler.from_config(ddim.DDIMScheduler(**settings).config)
    torch.manual_seed(0)
    x, out = torch.randn(2, 4, 8, 8) * 3, torch.randn(2, 4, 8, 8)
    for scheduler in (made, theirs, same):
        scheduler.set_timesteps(10)
    for t in theirs.timesteps[1:]:
        expected = theirs.step(out, t, x).prev_sample
        assert (made.step(out, t, x).prev_sample - expected).abs().max() < 2e-5
        assert (same.step(out, t, x).prev_sample - expected).abs().max() < 2e-5
    with pytest.raises(TypeError, match="no argument flavour"):
        ddim.DDIMInverseScheduler(flavour="vanilla")


@pytest.mark.parametrize("maximum", [0.25, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("differentiable", [False, True])
def test_a_threshold_under_one(maximum: float, differentiable: bool) -> None:
    settings: dict[str, Any] = {**SD, "thresholding": True, "clip_sample": False, "sample_max_value": maximum}
    settings["dynamic_thresholding_ratio"] = 0.7
    torch.manual_seed(0)
    x, out = torch.randn(3, 4, 8, 8, requires_grad=differentiable), torch.randn(3, 4, 8, 8)
    results = []
    for library in (ddim, diffusers):
        scheduler = library.DDIMScheduler(**settings)
        scheduler.set_timesteps(10)
        t = scheduler.timesteps[3]
        results.append((*scheduler.step(out, t, x).to_tuple(), scheduler._threshold_sample(x)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
