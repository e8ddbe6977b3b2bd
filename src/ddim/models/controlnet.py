"""ControlNet (Zhang et al. 2023): a copy of a U-Net's way down that is shown a picture, and steers that U-Net."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddim.checkpoint import Savable, Saving
from ddim.checkpoint.config import register_to_config
from ddim.checkpoint.control_layout import UNSEEN, convert_control, refuse_others
from ddim.checkpoint.files import outline, read_tensors
from ddim.checkpoint.hub import Repository
from ddim.checkpoint.loading import check_state, differences, fill, raise_for_problems, skeleton
from ddim.checkpoint.located import locate
from ddim.checkpoint.pretrained import choose_dtype, find_weights
from ddim.errors import ConfigError
from ddim.models.backbone import ChosenTimes, ClassTimeCache, TimeCache
from ddim.models.blocks import DownBlock2D, Times
from ddim.models.embeddings import as_timesteps
from ddim.models.settings import look_up
from ddim.models.text_backbone import TextBackbone, TextCache, as_bias
from ddim.models.unet_condition import UNet2DConditionModel
from ddim.step import Output

WIDTHS = (16, 32, 96, 256)  # of the published ControlNets' reading of a picture
# Options of diffusers' `from_single_file` that ask for what is done in any case.
WITHOUT_EFFECT = ("disable_mmap", "low_cpu_mem_usage", "use_safetensors")
CHANNEL_ORDERS = {"rgb": False, "bgr": True}  # whether the picture's channels are turned round


@dataclass(eq=False)
class ControlNetOutput(Output):
    """What a ControlNet adds to a U-Net."""

    down_block_res_samples: list[Tensor]  # (b c h w) each, for the outputs of the way down
    mid_block_res_sample: Tensor  # (b c h w), for the output of the middle


class ControlNetConditioningEmbedding(nn.Module):
    """A picture in features of the latents' resolution: (b c H W) -> (b out h w).

    Args:
        conditioning_embedding_channels: out.
        conditioning_channels: c, of the picture.
        block_out_channels: channels at each resolution; each after the first halves height and width.
    """

    def __init__(
        self,
        conditioning_embedding_channels: int,
        conditioning_channels: int = 3,
        block_out_channels: tuple[int, ...] = WIDTHS,
    ) -> None:
        super().__init__()
        widths = block_out_channels
        self.conv_in = nn.Conv2d(conditioning_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for before, after in itertools.pairwise(widths):
            self.blocks.append(nn.Conv2d(before, before, 3, padding=1))
            self.blocks.append(nn.Conv2d(before, after, 3, padding=1, stride=2))
        self.conv_out = zeroed(nn.Conv2d(widths[-1], conditioning_embedding_channels, 3, padding=1))

    def forward(self, conditioning: Tensor) -> Tensor:
        x = F.silu(self.conv_in(conditioning))
        for block in self.blocks:
            x = F.silu(block(x))
        out: Tensor = self.conv_out(x)
        return out


class ControlNetModel(TextBackbone):
    """A ControlNet for Stable Diffusion 1, 2 and XL; the constructor's arguments are diffusers'.

    It is the way down and the middle of a U-Net, with the picture's features added to what `conv_in` gives. What its
    blocks give goes through convolutions that begin as zeros, and is added to the outputs of the U-Net's own blocks.

    Args:
        conditioning_channels: of the picture that it is shown.
        controlnet_conditioning_channel_order: "rgb" or "bgr": how that picture's channels are ordered in training.
        conditioning_embedding_out_channels: channels in which the picture is read, from its own resolution down to that
            of the latents: each after the first halves height and width.
        global_pool_conditions: what is added is its mean over the picture, which says what is on it but not where.
        num_attention_heads: the number of heads, which `attention_head_dim` says where this is None.
        mid_block_type: a key of `text_backbone.MID_BLOCKS`.
        encoder_hid_dim, encoder_hid_dim_type: must be None: they are other families'.
        addition_embed_type_num_heads: without effect here; kept in the config.

    The others are those of `UNet2DConditionModel`.

    Raises:
        ConfigError: arguments that are unknown, not implemented or do not fit together.
    """

    encoder_hid_proj = None

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        conditioning_channels: int = 3,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int | tuple[int, ...] = 1280,
        transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1,
        encoder_hid_dim: None = None,
        encoder_hid_dim_type: None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: int | tuple[int, ...] | None = None,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool | None = False,
        resnet_time_scale_shift: str = "default",
        projection_class_embeddings_input_dim: int | None = None,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = WIDTHS,
        global_pool_conditions: bool = False,
        addition_embed_type_num_heads: int = 64,
    ) -> None:
        super().__init__()
        for name in ("encoder_hid_dim", "encoder_hid_dim_type"):
            if self.config[name] is not None:
                raise ConfigError(f"{name}={self.config[name]!r:.100} is not implemented, only None is")
        if mid_block_type is None:
            raise ConfigError("mid_block_type must name a block: a ControlNet has a middle")
        order = controlnet_conditioning_channel_order
        self.is_turned = look_up("controlnet_conditioning_channel_order", order, CHANNEL_ORDERS)
        reading = WIDTHS if conditioning_embedding_out_channels is None else conditioning_embedding_out_channels
        if not reading or not all(isinstance(each, int) and each > 0 for each in (*reading, conditioning_channels)):
            raise ConfigError(
                "conditioning_embedding_out_channels and conditioning_channels must be whole numbers above 0, not "
                f"{reading!r:.100} and {conditioning_channels!r:.50}"
            )
        self.make({**self.config, "attention_head_dim": num_attention_heads or attention_head_dim})

        self.conditioning_channels, self.shrinks_by = conditioning_channels, 2 ** (len(reading) - 1)
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            block_out_channels[0], conditioning_channels, tuple(reading)
        )
        widths = [block_out_channels[0]]
        for width, block in zip(block_out_channels, self.down_blocks, strict=True):
            assert isinstance(block, DownBlock2D)
            widths += [width] * (len(block.resnets) + len([*block.resamplers()]))
        self.controlnet_down_blocks = nn.ModuleList(zeroed(nn.Conv2d(width, width, 1)) for width in widths)
        self.controlnet_mid_block = zeroed(nn.Conv2d(block_out_channels[-1], block_out_channels[-1], 1))

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = WIDTHS,
        load_weights_from_unet: bool = True,
        conditioning_channels: int = 3,
    ) -> Self:
        """A new ControlNet for a U-Net, which changes nothing yet.

        Args:
            unet: the U-Net; its settings are taken over.
            load_weights_from_unet: begin with the U-Net's weights, as is meant; False begins at random.

        The other arguments are the constructor's.

        Raises:
            ConfigError: the U-Net is of a kind that a ControlNet cannot be a copy of.
        """
        names = inspect.signature(cls.__init__).parameters
        shared = {name: value for name, value in unet.config.items() if name in names}
        network = cls(
            **{
                **shared,
                "controlnet_conditioning_channel_order": controlnet_conditioning_channel_order,
                "conditioning_embedding_out_channels": conditioning_embedding_out_channels,
                "conditioning_channels": conditioning_channels,
            }
        )
        if load_weights_from_unet:
            own = network.state_dict()
            taken = {name: tensor for name, tensor in unet.state_dict().items() if name in own}
            missing, _ = network.load_state_dict(taken, strict=False)
            others = [name for name in missing if not name.startswith("controlnet_")]
            if others:
                raise ConfigError(f"the U-Net has no {', '.join(others[:5])}, which a ControlNet copies")
        return network

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        like: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Load a ControlNet that is one `.safetensors` file. It is in eval mode.

        Args:
            pretrained_model_link_or_path: the file, or its address at huggingface.co. It is in the original layout
                (`control_model.…`, or the same names without that; a model beside the ControlNet is left out) or in
                diffusers'.
            dtype: the parameters' type, float32 unless told, "auto" for the one that is stored; `torch_dtype` is its
                older name.
            like: the config of the U-Net that the ControlNet is for. If its widths are the file's, it says what names
                and shapes do not, such as the number of heads; otherwise that is as in Stable Diffusion 1, 2 or XL.
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub. Any other is a
                setting of the constructor, and replaces what was found. `global_pool_conditions`, which the file does
                not say, is True if "shuffle" is in its name, as for the published one.

        Raises:
            CheckpointError: no such file, or not this format. Pickles (`.pth`) are never read.
            WeightsError: names or shapes are not a ControlNet's; all are listed.
            ConfigError: the file is of another kind; or the weights are of no sensible structure.
            TypeError: there is no such option.
        """
        chosen = choose_dtype(dtype, torch_dtype, auto=None)
        if "config" in options or "original_config" in options:
            raise TypeError("config= and original_config= are not needed: the structure is seen in the file")
        options = {name: value for name, value in options.items() if name not in WITHOUT_EFFECT}
        taken = inspect.signature(cls.__init__).parameters
        settings = {name: options.pop(name) for name in taken if name in options}
        file = locate(pretrained_model_link_or_path, options)
        tensors = outline(file)
        refuse_others(tensors, file)
        part, problems = convert_control(tensors)
        config = {**part.config, "global_pool_conditions": "shuffle" in file.name.lower()}
        if like is not None and [*like.get("block_out_channels", ())] == config["block_out_channels"]:
            config |= {name: like[name] for name in UNSEEN if name in like and name in taken}
        config = {
            name: list(value) if isinstance(value, tuple) else value for name, value in {**config, **settings}.items()
        }
        with skeleton():
            network: Self = cls.construct(config, file)
        wanted = network.state_dict()
        offered = {key if key in wanted else part.stored[key]: tensor for key, tensor in part.state.items()}
        raise_for_problems(problems + differences(wanted, offered), f"{file} is no ControlNet of Stable Diffusion")

        def read(keys: Collection[str]) -> dict[str, Tensor]:
            mapped = read_tensors(file, {part.stored[key] for key in keys})
            return {key: mapped[part.stored[key]] for key in keys}

        fill(network, part.state, read, chosen, f"{file} does not fit {cls.__name__}")
        return network.eval()

    def load_base(self, repository: Repository, subfolder: str | None) -> None:
        """Take the weights of the base's U-Net, and 0 for what a U-Net has not, in the type that they are stored in."""
        (file,) = find_weights(repository, self.weights_name, "unet", None)
        stored = read_tensors(file)
        kind = next(iter(stored.values())).dtype
        own = self.state_dict()
        state = {
            name: stored[name] if name in stored else torch.zeros(one.shape, dtype=kind) for name, one in own.items()
        }
        check_state(own, state, f"{file} is no U-Net for this ControlNet")
        self.load_state_dict(state, assign=True)

    def read(self, picture: Tensor) -> Tensor:
        """A picture's features, which are the same at all steps: (b c H W) in [0, 1] to (b w h w)."""
        if picture.ndim != 4 or picture.shape[1] != self.conditioning_channels:
            raise ValueError(
                f"controlnet_cond must have shape (b, {self.conditioning_channels}, H, W), not {tuple(picture.shape)}"
            )
        features: Tensor = self.controlnet_cond_embedding(picture.flip(1) if self.is_turned else picture)
        return features

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        controlnet_cond: Tensor | None = None,
        conditioning_scale: float = 1.0,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
        *,
        features: Tensor | None = None,
        text_cache: TextCache | None = None,
        time_cache: TimeCache | ClassTimeCache | ChosenTimes | None = None,
    ) -> ControlNetOutput | Any:
        """What is to be added to a U-Net's outputs.

        Args:
            controlnet_cond: the picture, (b c H W) in [0, 1], so many times as large as the sample as
                `conditioning_embedding_out_channels` say.
            conditioning_scale: what the result is multiplied by.
            guess_mode: multiply it by 0.1 at the highest resolution and by more below, to 1 in the middle: for use
                without a text (not where `global_pool_conditions`).
            features: what `read` made of the picture; it is used instead of `controlnet_cond`.

        The others are those of `UNet2DConditionModel.forward`.

        Returns:
            `.down_block_res_samples`, a list, and `.mid_block_res_sample`.

        Raises:
            ValueError: a shape or the class labels do not fit, or the text or the picture is missing.
        """
        if sample.ndim != 4 or sample.shape[1] != self.in_channels:
            raise ValueError(f"sample must have shape (b, {self.in_channels}, h, w), not {tuple(sample.shape)}")
        text = self._text(encoder_hidden_states, sample.shape[0]) if text_cache is None else None
        more = {
            "attention_mask": as_bias(attention_mask, sample),
            "cross_attention_kwargs": self._for_processors(cross_attention_kwargs),
        }
        if features is None:
            if controlnet_cond is None:
                raise ValueError("the picture is missing: give controlnet_cond")
            features = self.read(controlnet_cond)
        height, width = sample.shape[2:]
        if features.shape[2:] != (height, width) or features.shape[0] not in (1, len(sample)):
            raise ValueError(
                f"controlnet_cond must be {height * self.shrinks_by}x{width * self.shrinks_by} for a sample of "
                f"{height}x{width}, one or as many as there are samples; its features are {tuple(features.shape)}"
            )
        runner = self.active_runner() if all(value is None for value in more.values()) else None
        times = None if time_cache is None else time_cache.at(timestep)
        temb: Times = None if times is None else self.projected(times)
        if times is None:
            emb = self.embed(
                as_timesteps(timestep, sample.shape[0], sample.device), class_labels, timestep_cond, added_cond_kwargs
            )
            times, temb = None if runner is None else self.project(emb), emb
        if runner is not None and times is not None:
            pairs = text_cache if text is None else self._keys_and_values(text)
            results: Sequence[Tensor] = self.run_by(runner, sample, times, features, *chain(*(pairs or ())))
        else:
            states = text if text_cache is None else iter(text_cache)
            results = self.results(sample, temb, features, {"encoder_hidden_states": states, **more})
        pools = self.config.global_pool_conditions
        *down, middle = _scaled(results, conditioning_scale, rises=guess_mode and not pools)
        if pools:
            *down, middle = (each.mean(dim=(2, 3), keepdim=True) for each in (*down, middle))
        return ControlNetOutput(down, middle) if return_dict else (down, middle)

    def core(self, *inputs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # a U-Net has one result
        """`results` as a function of tensors alone.

        Args:
            inputs: the samples (b c h w); the projected timesteps (b|1 K); the picture's features (b|1 w h w); then the
                keys and the values of one cross-attention after the other, (b|1 heads s d) each.
        """
        sample, times, features, *text = inputs
        return self.results(sample, self.projected(times), features, self.pairs(text))

    def results(self, sample: Tensor, temb: Times, features: Tensor, text: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """What is added to the outputs of the way down and, last, of the middle, before it is scaled: (b c h w) each.

        Args:
            sample: the samples, (b c h w).
            temb, text: as for `body`.
            features: of the picture, (b|1 w h w).
        """
        outputs = self.way_down(self.conv_in(sample) + features, temb, text)
        assert self.mid_block is not None
        middle = self.mid_block(outputs[-1], temb, **self._text_for(self.mid_block, text))
        layers = (*self.controlnet_down_blocks, self.controlnet_mid_block)
        return tuple(layer(output) for layer, output in zip(layers, (*outputs, middle), strict=True))


class MultiControlNetModel(Savable, nn.Module):
    """Several ControlNets as one part of a pipeline; what they add is summed.

    Args:
        controlnets: one or more.
    """

    config_name = ControlNetModel.config_name

    def __init__(self, controlnets: Sequence[nn.Module]) -> None:
        super().__init__()
        if not controlnets or not all(isinstance(network, nn.Module) for network in controlnets):
            raise TypeError("give one or more ControlNets, such as ControlNetModel.from_pretrained returns")
        self.nets = nn.ModuleList(controlnets)

    @property
    def device(self) -> torch.device:
        """The device that the parameters are on."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' type."""
        return next(self.parameters()).dtype

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        controlnet_cond: Sequence[Tensor],
        conditioning_scale: Sequence[float],
        *args: Any,
        return_dict: bool = True,
        **options: Any,
    ) -> ControlNetOutput | Any:
        """What all of them add together: one picture and one scale for each; the rest as for one."""
        given = zip(self.nets, controlnet_cond, conditioning_scale, strict=True)
        results = [
            network(sample, timestep, encoder_hidden_states, *own, *args, return_dict=False, **options)
            for network, *own in given
        ]
        downs, middles = zip(*results, strict=True)
        down = [sum(each[1:], each[0]) for each in zip(*downs, strict=True)]
        middle = sum(middles[1:], middles[0])
        return ControlNetOutput(down, middle) if return_dict else (down, middle)

    def write(self, folder: Path, saving: Saving) -> None:
        """Write each network into a folder: into `folder`, and beside it with _1, _2 and so on after its name."""
        for number, network in enumerate(self.nets):
            network.save_pretrained(  # type: ignore[operator]
                folder if number == 0 else folder.with_name(f"{folder.name}_{number}"), **saving.options()
            )

    @classmethod
    def load(cls, repository: Repository, subfolder: str | None, **options: Any) -> Self:
        """Load what `write` wrote into a subfolder of a repository; the options are those of `ControlNetModel.load`.

        Raises:
            CheckpointError, WeightsError, ConfigError: as `ControlNetModel.from_pretrained`.
        """
        networks = [ControlNetModel.load(repository, subfolder, **options)]
        name = subfolder or ""
        while repository.find(cls.config_name, f"{name}_{len(networks)}") is not None:
            networks.append(ControlNetModel.load(repository, f"{name}_{len(networks)}", **options))
        return cls(networks)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_path: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
    ) -> Self:
        """Load from a folder and those beside it whose names go on with _1, _2 and so on, as saving writes them.

        Args:
            pretrained_model_path: the first folder.

        The others are those of `ControlNetModel.from_pretrained`; so are the errors.
        """
        path = Path(pretrained_model_path)
        return cls.load(
            Repository(str(path.absolute().parent)),
            path.absolute().name,
            dtype=choose_dtype(dtype, torch_dtype, auto=None),
            variant=variant,
            use_safetensors=use_safetensors,
        )


def _scaled(results: Sequence[Tensor], scale: float, rises: bool) -> list[Tensor]:
    """Results times a scale; times 0.1 to 1 more, evenly in their logarithm, if it rises."""
    if not rises:
        return [*results] if scale == 1 else [result * scale for result in results]
    shares = torch.logspace(-1, 0, len(results)).tolist()
    return [result * (scale * share) for result, share in zip(results, shares, strict=True)]


def zeroed(convolution: nn.Conv2d) -> nn.Conv2d:
    """The convolution with weights of zero, through which nothing comes before it is trained."""
    nn.init.zeros_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution
