"""Configs: the contract of diffusers' ConfigMixin, in both directions."""

from __future__ import annotations

import copy
import inspect
import json
import operator
import pickle
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from ddim import DDIMInverseScheduler, DDIMScheduler
from ddim.checkpoint.config import DIFFUSERS_VERSION, Config, ConfigMixin, register_to_config
from ddim.errors import CheckpointError, ConfigError

# All but one, which has no betas and is refused.
COMPATIBLES = sorted(
    {*diffusers.DDIMScheduler().compatibles} - {diffusers.EDMEulerScheduler}, key=lambda cls: cls.__name__
)
# What diffusers does not know, and where it is.
OWN = {
    "legacy_previous_timestep": False,
    "optimized_timesteps": None,
    "recommended_steps": None,
    "recommended_order": None,
    "recommended_spacing": None,
    "recommended_guidance_scale": None,
    "recommended_guidance_rescale": None,
    "trained_timesteps": None,
}
UNUSUAL = {
    "num_train_timesteps": 500,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.9,
    "clip_sample_range": 2.0,
    "sample_max_value": 1.5,
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
}


def public(config: Any) -> dict[str, Any]:
    """A config without what says who wrote it."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What diffusers complains of: it logs what we warn of."""
    from diffusers.utils import logging

    messages: list[str] = []
    monkeypatch.setattr(logging.get_logger("diffusers.configuration_utils"), "warning", messages.append)
    return messages


# --- the dict --------------------------------------------------------------------------------------------------------


def test_a_config_is_read_by_item_and_attribute() -> None:
    config = DDIMScheduler(beta_end=0.5).config
    assert isinstance(config, dict)
    assert config["beta_end"] == config.beta_end == config.get("beta_end") == 0.5
    assert "beta_end" in config
    assert {**config}["beta_end"] == 0.5
    with pytest.raises(AttributeError, match=r"colour.*beta_end"):
        _ = config.colour
    with pytest.raises(KeyError):
        config["colour"]


@pytest.mark.parametrize(
    "mutate",
    [
        lambda c: operator.setitem(c, "beta_end", 1),
        lambda c: operator.setitem(c, "new", 1),
        lambda c: operator.delitem(c, "beta_end"),
        lambda c: setattr(c, "beta_end", 1),
        lambda c: setattr(c, "new", 1),
        lambda c: delattr(c, "beta_end"),
        lambda c: operator.ior(c, {"beta_end": 1}),
        lambda c: c.update(beta_end=1),
        lambda c: c.update({"beta_end": 1}),
        lambda c: c.pop("beta_end"),
        lambda c: c.pop("new", None),
        lambda c: c.popitem(),
        lambda c: c.setdefault("new", 1),
        lambda c: c.setdefault("beta_end", 1),
        lambda c: c.clear(),
    ],
)
def test_a_config_is_read_only(mutate: Any) -> None:
    config = Config(DDIMScheduler().config)
    before = dict(config)
    with pytest.raises(TypeError, match=r"read-only.*from_config"):
        mutate(config)
    assert dict(config) == before


def test_no_mutator_of_dict_is_forgotten() -> None:
    harmless = {"copy", "get", "items", "keys", "values", "fromkeys"}
    mutators = {name for name in vars(dict) if not name.startswith("__")} - harmless
    assert mutators == {"clear", "pop", "popitem", "setdefault", "update"}
    for name in [*mutators, "__setitem__", "__delitem__", "__ior__", "__setattr__", "__delattr__"]:
        assert getattr(Config, name) is Config._read_only


def test_what_is_inside_is_read_only_too() -> None:
    given = {"channels": [32, [64]], "inner": {"a": [1]}, "array": np.array([0.5, 1.0]), "tensor": torch.tensor([1, 2])}
    config = Config(given, number=np.float32(0.5))
    assert config.channels == (32, (64,))
    assert isinstance(config.inner, Config)
    assert config.inner.a == (1,)
    assert config.array == (0.5, 1.0)
    assert config.tensor == (1, 2)
    assert type(config.number) is float
    given["channels"].append(1)  # type: ignore[attr-defined]
    assert config.channels == (32, (64,))
    with pytest.raises(TypeError, match="read-only"):
        config.inner["a"] = 2


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["copy", "deepcopy", "pickle"]
)
def test_a_config_is_copied_whole_and_read_only(duplicate: Any) -> None:
    config = Config(DDIMScheduler(beta_end=0.5).config, inner={"a": [1]})
    twin = duplicate(config)
    assert type(twin) is Config
    assert twin == config
    assert isinstance(twin.inner, Config)
    with pytest.raises(TypeError, match="read-only"):
        twin["beta_end"] = 1


