"""`CLIPTextModel` against transformers'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddim.errors import ConfigError, WeightsError
from ddim.models import CLIPTextModel, CLIPTextModelWithProjection

# text_encoder/config.json of Stable Diffusion 1.5 and 2.1.
SD15 = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
SD21 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "hidden_act": "gelu",
    "bos_token_id": 0,
    "eos_token_id": 2,
}
SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 12,
    "eos_token_id": 99,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "stable diffusion 1": {"eos_token_id": 2},
    "stable diffusion 2": {"eos_token_id": 2, "hidden_act": "gelu"},
    "first end token": {},
    "eps": {"layer_norm_eps": 1e-2, "attention_dropout": 0.3},
}
# Two texts: one padded with the end token (as Stable Diffusion 1 does), one with 0 (as Stable Diffusion 2 does).
TOKENS = torch.tensor([[98, 5, 17, 3, 99, 99, 99, 99], [98, 44, 2, 61, 7, 99, 0, 0]])


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], Any]:
    """Write transformers' network with random weights to `tmp_path`; returns it."""

    def write(config: dict[str, Any]) -> Any:
        torch.manual_seed(0)
        network = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)).eval()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
        network.save_pretrained(tmp_path)
        return network

    return write


@torch.no_grad()
def assert_same(ours: CLIPTextModel, theirs: Any, attention_mask: Tensor | None = None) -> None:
    expected = theirs(TOKENS, attention_mask=attention_mask, output_hidden_states=True)
    got = ours(TOKENS, attention_mask=attention_mask, output_hidden_states=True)
    torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)
    assert len(got.hidden_states) == len(expected.hidden_states) == 4
    for a, b in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def bare(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Keys and shapes, without the prefix that one of the two layouts has."""
    return {key.removeprefix("text_model."): tuple(value.shape) for key, value in network.state_dict().items()}


# --- the same network as transformers' -------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "count"), [(SD15, 123_060_480), (SD21, 340_387_840)])
def test_keys_and_shapes_of_stable_diffusion(config: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        ours = CLIPTextModel(**config)
        theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    assert bare(ours) == bare(theirs)
    assert sum(parameter.numel() for parameter in ours.parameters()) == count


@pytest.mark.parametrize("name", OPTIONS)
def test_output_with_every_option(name: str, write: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    theirs = write({**SMALL, **OPTIONS[name]})
    assert_same(CLIPTextModel.from_pretrained(tmp_path), theirs)


def test_the_end_of_a_text(write: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    write(SMALL)
    model = CLIPTextModel.from_pretrained(tmp_path)
    out = model(TOKENS)
    assert torch.equal(out.pooler_output[0], out.last_hidden_state[0, 4])
    assert torch.equal(out.pooler_output[1], out.last_hidden_state[1, 5])


def test_attention_mask(write: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    theirs = write(SMALL)
    model = CLIPTextModel.from_pretrained(tmp_path)
    assert_same(model, theirs, (TOKENS != 0).long())
    everything = torch.ones_like(TOKENS)
    torch.testing.assert_close(model(TOKENS, everything)[0], model(TOKENS)[0], atol=3e-6, rtol=0)


def test_a_token_sees_none_after_it() -> None:
    torch.manual_seed(0)
    model = CLIPTextModel(**SMALL).eval()
    changed = TOKENS.clone()
    changed[:, 5:] = 1
    a, b = model(TOKENS).last_hidden_state, model(changed).last_hidden_state
    assert torch.equal(a[:, :5], b[:, :5])
    assert not torch.equal(a[:, 5:], b[:, 5:])


# --- files -----------------------------------------------------------------------------------------------------------


def rewrite(folder: Path, prefix: str, **more: Tensor) -> None:
    file = folder / "model.safetensors"
    state = {prefix + key.removeprefix("text_model."): value for key, value in load_file(file).items()}
    save_file({**state, **more}, file)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_both_key_layouts(prefix: str, write: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    theirs = write(SMALL)
    rewrite(tmp_path, prefix, **{f"{prefix}embeddings.position_ids": torch.arange(12)[None]})
    assert_same(CLIPTextModel.from_pretrained(tmp_path), theirs)


def test_a_bin_file_loads(write: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    theirs = write(SMALL)
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same(CLIPTextModel.from_pretrained(tmp_path), theirs)


def test_an_unknown_key_is_an_error(write: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    write(SMALL)
    rewrite(tmp_path, "", text_projection=torch.zeros(1))
    with pytest.raises(WeightsError, match=r"unexpected: text_model\.text_projection"):
        CLIPTextModel.from_pretrained(tmp_path)


def test_half_precision_files(write: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    write(SMALL).half().save_pretrained(tmp_path)
    assert CLIPTextModel.from_pretrained(tmp_path).dtype == torch.float32
    assert CLIPTextModel.from_pretrained(tmp_path, torch_dtype=torch.float16).dtype == torch.float16


def test_what_we_save_loads_in_transformers(tmp_path: Path) -> None:
    torch.manual_seed(2)
    ours = CLIPTextModel(**SMALL).eval()
    ours.save_pretrained(tmp_path)
    theirs, report = transformers.CLIPTextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_same(ours, theirs.eval())


def test_half_precision_weights_we_save_load_as_float32_in_transformers(tmp_path: Path) -> None:
    CLIPTextModel(**SMALL).half().save_pretrained(tmp_path)
    assert transformers.CLIPTextModel.from_pretrained(tmp_path).dtype == torch.float32


def test_the_config_of_an_old_file_loads_without_a_warning_and_is_kept(tmp_path: Path) -> None:
    CLIPTextModel(**SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    old = {"_name_or_path": "a", "dropout": 0.0, "torch_dtype": "float16", "transformers_version": "4.22.0.dev0"}
    (tmp_path / "config.json").write_text(json.dumps({**config, **old}))
    model = CLIPTextModel.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["dropout"] == 0.0
    assert again["transformers_version"] == "4.22.0.dev0"
    assert again["model_type"] == "clip_text_model"
    assert again["dtype"] == "float32"
    assert not {"_class_name", "_name_or_path", "torch_dtype"} & set(again)


# --- training --------------------------------------------------------------------------------------------------------


def test_initial_weights_have_the_deviations_of_transformers() -> None:
    config = {**SMALL, "hidden_size": 64, "intermediate_size": 256, "vocab_size": 500, "initializer_factor": 0.5}
    torch.manual_seed(0)
    ours = CLIPTextModel(**config)
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)).state_dict()
    for key, value in ours.state_dict().items():
        expected = theirs.get(key, theirs.get(key.removeprefix("text_model.")))
        assert expected is not None
        if value.ndim == 2:
            assert value.std().item() == pytest.approx(expected.std().item(), rel=0.1), key
        else:
            assert torch.equal(value, expected), key


def test_gradient_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    model = CLIPTextModel(**SMALL)

    def gradients() -> list[Tensor | None]:
        model.zero_grad()
        model(TOKENS).last_hidden_state.square().mean().backward()
        return [parameter.grad for parameter in model.parameters()]

    plain = gradients()
    model.enable_gradient_checkpointing()
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_compiles_without_a_graph_break() -> None:
    torch._dynamo.reset()
    model = CLIPTextModel(**SMALL).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(TOKENS)[1], model(TOKENS)[1], atol=1e-5, rtol=0)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size=32 is no multiple of num_attention_heads=5"),
        ({"hidden_act": "quickgelu"}, "unknown activation 'quickgelu'; known are gelu, mish, quick_gelu"),
    ],
)
def test_settings_that_cannot_work(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CLIPTextModel(**{**SMALL, **change})


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(1, 13, dtype=torch.long), "13 tokens are more than the text encoder's 12 positions"),
        (torch.tensor([[1, 100]]), r"token ids must be in 0\.\.99"),
        (torch.tensor([1, 2]), r"shape \(b, s\), not \(2,\)"),
    ],
)
def test_tokens_that_do_not_fit(tokens: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLIPTextModel(**SMALL)(tokens)


# --- with a projection, as Stable Diffusion XL's second encoder -------------------------------------------------------

# text_encoder_2/config.json of Stable Diffusion XL.
SDXL = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "hidden_act": "gelu",
    "bos_token_id": 0,
    "eos_token_id": 2,
}
PROJECTED = {**SMALL, "projection_dim": 24, "hidden_act": "gelu"}


def projecting(config: dict[str, Any], folder: Path) -> Any:
    """transformers' network with random weights, saved into a folder."""
    torch.manual_seed(0)
    network = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config)).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    network.save_pretrained(folder)
    return network


