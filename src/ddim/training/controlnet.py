"""Training a ControlNet (Zhang et al. 2023): a network that is shown a picture and steers a pipeline that is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import Dataset

from ddim.checkpoint import Savable, Saving, atomic_write
from ddim.checkpoint.lora_layout import parse
from ddim.data import Choice, Source
from ddim.data.buckets import nearest
from ddim.data.preparation import BACKGROUNDS, Size
from ddim.data.stream import Draw
from ddim.errors import ConfigError, require
from ddim.images import image_grid, read_picture, to_images
from ddim.images.conditions import condition_of
from ddim.images.flat import flatten
from ddim.images.reading import upright
from ddim.lora import State, add_lora, change, lora_state
from ddim.models import UNet2DConditionModel
from ddim.models.controlnet import WIDTHS, ControlNetModel
from ddim.pipelines.conditions import Condition
from ddim.pipelines.control import check_fits
from ddim.training.frozen import copied_as
from ddim.training.parts import Parts, half, pretrained_parts
from ddim.training.settings import ControlNetSettings, TrainSettings
from ddim.training.text_to_image import GUIDANCE, SHOWN, Ready, TextToImage, read_source

# What gets low-rank matrices with `rank`: the layers of the copy of the U-Net. The others are trained whole.
TARGETS = (
    "to_q to_k to_v to_out.0 proj_in proj_out ff.net.0.proj ff.net.2 conv1 conv2 conv_shortcut downsamplers.0.conv "
    "time_emb_proj"
).split()
EXAMPLE = "condition.png"
ALIKE = 1.1  # up to this ratio of two proportions a condition is taken for one of the whole picture that was rounded
LOOKED_AT = 32  # how many conditions' sizes are looked at before a run
WHOLE = "controlnet_cond_embedding controlnet_down_blocks controlnet_mid_block conv_in".split()


def are_alike(one: Size, other: Size) -> bool:
    """Whether two (width, height) have nearly the same proportions."""
    ratio = one[0] * other[1] / (one[1] * other[0])
    return max(ratio, 1 / ratio) <= ALIKE


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
            own, other = stream.source.condition_size(index), stream.source.size(index)
            over = other if are_alike(own, other) else own
            return stream.prepared(index, stream.source.conditions(index), choice, over) / 2 + 0.5
        picture = stream.image(index, choice) if picture is None else picture
        return condition_of(picture[None] / 2 + 0.5, self.condition, self.cells)[0]


class Trained(Savable):
    """What such a run saves: the ControlNet, in diffusers' layout, and a condition to try it with.

    Attributes:
        controlnet: the ControlNet.
        pipe: makes a pipeline with it, for pictures.
        example: the condition.
    """

    def __init__(self, controlnet: ControlNetModel, pipe: Callable[[], Any], example: Image.Image) -> None:
        self.controlnet, self.pipe, self.example = controlnet, pipe, example

    def write(self, folder: Path, saving: Saving) -> None:
        self.controlnet.write(folder, saving)
        with atomic_write(folder / EXAMPLE) as unfinished:
            self.example.save(unfinished, "PNG")


class Control(TextToImage):
    """The loss of a U-Net that a ControlNet steers, of which the ControlNet is trained."""

    settings: ControlNetSettings

    def __init__(self, settings: ControlNetSettings, source: Source, parts: Parts) -> None:
        super().__init__(settings, source, parts, trains_text=False)
        self.frozen["unet"] = parts.unet
        self.frozen.requires_grad_(False)
        # They are read now: one that cannot be is an error before the run, and what becomes of the files is no matter.
        self.given = [
            flatten(upright(read_picture(path, path)), "RGB", BACKGROUNDS["white"])
            for path in settings.validation_images
        ]
        controlnet = self._controlnet(parts.unet)
        if settings.gradient_checkpointing:
            controlnet.enable_gradient_checkpointing()
        if settings.rank is not None:
            add_lora(controlnet, settings.rank, targets=targets(controlnet))
            for name in WHOLE:
                controlnet.get_submodule(name).requires_grad_(True)
        self.networks = nn.ModuleDict({"controlnet": controlnet})
        # What is not trained needs no more digits than are computed with.
        for parameter in (*self.unet.parameters(), *controlnet.parameters()):
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(half(settings))

    def _controlnet(self, unet: UNet2DConditionModel) -> ControlNetModel:
        """The ControlNet as the run begins, for the U-Net as it was loaded."""
        settings = self.settings
        place = settings.controlnet_model_name_or_path
        halvings = self.factor.bit_length() - 1
        if place is None:
            widths = settings.conditioning_embedding_out_channels or (*WIDTHS, *[WIDTHS[-1]] * halvings)[: halvings + 1]
            if len(widths) != halvings + 1:
                raise ConfigError(
                    f"conditioning_embedding_out_channels must be {halvings + 1} widths for this model, whose latents "
                    f"are {self.factor} times smaller than pictures, not {len(widths)}"
                )
            return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
        if place.endswith(".safetensors"):
            controlnet = ControlNetModel.from_single_file(place, like=unet.config, **settings.hub)
        else:
            controlnet = ControlNetModel.from_pretrained(place, **settings.hub)
        try:
            check_fits(controlnet.config, unet.config)
        except ConfigError as error:
            raise ConfigError(f"controlnet_model_name_or_path={place}: {error}") from error
        if controlnet.shrinks_by != self.factor or controlnet.conditioning_channels != 3:
            raise ConfigError(
                f"controlnet_model_name_or_path={place} reads pictures of {controlnet.conditioning_channels} channels "
                f"that are {controlnet.shrinks_by} times as large as latents, and here they have 3 and are "
                f"{self.factor} times as large: leave it out, or give one that was made for this model"
            )
        return controlnet

    @property
    def controlnet(self) -> ControlNetModel:
        return cast(ControlNetModel, self.networks["controlnet"])

    def introduction(self, settings: TrainSettings, steps: int, per_step: int) -> list[str]:
        """As of all runs; and which conditions do not lie over their pictures."""
        return [*super().introduction(settings, steps, per_step), *self._of_other_shapes()]

    def _of_other_shapes(self) -> list[str]:
        """What is to be said of conditions of other proportions than their pictures."""
        if self.settings.condition is not None:
            return []
        looked = range(0, self.count, max(1, self.count // LOOKED_AT))[:LOOKED_AT]
        pairs = [(self.source.condition_size(index), self.source.size(index)) for index in looked]
        other = [pair for pair in pairs if not are_alike(*pair)]
        if not other:
            return []
        (wide, high), (width, height) = other[0]
        return [
            f"{len(other)} of {len(pairs)} conditions that were looked at have other proportions than their pictures, "
            f"such as {wide}x{high} for {width}x{height}: each is cropped by itself, and does not lie over its picture"
        ]

    def dataset(self) -> Conditioned:  # type: ignore[override]
        return Conditioned(super().dataset(), self.settings.condition, self.settings.condition_cells)

    def denoiser(self, told: Condition, batch: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        text, given = told.embeds, {"added_cond_kwargs": told.added or None}

        def predict(x: Tensor, t: Tensor) -> Tensor:
            down, middle = self.controlnet(x, t, text, batch["condition"], return_dict=False, **given)
            added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            out: Tensor = self.unet(x, t, text, **given, **added).sample
            return out

        return predict

    # --- what comes of it --------------------------------------------------------------------------------------------

    def finished(self, networks: nn.ModuleDict) -> Trained:
        controlnet = cast(ControlNetModel, networks["controlnet"])
        if self.settings.rank is not None:
            controlnet = self._merged(controlnet)
        finished = nn.ModuleDict({"controlnet": controlnet})
        return Trained(controlnet, lambda: self.pipeline(finished), self.shown_conditions(1)[0])

    def pipeline(self, networks: nn.ModuleDict) -> Any:
        """A pipeline with the ControlNet among these networks, in the type of number that the U-Net is kept in."""
        unet = self.unet
        names = [name for name in self.frozen if name != "unet"]
        others = self.frozen.whole(names, unet.device, unet.dtype)
        pipe = self.parts.pipeline({**others, "unet": copied_as(unet, unet.dtype)})
        pipe.controlnet = copied_as(networks["controlnet"], unet.dtype).eval()
        return pipe

    def prompts(self) -> list[str]:
        """As of text to image; one of the settings is for each of their conditions."""
        texts, conditions = self.settings.validation_prompts, self.settings.validation_images
        if len(texts) == 1 and len(conditions) > 1:
            return [texts[0]] * (len(conditions) * self.settings.num_validation_images)
        return super().prompts()

    def shown_conditions(self, most: int | None = None) -> list[Image.Image]:
        """The conditions of a preview, one for each of its texts: those of the settings, or of pictures of the data."""
        count = len(self.prompts()[:most])
        if self.given:
            times = self.settings.num_validation_images if len(self.given) > 1 else len(self.prompts())
            return [self._fitted(each) for each in self.given for _ in range(times)][:count]
        conditioned, stride = self.dataset(), max(1, self.count // SHOWN)
        conditions = [conditioned.of(index, Choice()) for index in range(0, self.count, stride)[:count]]
        made: list[Image.Image] = [to_images(each[None] * 2 - 1, "pil")[0] for each in conditions]
        return [made[k % len(made)] for k in range(count)]

    def _fitted(self, condition: Image.Image) -> Image.Image:
        """A condition that is a file, in the size of what a preview draws of it."""
        side = self.prepare_image.resolution
        sizes = [(side, side)] if self.buckets is None else self.buckets.sizes
        return condition.resize(sizes[nearest(condition.size, sizes)], Image.Resampling.LANCZOS)

    def preview(self, finished: Trained, most: int | None = None) -> Image.Image:
        """Each condition, with the picture that is drawn of it to its right."""
        pipe = finished.pipe()
        pipe.set_progress_bar_config(disable=True)
        prompts, conditions = self.prompts()[:most], self.shown_conditions(most)
        rescale = 0.7 if self.scheduler.config.rescale_betas_zero_snr else 0.0
        cell = max(each.width for each in conditions), max(each.height for each in conditions)
        images: list[Image.Image] = []
        for number, (prompt, condition) in enumerate(zip(prompts, conditions, strict=True)):
            drawn = pipe(
                prompt,
                control_image=condition,
                height=condition.height,
                width=condition.width,
                seed=number,
                guidance_scale=GUIDANCE,
                guidance_rescale=rescale,
                num_inference_steps=self.settings.validation_inference_steps,
            )
            images += [ImageOps.pad(each, cell, color="white") for each in (condition, drawn.images[0])]
        captions = [text for prompt in prompts for text in ("", prompt)]
        return image_grid(images, columns=min(8, len(images)), captions=captions)

    def next_command(self, folder: str) -> list[str]:
        shown = ["--controlnet", folder, "--control-image", f"{folder}/{EXAMPLE}"]
        base = self.settings.pretrained_model_name_or_path
        return ["ddim", "sample", self.prompts()[0], "--model", base, *shown, "--out", f"{folder}/try.png"]

    def _merged(self, trained: ControlNetModel) -> ControlNetModel:
        """A ControlNet with low-rank matrices as one without, whose weights are the same in sum."""
        unet = self.unet
        if unet.dtype != torch.float32 and self.parts.reload is not None:
            unet = cast(UNet2DConditionModel, self.parts.reload(["unet"])["unet"])
        merged = self._controlnet(unet).to(trained.device, trained.dtype).requires_grad_(False).eval()
        for name in WHOLE:
            merged.get_submodule(name).load_state_dict(trained.get_submodule(name).state_dict())
        matrices = {f"unet.{name}": tensor for name, tensor in lora_state(trained).items()}
        adapter = parse(matrices, {"unet": merged}, {}, "what was trained")["unet"]
        change([(merged, State({"trained": adapter}, {"trained": 1.0}))], for_good=True)
        return merged


def targets(controlnet: ControlNetModel) -> list[str]:
    """Which of `TARGETS` a ControlNet has."""
    names = [f".{name}" for name, _ in controlnet.named_modules()]
    return [target for target in TARGETS if any(name.endswith(f".{target}") for name in names)]


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
