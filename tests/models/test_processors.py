"""Attention processors, hooks and replaced parts, against diffusers' own networks with the same in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models import attention_processor as theirs_processors
from torch import Tensor, nn

from ddim.models import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from ddim.models.attention import Attention, AttnProcessor
from ddim.models.replaced import is_replaced

Written = Callable[..., nn.Module]

TEXT: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
}
PIXELS: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "mid_block_scale_factor": 1.5,
}
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 8,
    "sample_size": 16,
}
NETWORKS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "text": (UNet2DConditionModel, diffusers.UNet2DConditionModel, TEXT),
    "text, upcast": (
        UNet2DConditionModel,
        diffusers.UNet2DConditionModel,
        {**TEXT, "upcast_attention": True, "use_linear_projection": True, "only_cross_attention": (True, False)},
    ),
    "pixels": (UNet2DModel, diffusers.UNet2DModel, PIXELS),
    "autoencoder": (AutoencoderKL, diffusers.AutoencoderKL, AUTOENCODER),
}


def inputs_of(name: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    if name == "autoencoder":
        return {"sample": torch.randn(2, 3, 16, 16, generator=generator)}
    channels = 3 if name == "pixels" else 4
    sample = torch.randn(2, channels, 8, 8, generator=generator)
    given = {"sample": sample, "timestep": torch.tensor(321)}
    if name != "pixels":
        given["encoder_hidden_states"] = torch.randn(2, 5, 24, generator=generator)
    return given


class Pair:
    def __init__(self, name: str, ours: Any, theirs: Any) -> None:
        self.ours, self.theirs, self.inputs = ours, theirs, inputs_of(name)

    @torch.no_grad()
    def run(self, network: Any, **more: Any) -> Tensor:
        out: Tensor = network(**self.inputs, **more).sample
        return out

    def agree(self, **more: Any) -> Tensor:
        """Both networks' result; it must be the same."""
        ours = self.run(self.ours, **more)
        torch.testing.assert_close(ours, self.run(self.theirs, **more), rtol=1e-4, atol=1e-5)
        return ours


@pytest.fixture(params=list(NETWORKS))
def pair(request: pytest.FixtureRequest, written: Written, tmp_path: Path) -> Pair:
    ours, theirs, config = NETWORKS[request.param]
    reference = written(theirs, **config)
    return Pair(request.param, ours.from_pretrained(tmp_path), reference)


@pytest.fixture
def text(written: Written, tmp_path: Path) -> Pair:
    ours, theirs, config = NETWORKS["text"]
    reference = written(theirs, **config)
    return Pair("text", ours.from_pretrained(tmp_path), reference)


# --- processors ------------------------------------------------------------------------------------------------------


def test_the_processors_have_diffusers_names_in_its_order(pair: Pair) -> None:
    if isinstance(pair.theirs, diffusers.UNet2DModel):  # which has no such attribute
        layers = [name for name, layer in pair.theirs.named_modules() if type(layer).__name__ == "Attention"]
        names = sorted((f"{layer}.processor" for layer in layers), key=lambda name: name.startswith("mid_block"))
    else:
        names = list(pair.theirs.attn_processors)
    assert list(pair.ours.attn_processors) == names
    assert all(type(processor) is AttnProcessor for processor in pair.ours.attn_processors.values())


def test_an_attention_layer_has_what_diffusers_layer_has(pair: Pair) -> None:
    for name, theirs in pair.theirs.named_modules():
        if isinstance(theirs, theirs_processors.Attention):
            ours = pair.ours.get_submodule(name)
            assert type(ours).__name__ == "Attention"
            assert list(dict(ours.named_modules())) == list(dict(theirs.named_modules()))
            for attribute, value in vars(theirs).items():
                if not attribute.startswith("_") and isinstance(value, (int, float, type(None))):
                    if attribute in ("added_kv_proj_dim", "context_pre_only", "pre_only", "only_cross_attention"):
                        continue  # of layers for two streams of text
                    if attribute in ("added_proj_bias", "out_context_dim", "upcast_softmax"):
                        continue
                    assert getattr(ours, attribute) == value, (name, attribute)