@torch.no_grad()
def assert_projects_alike(ours: CLIPTextModelWithProjection, theirs: Any) -> None:
    expected, got = (network(TOKENS, output_hidden_states=True) for network in (theirs, ours))
    torch.testing.assert_close(got.text_embeds, expected.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)
    assert got[0] is got.text_embeds
    assert len(got.hidden_states) == len(expected.hidden_states) == 4
    for a, b in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(TOKENS).text_embeds, expected.text_embeds, atol=1e-5, rtol=0)


def test_keys_and_shapes_of_stable_diffusion_xl() -> None:
    with torch.device("meta"):
        ours = CLIPTextModelWithProjection(**SDXL)
        theirs = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**SDXL))
    assert bare(ours) == bare(theirs)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 694_659_840


@pytest.mark.parametrize("end", [2, 99])
def test_a_text_becomes_the_vector_of_transformers(end: int, tmp_path: Path) -> None:
    theirs = projecting({**PROJECTED, "eos_token_id": end}, tmp_path)
    assert_projects_alike(CLIPTextModelWithProjection.from_pretrained(tmp_path), theirs)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_both_key_layouts_with_a_projection(prefix: str, tmp_path: Path) -> None:
    theirs = projecting(PROJECTED, tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    head = state.pop("text_projection.weight")
    state = {prefix + key.removeprefix("text_model."): value for key, value in state.items()}
    save_file({**state, "text_projection.weight": head}, file)
    assert_projects_alike(CLIPTextModelWithProjection.from_pretrained(tmp_path), theirs)


def test_what_we_save_with_a_projection_loads_in_transformers(tmp_path: Path) -> None:
    torch.manual_seed(2)
    ours = CLIPTextModelWithProjection(**PROJECTED).eval()
    ours.save_pretrained(tmp_path)
    theirs, report = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_projects_alike(ours, theirs.eval())
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["CLIPTextModelWithProjection"]


def test_a_projection_needs_its_length_and_its_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="projection_dim is needed"):
        CLIPTextModelWithProjection(**{**SMALL, "projection_dim": None})
    CLIPTextModel(**SMALL).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"missing: text_projection\.weight"):
        CLIPTextModelWithProjection.from_pretrained(tmp_path)