def test_a_changed_copy_is_an_ordinary_dict() -> None:
    config = DDIMScheduler().config
    for changed in ({**config, "beta_end": 0.5}, config | {"beta_end": 0.5}, dict(config, beta_end=0.5), config.copy()):
        changed["clip_sample"] = False
    assert config.clip_sample is True


# --- register_to_config ----------------------------------------------------------------------------------------------


class Small(ConfigMixin):
    own_keys = frozenset({"ours"})

    @register_to_config
    def __init__(self, first: int, second: str = "two", third: Any = (1, 2), ours: int = 0) -> None:
        self.seen = (first, second, third, ours)


def test_every_argument_is_registered_given_or_not() -> None:
    small = Small(1, third=[3])
    assert small.seen == (1, "two", [3], 0)
    assert public(small.config) == {"first": 1, "second": "two", "third": (3,), "ours": 0}
    assert set(small.config["_use_default_values"]) == {"second", "ours"}
    assert "_use_default_values" not in Small(1, "two", 3, 0).config


def test_private_arguments_are_kept_out_of_init() -> None:
    assert Small(1, _name="x").config["_name"] == "x"  # type: ignore[call-arg]


def test_wrong_arguments_are_pythons_own_error() -> None:
    for call in (lambda: Small(), lambda: Small(1, 2, 3, 4, 5), lambda: Small(1, fourth=4), lambda: Small(1, first=1)):
        with pytest.raises(TypeError):
            call()  # type: ignore[no-untyped-call]


def test_a_key_of_ours_is_written_only_when_it_is_not_at_its_default() -> None:
    assert "ours" not in json.loads(Small(1).to_json_string())
    assert "ours" not in json.loads(Small(1, ours=0).to_json_string())
    assert json.loads(Small(1, ours=5).to_json_string())["ours"] == 5


# --- from_config -----------------------------------------------------------------------------------------------------


def test_from_config_builds_its_like_and_overrides_win() -> None:
    scheduler = DDIMScheduler(**UNUSUAL)
    twin = DDIMScheduler.from_config(scheduler.config)
    assert public(twin.config) == public(scheduler.config)
    assert public(twin.config) == {**UNUSUAL, **OWN}
    changed = DDIMScheduler.from_config(scheduler.config, steps_offset=7, legacy_previous_timestep=True)
    assert changed.config.steps_offset == 7
    assert changed.config.legacy_previous_timestep is True
    assert public(scheduler.config) == public(twin.config)  # the source is as it was
    assert torch.equal(twin.alphas_cumprod, scheduler.alphas_cumprod)
    assert not torch.equal(twin.alphas_cumprod, DDIMScheduler().alphas_cumprod)