@pytest.mark.parametrize(
    "processor",
    [
        pytest.param(theirs_processors.AttnProcessor(), id="plain"),
        pytest.param(theirs_processors.AttnProcessor2_0(), id="fused"),
        pytest.param(theirs_processors.SlicedAttnProcessor(2), id="sliced"),
    ],
)
@pytest.mark.thin(every=2)
def test_diffusers_processors_give_our_own_result(pair: Pair, processor: Any) -> None:
    own = pair.agree()
    calls: list[Attention] = []

    def counted(attn: Attention, *args: Any, **options: Any) -> Tensor:
        calls.append(attn)
        out: Tensor = processor(attn, *args, **options)
        return out

    pair.ours.set_attn_processor(counted)
    torch.testing.assert_close(pair.run(pair.ours), own, rtol=0, atol=1e-5)
    assert set(calls) == {module for module in pair.ours.modules() if isinstance(module, Attention)}
    pair.ours.set_default_attn_processor()
    assert torch.equal(pair.run(pair.ours), own)


def test_masks_reach_a_processor_as_they_reach_ours(text: Pair) -> None:
    mask = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 1, 1, 1]])
    own = text.agree(encoder_attention_mask=mask)
    assert not torch.allclose(own, text.run(text.ours), atol=1e-4)
    for processor in (theirs_processors.AttnProcessor(), theirs_processors.AttnProcessor2_0()):
        text.ours.set_attn_processor(processor)
        torch.testing.assert_close(text.run(text.ours, encoder_attention_mask=mask), own, rtol=0, atol=1e-5)


class Reweighting:
    """As prompt-to-prompt does it: the shares of each token are kept, and those of one token are changed."""

    def __init__(self, token: int, factor: float) -> None:
        self.token, self.factor = token, factor
        self.kept: list[Tensor] = []

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        boost: float = 1.0,
    ) -> Tensor:
        batch, length, _ = hidden_states.shape
        is_cross = encoder_hidden_states is not None
        context = encoder_hidden_states if is_cross else hidden_states
        mask = attn.prepare_attention_mask(attention_mask, length, batch)
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key, value = (attn.head_to_batch_dim(layer(context)) for layer in (attn.to_k, attn.to_v))
        shares = attn.get_attention_scores(query, key, mask)  # (b·heads n s)
        if is_cross:
            self.kept.append(shares)
            shares = shares.clone()
            shares[..., self.token] *= self.factor * boost
        out = attn.batch_to_head_dim(shares @ value)
        out = attn.to_out[1](attn.to_out[0](out))
        result: Tensor = out / attn.rescale_output_factor
        return result


def test_a_processor_of_ones_own_changes_our_network_as_it_changes_diffusers(text: Pair) -> None:
    before = text.agree()
    kept = []
    for network in (text.ours, text.theirs):
        processor = Reweighting(token=2, factor=3.0)
        network.set_attn_processor(processor)
        kept.append(processor.kept)
    after = text.agree()
    assert not torch.allclose(before, after, atol=1e-3)
    assert len(kept[0]) == len(kept[1]) == len(text.ours.attn_processors) / 2
    for ours, theirs in zip(*kept, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.sum(-1), torch.ones(ours.shape[:2]))


def test_a_dict_gives_each_layer_its_own(text: Pair) -> None:
    for network in (text.ours, text.theirs):
        chosen = {
            name: Reweighting(1, 2.0) if name.startswith("up_blocks.0") else processor
            for name, processor in network.attn_processors.items()
        }
        network.set_attn_processor(dict(chosen))  # diffusers empties the dict
        assert network.attn_processors == chosen
    before = text.agree()
    text.ours.set_default_attn_processor()
    assert not torch.allclose(text.run(text.ours), before, atol=1e-4)


def test_a_dict_that_does_not_fit_is_refused(text: Pair) -> None:
    processors = text.ours.attn_processors
    name = next(iter(processors))
    with pytest.raises(ValueError, match="number of processors, 1, is not that of attention layers, 14"):
        text.ours.set_attn_processor({name: AttnProcessor()})
    with pytest.raises(ValueError, match=r"there are no attention layers typo"):
        text.ours.set_attn_processor({("typo.processor" if key == name else key): v for key, v in processors.items()})
    with pytest.raises(TypeError, match="cannot be called: None"):
        text.ours.set_attn_processor({**processors, name: None})
    assert text.ours.attn_processors == processors
    assert not is_replaced(text.ours)


class Adapter(nn.Module):
    """A processor with weights of its own, as an IP-Adapter's is."""

    def __init__(self) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(24, 8)

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
        return attn.attend(hidden_states, encoder_hidden_states)


def test_a_processor_with_weights_is_a_part_of_the_network(text: Pair) -> None:
    names = set(text.ours.state_dict())
    text.ours.set_attn_processor({name: Adapter() for name in text.ours.attn_processors})
    added = set(text.ours.state_dict()) - names
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.weight" in added
    assert len(nn.ModuleList(text.ours.attn_processors.values()).state_dict()) == len(added) == 2 * 14
    assert is_replaced(text.ours)
    text.ours.set_default_attn_processor()
    assert set(text.ours.state_dict()) == names
    assert not is_replaced(text.ours)


