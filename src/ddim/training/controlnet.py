"""Training a ControlNet (Zhang et al. 2023): a network that is shown a picture and steers a pipeline that is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from ddim.checkpoint import Savable, Saving, atomic_write
from ddim.checkpoint.lora_layout import parse
from ddim.data import Choice, Source
from ddim.data.stream import Draw
from ddim.errors import ConfigError, require
from ddim.images import image_grid, read_picture, to_images
from ddim.images.conditions import condition_of
from ddim.lora import State, add_lora, change, lora_state
from ddim.models.controlnet import WIDTHS, ControlNetModel
from ddim.pipelines import StableDiffusionPipeline
from ddim.pipelines.conditions import Condition
from ddim.training.settings import ControlNetSettings
from ddim.training.text_to_image import (
    GUIDANCE,
    SHOWN,
    Parts,
    Ready,
    TextToImage,
    pretrained_parts,
    read_source,
)

# What gets low-rank matrices with `rank`: the layers of the copy of the U-Net. The others are trained whole.
TARGETS = (
    "to_q to_k to_v to_out.0 proj_in proj_out ff.net.0.proj ff.net.2 conv1 conv2 conv_shortcut downsamplers.0.conv "
    "time_emb_proj"
).split()
EXAMPLE = "condition.png"
WHOLE = "controlnet_cond_embedding controlnet_down_blocks controlnet_mid_block conv_in".split()


class Conditioned(Dataset[dict[str, Any]]):
    """Items with what their picture is conditioned on: "condition" (3 h w) in [0, 1].

    Args:
        ready: items of captioned pictures.
        condition, cells: the condition that is made of a picture, see `condition_of`; None where the source has them.
    """

    def __init__(self, ready: Ready, condition: str | None, cells: int) -> None:
        self.ready, self.condition, self.cells = ready, condition, cells

    def __getitem__(self, place: int | Draw) -> dict[str, Any]:
        item = self.ready[place]
        item["condition"] = self._condition(place, item.get("image"))
        return item

    def _condition(self, place: int | Draw, picture: Tensor | None) -> Tensor:
        """The condition of an item, whose picture (3 h w) in [-1, 1] is given if it was read."""
        stream = self.ready.stream
        index, rng = stream.at(place)
        return self.of(index, stream.prepare.choose(rng), picture)  # the choice is a function of the place

    def of(self, index: int, choice: Choice, picture: Tensor | None = None) -> Tensor:
        """The condition (3 h w) in [0, 1] of an image, prepared as a choice says.

        Args:
            index: the image's number.
            choice: what chance has decided.
            picture: the image, prepared so, (3 h w) in [-1, 1]; it is read unless given.
        """
        stream = self.ready.stream
        if self.condition is None:
            assert stream.source.conditions is not None
            return stream.prepared(index, stream.source.conditions(index), choice) / 2 + 0.5
        picture = stream.image(index, choice) if picture is None else picture
        return condition_of(picture[None] / 2 + 0.5, self.condition, self.cells)[0]


class Trained(Savable):
    """What such a run saves: the ControlNet, in diffusers' layout, and a condition to try it with.

    Attributes:
        pipe: a pipeline with the ControlNet, for pictures.
        example: the condition.
    """

    def __init__(self, pipe: StableDiffusionPipeline, example: Image.Image) -> None:
        self.pipe, self.example = pipe, example

    def write(self, folder: Path, saving: Saving) -> None:
        self.pipe.controlnet.write(folder, saving)
        with atomic_write(folder / EXAMPLE) as unfinished:
            self.example.save(unfinished, "PNG")


class Control(TextToImage):
    """The loss of a U-Net that a ControlNet steers, of which the ControlNet is trained."""

    settings: ControlNetSettings

    def __init__(self, settings: ControlNetSettings, source: Source, parts: Parts) -> None:
        if parts.text_encoder_2 is not None:
            raise ConfigError("ControlNets are trained here for Stable Diffusion 1 and 2, not for XL")
        super().__init__(settings, source, parts, trains_text=False)
        self.frozen["unet"] = parts.unet
        self.frozen.requires_grad_(False)
        controlnet = self._controlnet()
        if settings.gradient_checkpointing:
            controlnet.enable_gradient_checkpointing()
        if settings.rank is not None:
            add_lora(controlnet, settings.rank, targets=TARGETS)
            for name in WHOLE:
                controlnet.get_submodule(name).requires_grad_(True)
        self.networks = nn.ModuleDict({"controlnet": controlnet})

    def _controlnet(self) -> ControlNetModel:
        settings = self.settings
        place = settings.controlnet_model_name_or_path
        if place is not None and place.endswith(".safetensors"):
            return ControlNetModel.from_single_file(place, like=self.unet.config, **settings.hub)
        if place is not None:
            return ControlNetModel.from_pretrained(place, **settings.hub)
        halvings = self.factor.bit_length() - 1
        widths = settings.conditioning_embedding_out_channels or (*WIDTHS, *[WIDTHS[-1]] * halvings)[: halvings + 1]
        if len(widths) != halvings + 1:
            raise ConfigError(
                f"conditioning_embedding_out_channels must be {halvings + 1} widths for this model, whose latents are "
                f"{self.factor} times smaller than pictures, not {len(widths)}"
            )
        return ControlNetModel.from_unet(self.unet, conditioning_embedding_out_channels=widths)

    @property
    def controlnet(self) -> ControlNetModel:
        return cast(ControlNetModel, self.networks["controlnet"])

    def dataset(self) -> Conditioned:  # type: ignore[override]
        return Conditioned(super().dataset(), self.settings.condition, self.settings.condition_cells)

    def denoiser(self, told: Condition, batch: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        text = told.embeds

        def predict(x: Tensor, t: Tensor) -> Tensor:
            down, middle = self.controlnet(x, t, text, batch["condition"], return_dict=False)
            added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            out: Tensor = self.unet(x, t, text, **added).sample
            return out

        return predict

    # --- what comes of it --------------------------------------------------------------------------------------------

    def finished(self, networks: nn.ModuleDict) -> Trained:
        controlnet = cast(ControlNetModel, networks["controlnet"])
        if self.settings.rank is not None:
            controlnet = self._merged(controlnet)
        parts: Any = self.frozen.whole([*self.frozen], controlnet.device, controlnet.dtype)
        pipe = StableDiffusionPipeline(tokenizer=self.tokenizer, scheduler=self.scheduler, **parts)
        pipe.controlnet = controlnet
        return Trained(pipe, self.shown_conditions(1)[0])

    def shown_conditions(self, most: int | None = None) -> list[Image.Image]:
        """The conditions of a preview, one for each of its texts: those of the settings, or of pictures of the data."""
        count = len(self.prompts()[:most])
        if self.settings.validation_images:
            given = [read_picture(path, path).convert("RGB") for path in self.settings.validation_images]
            times = self.settings.num_validation_images if len(given) > 1 else len(self.prompts())
            return [each for each in given for _ in range(times)][:count]
        conditioned, stride = self.dataset(), max(1, self.count // SHOWN)
        conditions = [conditioned.of(index, Choice()) for index in range(0, self.count, stride)[:count]]
        made: list[Image.Image] = to_images(torch.stack(conditions) * 2 - 1, "pil") if conditions else []
        return [made[k % len(made)] for k in range(count)]

    def preview(self, finished: Trained, most: int | None = None) -> Image.Image:
        """Each condition, with the picture that is drawn of it to its right."""
        finished.pipe.set_progress_bar_config(disable=True)
        prompts, conditions = self.prompts()[:most], self.shown_conditions(most)
        rescale = 0.7 if self.scheduler.config.rescale_betas_zero_snr else 0.0
        resolution = self.prepare_image.resolution
        images: list[Image.Image] = []
        for number, (prompt, condition) in enumerate(zip(prompts, conditions, strict=True)):
            drawn = finished.pipe(
                prompt,
                control_image=condition,
                height=resolution,
                width=resolution,
                seed=number,
                guidance_scale=GUIDANCE,
                guidance_rescale=rescale,
                num_inference_steps=self.settings.validation_inference_steps,
            )
            images += [condition.resize((resolution, resolution)), drawn.images[0]]
        captions = [text for prompt in prompts for text in ("", prompt)]
        return image_grid(images, columns=min(8, len(images)), captions=captions)

    def next_command(self, folder: str) -> list[str]:
        shown = ["--controlnet", folder, "--control-image", f"{folder}/{EXAMPLE}"]
        base = self.settings.pretrained_model_name_or_path
        return ["ddim", "sample", self.prompts()[0], "--model", base, *shown, "--out", f"{folder}/try.png"]

    def _merged(self, trained: ControlNetModel) -> ControlNetModel:
        """A ControlNet with low-rank matrices as one without, whose weights are the same in sum."""
        merged = self._controlnet().to(trained.device, trained.dtype).requires_grad_(False).eval()
        for name in WHOLE:
            merged.get_submodule(name).load_state_dict(trained.get_submodule(name).state_dict())
        matrices = {f"unet.{name}": tensor for name, tensor in lora_state(trained).items()}
        adapter = parse(matrices, {"unet": merged}, {}, "what was trained")["unet"]
        change([(merged, State({"trained": adapter}, {"trained": 1.0}))], for_good=True)
        return merged


def control(settings: ControlNetSettings) -> Control:
    """The objective of these settings.

    Raises:
        ConfigError, DataError: settings or data that cannot work together.
        MissingExtraError: peft, for a rank, is not installed.
    """
    if settings.rank is not None:
        require("peft", "train")
    source = read_source(
        settings,
        conditioning_image_column=settings.conditioning_image_column,
        conditioning_data_dir=settings.conditioning_data_dir,
    )
    return Control(settings, source, pretrained_parts(settings))