@pytest.mark.parametrize("theirs", COMPATIBLES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("cls", [DDIMScheduler, DDIMInverseScheduler])
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
@pytest.mark.thin(every=2)
def test_every_compatible_config_is_taken_without_a_warning_and_kept(theirs: Any, cls: Any, tmp_path: Path) -> None:
    wanted = {"beta_end": 0.03, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    given = {key: value for key, value in wanted.items() if key in inspect.signature(theirs.__init__).parameters}
    try:
        other = theirs(**given)
    except ImportError:
        pytest.skip(f"{theirs.__name__} needs a library that is not installed")
    own = set(cls().config)
    scheduler = cls.from_config(other.config)
    left_at_default = set(other.config["_use_default_values"])
    for key, value in public(other.config).items():
        if key in own and key in left_at_default:
            assert scheduler.config[key] == cls().config[key]  # re-resolved to ours
        elif key in left_at_default:
            assert key not in scheduler.config
        else:
            assert scheduler.config[key] == value
            assert value == given[key]

    # from a file there is no saying what was a default: everything is taken, kept and written again
    other.save_config(tmp_path / "theirs")
    stored = json.loads((tmp_path / "theirs" / "scheduler_config.json").read_text())
    loaded = cls.from_pretrained(tmp_path / "theirs")  # DPM solvers have a lambda_min_clipped of -Infinity
    loaded.save_pretrained(tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "scheduler_config.json").read_text())
    for key, value in public(stored).items():
        assert written[key] == value
    assert written["_class_name"] == cls.__name__
    back = theirs.from_pretrained(tmp_path / "ours")
    assert {k: v for k, v in public(back.config).items() if k in stored} == public(stored)


def test_every_argument_of_every_compatible_scheduler_is_known() -> None:
    for cls in COMPATIBLES:
        names = {
            p.name for p in inspect.signature(cls.__init__).parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD
        }
        known = DDIMScheduler.foreign_keys | set(inspect.signature(DDIMScheduler).parameters) | {"self"}
        assert names - known == set()


def test_keys_left_at_the_default_are_resolved_anew() -> None:
    """PNDM's default for set_alpha_to_one is False, ours is True: only a value that was given is carried over."""
    left, given = diffusers.PNDMScheduler(), diffusers.PNDMScheduler(set_alpha_to_one=False)
    assert left.config.set_alpha_to_one is given.config.set_alpha_to_one is False
    assert DDIMScheduler.from_config(left.config).config.set_alpha_to_one is True
    assert DDIMScheduler.from_config(given.config).config.set_alpha_to_one is False
    # and the other way round
    ours, ours_given = DDIMScheduler(), DDIMScheduler(set_alpha_to_one=True)
    assert diffusers.PNDMScheduler.from_config(ours.config).config.set_alpha_to_one is False
    assert diffusers.PNDMScheduler.from_config(ours_given.config).config.set_alpha_to_one is True
    assert DDIMScheduler.from_config(left.config, set_alpha_to_one=False).config.set_alpha_to_one is False


def test_which_keys_are_at_the_default_survives_from_config() -> None:
    twin = DDIMScheduler.from_config(DDIMScheduler(beta_end=0.5).config)
    left = set(twin.config["_use_default_values"])
    assert "beta_end" not in left
    assert {"beta_start", "set_alpha_to_one", "legacy_previous_timestep"} <= left


def test_a_config_says_whose_it_is() -> None:
    stored = {**DDIMScheduler().config, "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0"}
    for scheduler in (DDIMScheduler(), DDIMScheduler.from_config(stored)):
        assert scheduler.config["_class_name"] == "DDIMScheduler"
        assert scheduler.config["_diffusers_version"] == DIFFUSERS_VERSION


def test_unknown_keys_warn_by_name_and_are_kept() -> None:
    config = {**DDIMScheduler().config, "flavour": "vanilla", "aroma": 1, "skip_prk_steps": True, "_private": 3}
    with pytest.warns(UserWarning, match="aroma, flavour$"):
        scheduler = DDIMScheduler.from_config(config)
    assert scheduler.config.flavour == "vanilla"
    assert scheduler.config.skip_prk_steps is True
    with pytest.warns(UserWarning, match="colour$") as caught:
        DDIMScheduler.from_config(DDIMScheduler().config, colour="red")
    assert caught[0].filename == __file__  # it points at the caller


def test_unused_kwargs_are_returned_on_request() -> None:
    config = {**diffusers.PNDMScheduler(skip_prk_steps=True).config}
    theirs, their_rest = diffusers.DDIMScheduler.from_config(config, return_unused_kwargs=True, colour="red")
    scheduler, rest = DDIMScheduler.from_config(config, return_unused_kwargs=True, colour="red", beta_end=0.5)
    assert isinstance(scheduler, DDIMScheduler)
    assert scheduler.config.beta_end == 0.5
    assert rest["colour"] == their_rest["colour"] == "red"
    assert "beta_end" not in rest
    assert rest["skip_prk_steps"] is True
    assert scheduler.config.skip_prk_steps is theirs.config.skip_prk_steps is True
    assert "colour" not in scheduler.config


@pytest.mark.parametrize("wrong", [None, 5, [("beta_end", 1)], DDIMScheduler])
def test_what_is_no_config_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="from_config takes a dict"):
        DDIMScheduler.from_config(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_train_timesteps": "x"},
        {"num_train_timesteps": None},
        {"beta_start": [1]},
        {"beta_schedule": {}},
        {"trained_betas": {"a": 1}},
        {"trained_betas": "abc"},
        {"_class_name": 5},
    ],
)
def test_a_config_whose_values_make_no_scheduler_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DDIMScheduler.from_config(wrong)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, UNUSUAL], ids=["default", "unusual"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(DDIMScheduler, diffusers.DDIMScheduler), (DDIMInverseScheduler, diffusers.DDIMInverseScheduler)],
)
def test_files_are_read_by_both_sides(
    ours: Any, theirs: Any, given: dict[str, Any], tmp_path: Path, logged: list[str]
) -> None:
    given = {key: value for key, value in given.items() if key in theirs().config}
    mine, other = ours(**given), theirs(**given)
    mine.save_pretrained(tmp_path / "ours")
    other.save_pretrained(tmp_path / "theirs")
    texts = [(tmp_path / side / "scheduler_config.json").read_text() for side in ("ours", "theirs")]
    written, reference = map(json.loads, texts)
    assert {**written, "_diffusers_version": 0} == {**reference, "_diffusers_version": 0}
    assert tuple(map(int, written["_diffusers_version"].split("."))) >= (0, 30, 0)
    # the same layout, too: sorted, indented by two, a line feed at the end
    assert texts[0].replace(written["_diffusers_version"], "") == texts[1].replace(reference["_diffusers_version"], "")

    there, back = theirs.from_pretrained(tmp_path / "ours"), ours.from_pretrained(tmp_path / "theirs")
    assert public(there.config) == public(other.config)
    assert {k: v for k, v in public(back.config).items() if k not in OWN} == public(other.config)
    assert torch.equal(there.timesteps, back.timesteps)
    assert logged == []