def test_more_arguments_reach_the_processors_that_know_them(text: Pair) -> None:
    for network in (text.ours, text.theirs):
        network.set_attn_processor(Reweighting(2, 1.0))
    plain = text.agree()
    boosted = text.agree(cross_attention_kwargs={"boost": 4.0})
    assert not torch.allclose(plain, boosted, atol=1e-3)
    with pytest.warns(UserWarning, match=r"cross_attention_kwargs \['typo'\] are not expected by Reweighting"):
        assert torch.equal(text.run(text.ours, cross_attention_kwargs={"typo": 1, "boost": 4.0}), boosted)


def test_without_a_processor_there_is_nobody_to_take_more_arguments(text: Pair) -> None:
    own = text.run(text.ours)
    for empty in ({}, None, {"scale": 1.0}, {"scale": 0.5}):  # without an adapter, its strength does not matter
        assert torch.equal(text.run(text.ours, cross_attention_kwargs=empty), own)
    with pytest.warns(UserWarning, match="are not expected by AttnProcessor"):
        assert torch.equal(text.run(text.ours, cross_attention_kwargs={"typo": 1}), own)
    text.ours.has_adapters = True
    with pytest.raises(ValueError, match="set_adapters"):
        text.run(text.ours, cross_attention_kwargs={"scale": 0.5})


def test_a_text_that_is_only_kept_as_keys_and_values_is_nothing_for_a_processor(text: Pair) -> None:
    cache = text.ours.project_text(text.inputs["encoder_hidden_states"])
    text.ours.set_attn_processor(Reweighting(2, 1.0))
    with pytest.raises(ValueError, match="give encoder_hidden_states instead of text_cache"):
        text.ours(text.inputs["sample"], 321, text_cache=cache)


# --- hooks and replaced forwards -------------------------------------------------------------------------------------


def seen_by_hooks(network: Any, pair: Pair) -> dict[str, list[Tensor]]:
    seen: dict[str, list[Tensor]] = {}
    handles = []
    for name, module in network.named_modules():
        if name in ("", "time_proj") or isinstance(module, (nn.Dropout, nn.Identity, nn.SiLU, nn.ModuleList)):
            continue  # what has no features of its own, or is told the timestep in another type

        def note(_: nn.Module, args: Any, options: Any, out: Any, name: str = name) -> None:
            first = (*args, *options.values())[0]
            out = out if isinstance(out, Tensor) else out[0]
            if isinstance(out, Tensor):
                pair = [first, out]
                if name.endswith("group_norm"):  # here of (b c h w), there of (b c h·w)
                    pair = [each.flatten(2) for each in pair]
                seen.setdefault(name, []).extend(pair)

        handles.append(module.register_forward_hook(note, with_kwargs=True))
    pair.run(network)
    for handle in handles:
        handle.remove()
    return seen


def test_hooks_see_at_each_part_what_they_see_in_diffusers(pair: Pair) -> None:
    ours, theirs = seen_by_hooks(pair.ours, pair), seen_by_hooks(pair.theirs, pair)
    kinds = ("attn1", "attn2", "to_q", "to_k", "to_v", "to_out.0", "resnets.0", "mid_block", "conv_in", "attentions.0")
    both = set(ours) & set(theirs)
    for kind in kinds:
        found = [name for name in theirs if name.endswith(kind)]
        assert set(found) <= both, kind
    assert any("resnets" in name for name in both)
    for name in sorted(both):
        for mine, its in zip(ours[name], theirs[name], strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


PARTS = [
    "conv_in",
    "mid_block",
    "time_embedding",
    "down_blocks.0.resnets.0",
    "down_blocks.0.resnets.0.time_emb_proj",
    "up_blocks.1.attentions.0",
    "mid_block.attentions.0.transformer_blocks.0",
    "mid_block.attentions.0.transformer_blocks.0.attn2",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.thin(every=2)
def test_hooks_change_the_result_as_they_change_diffusers(text: Pair, part: str) -> None:
    before = text.agree()

    def halved(_: nn.Module, __: Any, out: Any) -> Any:
        return (out[0] * 0.5, *out[1:]) if isinstance(out, tuple) else out * 0.5

    handles = [network.get_submodule(part).register_forward_hook(halved) for network in (text.ours, text.theirs)]
    assert not torch.allclose(text.agree(), before, atol=1e-3)
    for handle in handles:
        handle.remove()
    assert torch.equal(text.agree(), before)


def attention_forward(self: Any, kept: list[Tensor]) -> Callable[..., Tensor]:
    """In the manner of prompt-to-prompt and MasaCtrl, which replace the `forward` of every "Attention"."""

    def forward(
        hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        to_out = self.to_out[0] if type(self.to_out) is nn.ModuleList else self.to_out
        is_cross = encoder_hidden_states is not None
        context = encoder_hidden_states if is_cross else hidden_states
        q, k, v = (
            self.head_to_batch_dim(layer(x))
            for layer, x in ((self.to_q, hidden_states), (self.to_k, context), (self.to_v, context))
        )
        scores = torch.einsum("b i d, b j d -> b i j", q, k) * self.scale
        shares = scores.softmax(dim=-1)
        kept.append(shares)
        if not is_cross:  # as MasaCtrl: the second image looks at the first one
            v = torch.cat([v[: len(v) // 2]] * 2)
        out: Tensor = to_out(self.batch_to_head_dim(torch.einsum("b i j, b j d -> b i d", shares, v)))
        return out

    return forward


def replace_attention(network: Any, kept: list[Tensor]) -> int:
    count = 0
    for child in network.children():
        if child.__class__.__name__ == "Attention":
            child.forward = attention_forward(child, kept)
            count += 1
        else:
            count += replace_attention(child, kept)
    return count


def test_a_replaced_forward_of_every_attention_works_as_in_diffusers(text: Pair) -> None:
    before = text.agree()
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    assert replace_attention(text.ours, ours) == replace_attention(text.theirs, theirs) == 14
    assert not torch.allclose(text.agree(), before, atol=1e-3)
    assert len(ours) == len(theirs) == 14
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-5)


def resnet_forward(self: Any) -> Callable[..., Tensor]:
    """In the manner of plug-and-play, which keeps a residual block's features."""

    def forward(input_tensor: Tensor, temb: Tensor) -> Tensor:
        h = self.nonlinearity(self.norm1(input_tensor))
        if self.upsample is not None:
            input_tensor, h = self.upsample(input_tensor), self.upsample(h)
        elif self.downsample is not None:
            input_tensor, h = self.downsample(input_tensor), self.downsample(h)
        h = self.conv1(h)
        temb = self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        assert self.time_embedding_norm == "default"
        h = self.conv2(self.dropout(self.nonlinearity(self.norm2(h + temb))))
        h = torch.cat([h[:1]] * len(h))  # what the first image has is injected into the others
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        out: Tensor = (input_tensor + h) / self.output_scale_factor
        return out

    return forward


def test_a_replaced_forward_of_residual_blocks_works_as_in_diffusers(text: Pair) -> None:
    before = text.agree()
    for network in (text.ours, text.theirs):
        for block in (network.up_blocks[1].resnets[1], network.down_blocks[0].resnets[0]):
            block.forward = resnet_forward(block)
        attention = network.up_blocks[1].attentions[0].transformer_blocks[0].attn1
        attention.forward = attention_forward(attention, [])
    assert not torch.allclose(text.agree(), before, atol=1e-3)


def up_block_forward(self: Any) -> Callable[..., Tensor]:
    """In the manner of FreeU's first code, which replaces whole blocks of the way up."""

    def forward(
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        temb: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        cross_attention_kwargs: Any = None,
        upsample_size: Any = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        x = hidden_states * 1.25
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            skip, res_hidden_states_tuple = res_hidden_states_tuple[-1], res_hidden_states_tuple[:-1]
            x = resnet(torch.cat([x, skip], dim=1), temb)
            x = attention(x, encoder_hidden_states=encoder_hidden_states, return_dict=False)[0]
        if self.upsamplers is not None:
            for upsampler in self.upsamplers:
                x = upsampler(x, upsample_size)
        return x

    return forward


def test_a_replaced_forward_of_a_block_works_as_in_diffusers(text: Pair) -> None:
    before = text.agree()
    for network in (text.ours, text.theirs):
        for block in network.up_blocks:
            block.forward = up_block_forward(block)
    assert not torch.allclose(text.agree(), before, atol=1e-3)


def network_forward(self: Any) -> Callable[..., Any]:
    """In the manner of code that caches features between steps, which replaces the network's whole `forward`."""

    def forward(
        sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, attention_mask: Any = None, **_: Any
    ) -> Any:
        timesteps = timestep.expand(sample.shape[0])
        t_emb = self.time_proj(timesteps).to(dtype=sample.dtype)
        emb = self.time_embedding(t_emb, None)
        assert self.class_embedding is None
        assert self.encoder_hid_proj is None
        assert self.time_embed_act is None
        assert not self.config.center_input_sample
        assert all(side % 2**self.num_upsamplers == 0 for side in sample.shape[-2:])
        sample = self.conv_in(sample)
        skips: tuple[Tensor, ...] = (sample,)
        about = {"encoder_hidden_states": encoder_hidden_states, "cross_attention_kwargs": None}
        for block in self.down_blocks:
            is_cross = hasattr(block, "has_cross_attention") and block.has_cross_attention
            sample, outputs = block(hidden_states=sample, temb=emb, **(about if is_cross else {}))
            skips += outputs
        sample = self.mid_block(sample, emb, **about)
        for block in self.up_blocks:
            own, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            sample = block(
                hidden_states=sample * 1.1, temb=emb, res_hidden_states_tuple=own, upsample_size=None, **about
            )
        sample = self.conv_out(self.conv_act(self.conv_norm_out(sample)))
        return diffusers.models.unets.unet_2d_condition.UNet2DConditionOutput(sample=sample)

    return forward


def test_a_replaced_forward_of_the_network_works_as_in_diffusers(text: Pair) -> None:
    before = text.agree()
    for network in (text.ours, text.theirs):
        network.forward = network_forward(network)
    assert not torch.allclose(text.agree(), before, atol=1e-3)


# --- what is noticed -------------------------------------------------------------------------------------------------


def replaced_class(module: nn.Module) -> None:
    class Other(type(module)):  # type: ignore[misc]
        pass

    module.__class__ = Other


WAYS: dict[str, Callable[[Any], Any]] = {
    "hook": lambda unet: unet.conv_in.register_forward_hook(lambda *_: None),
    "pre-hook": lambda unet: unet.mid_block.resnets[0].norm1.register_forward_pre_hook(lambda *_: None),
    "hook of the network": lambda unet: unet.register_forward_hook(lambda *_: None),
    "forward": lambda unet: setattr(unet.up_blocks[0], "forward", unet.up_blocks[0].forward),
    "forward of the network": lambda unet: setattr(unet, "forward", unet.forward),
    "processor": lambda unet: unet.set_attn_processor(theirs_processors.AttnProcessor()),
    "processor that is assigned": lambda unet: setattr(
        unet.mid_block.attentions[0].transformer_blocks[0].attn1, "processor", lambda *_, **__: None
    ),
    "class": lambda unet: replaced_class(unet.mid_block.attentions[0].transformer_blocks[0]),
    "module": lambda unet: setattr(unet.mid_block.resnets[0], "conv1", Adapter()),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_whatever_is_replaced_is_noticed(text: Pair, way: str) -> None:
    assert not is_replaced(text.ours)
    WAYS[way](text.ours)
    assert is_replaced(text.ours)


def test_a_hook_for_all_modules_is_noticed(text: Pair) -> None:
    with nn.modules.module.register_module_forward_hook(lambda *_: None):
        assert is_replaced(text.ours)
    assert not is_replaced(text.ours)


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("hook of the network", "forward of the network")])
def test_a_runner_does_not_run_what_was_replaced(text: Pair, way: str) -> None:
    calls = []

    def runner(*inputs: Tensor) -> Tensor:
        calls.append(len(inputs))
        return text.ours.core(*inputs)

    text.ours.runner = runner
    own = text.run(text.ours)
    assert len(calls) == 1
    if way in ("module", "processor that is assigned"):  # these compute nothing that can be compared
        WAYS[way](text.ours)
        assert text.ours.active_runner() is None
        return
    WAYS[way](text.ours)
    torch.testing.assert_close(text.run(text.ours), own, rtol=0, atol=1e-5)
    assert len(calls) == 1


def test_a_runner_does_not_run_a_network_of_other_modules_than_it_has_seen(text: Pair) -> None:
    calls = []

    def make_runner() -> Callable[..., Tensor]:
        def runner(*inputs: Tensor) -> Tensor:
            calls.append(len(inputs))
            return text.ours.core(*inputs)

        return runner

    attention = text.ours.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.to_k = nn.Linear(32, 32, bias=False)  # before the runner's first run, it may be another one
    text.ours.runner = make_runner()
    own = text.run(text.ours)
    assert len(calls) == 1
    before, attention.to_k = attention.to_k, nn.Linear(32, 32, bias=False)
    assert not is_replaced(text.ours)
    assert not torch.allclose(text.run(text.ours), own, atol=1e-4)
    assert len(calls) == 1
    attention.to_k = before
    torch.testing.assert_close(text.run(text.ours), own, rtol=0, atol=1e-5)
    assert len(calls) == 2
    attention.to_k = nn.Linear(32, 32, bias=False)
    text.ours.runner = make_runner()
    text.run(text.ours)
    assert len(calls) == 3