def test_ours_is_written_only_where_it_differs(tmp_path: Path) -> None:
    for value in (False, True):
        DDIMScheduler(legacy_previous_timestep=value).save_pretrained(tmp_path)
        text = (tmp_path / "scheduler_config.json").read_text()
        assert ("legacy_previous_timestep" in text) is value
        assert DDIMScheduler.from_pretrained(tmp_path).config.legacy_previous_timestep is value
    assert "_use_default_values" not in text


def test_load_config_and_from_pretrained(tmp_path: Path) -> None:
    DDIMScheduler(**UNUSUAL).save_config(tmp_path / "model" / "scheduler")
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    for place, options in [
        (file, {}),
        (file.parent, {}),
        (str(file.parent), {}),
        (tmp_path / "model", {"subfolder": "scheduler"}),
    ]:
        config = DDIMScheduler.load_config(place, **options)
        assert public(config) == UNUSUAL
        assert config["_class_name"] == "DDIMScheduler"
        scheduler = DDIMScheduler.from_pretrained(place, **options)
        assert public(scheduler.config) == {**UNUSUAL, **OWN}
    changed = DDIMScheduler.from_pretrained(file, timestep_spacing="linspace")
    assert changed.config.timestep_spacing == "linspace"
    assert DDIMScheduler.load_config(file, return_unused_kwargs=True, colour="red")[1] == {"colour": "red"}
    scheduler, rest = DDIMScheduler.from_pretrained(file, return_unused_kwargs=True, colour="red")
    assert rest["colour"] == "red"
    for missing in (tmp_path / "nowhere", tmp_path / "model"):
        with pytest.raises(CheckpointError):
            DDIMScheduler.from_pretrained(missing)


def test_broken_files_are_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "scheduler_config.json"
    for text in ("", "{", "[1, 2]", "null", '{"beta_end": NaN}', "\x00", "[" * 100_000):
        file.write_text(text)
        with pytest.raises(CheckpointError, match="scheduler_config"):
            DDIMScheduler.from_pretrained(tmp_path)
    file.write_text('{"beta_end": "high"}')
    with pytest.raises(ConfigError, match="beta_end"):
        DDIMScheduler.from_pretrained(tmp_path)


def test_configs_of_the_other_side_are_taken_as_they_are() -> None:
    theirs = diffusers.DDIMScheduler(**UNUSUAL)
    assert isinstance(theirs.config, FrozenDict)
    assert public(DDIMScheduler.from_config(theirs.config).config) == {**UNUSUAL, **OWN}
    ours = DDIMScheduler(**UNUSUAL)
    assert public(diffusers.DDIMScheduler.from_config(ours.config).config) == UNUSUAL
