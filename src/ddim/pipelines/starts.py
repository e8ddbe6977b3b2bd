"""Where a run of a latent model starts: from noise, from a picture, or from a picture of which a part is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ddim.errors import ConfigError
from ddim.models.vae import most_likely_latents
from ddim.noise import Generators, gaussian_noise, generators
from ddim.pipelines.crops import Crop
from ddim.pipelines.inputs import Pictures, check_sides, positive, to_mask, to_tensor
from ddim.pipelines.latents import LatentPipeline, pixels
from ddim.pipelines.outputs import LatentOutputType
from ddim.plan import SamplingPlan
from ddim.scheduler import DDIMScheduler


@dataclass(frozen=True)
class Origin:
    """What a call gives its run to start from: nothing but noise, unless there is a picture.

    Attributes:
        size: the height and the width of a call, in pixels or None.
        is_noised: the picture, or its latents, are as noisy as the first timestep wants them: another run made the
            steps before.
        takes_latents: latents may be given beside the picture, and then are what is started from.

    The others are the arguments of a call.
    """

    size: tuple[int | None, int | None]
    latents: Tensor | None
    image: Pictures | None
    strength: float
    mask_image: Pictures | None
    masked_image_latents: Tensor | None
    padding_mask_crop: int | None
    is_noised: bool = False
    takes_latents: bool = False

    def check(self, output_type: LatentOutputType) -> None:
        """Raise unless these go together, and with the kind of output.

        Raises:
            ValueError: one needs another, or two say where to start.
            TypeError: the latents are no tensor of four dimensions.
        """
        if self.mask_image is not None and self.image is None:
            raise ValueError("mask_image needs the image that it is a mask of")
        if self.padding_mask_crop is not None and (self.mask_image is None or output_type != "pil"):
            raise ValueError("padding_mask_crop needs a mask_image and output_type='pil'")
        if self.latents is not None and not (isinstance(self.latents, Tensor) and self.latents.ndim == 4):
            raise TypeError(f"latents must be a tensor (b channels height width), not {self.latents!r:.100}")
        is_both = self.image is not None and self.mask_image is None and self.latents is not None
        if is_both and not self.takes_latents:
            raise ValueError("give latents to start from, or an image, not both")
        if self.is_noised and self.image is None and self.latents is None:
            raise ValueError("denoising_start needs the image, or its latents, that another run left at this noise")


class Canvas(NamedTuple):
    """What a run paints on: the caller's picture and mask as tensors of the size that is drawn.

    Attributes:
        size: height and width of the latents.
        picture: where the run starts, (p c H W) in [-1, 1], or as latents (p z h w); None is a start from noise.
        mask: (m 1 H W) of zeros and ones. Where it is 1 the picture is painted anew; None paints all of it anew.
        crop: the region of a larger picture that this one is, if the caller gave a `padding_mask_crop`.
    """

    size: tuple[int, int]
    picture: Tensor | None = None
    mask: Tensor | None = None
    crop: Crop | None = None

    def put_back(self, images: Any) -> Any:
        """The painted images; those of a crop within the larger picture that it was cut from."""
        return images if self.crop is None else [self.crop.put_back(image) for image in images]


@dataclass(frozen=True)
class Task:
    """What a run is asked to draw, after all checks.

    Attributes:
        plan: the steps to make.
        prompts: b, the number of texts.
        shape: of the latents, (b·n z h w) for n images of each text.
        generator: what draws all noise.
        seeded: the generators were made of a seed, so each image has one of its own.
        canvas: the picture and the mask to start from.
        latents: x_T of this shape, instead of noise that the generator draws.
        masked_latents: latents (p z h w) of the picture without what the mask covers, instead of the encoded ones.
        strength: in [0, 1]. Under a mask, 1 starts from noise alone and less from the noised picture.
        is_noised: the picture has the noise of the plan's first timestep already.
    """

    plan: SamplingPlan
    prompts: int
    shape: tuple[int, ...]
    generator: Generators
    seeded: bool
    canvas: Canvas
    latents: Tensor | None
    masked_latents: Tensor | None
    strength: float
    is_noised: bool = False

    def is_latent(self, picture: Tensor) -> bool:
        """Whether a picture (p …) is given as latents."""
        return picture.shape[1] == self.shape[1]

    def spread(self, x: Tensor, name: str) -> Tensor:
        """One tensor for all images, one for each text or one for each image, as one for each image: (b·n …).

        Raises:
            ValueError: there are neither one nor b nor b·n; `name` says of what.
        """
        count = self.shape[0]
        if len(x) == count:
            return x
        if len(x) == 1:
            return x.expand(count, *x.shape[1:])
        if len(x) == self.prompts:
            return x.repeat_interleave(count // self.prompts, dim=0)
        raise ValueError(f"{len(x)} {name} do not fit {self.prompts} prompts and {count} images: give one, or as many")


@dataclass(frozen=True)
class Kept:
    """What is to stay of a picture: put back after each step where the mask is 0, noised for the step that comes next.

    Attributes:
        scheduler, plan: of the run.
        latents, noise: of the picture and of the run's start, (b z h w).
        mask: (b 1 h w), 1 where the picture is painted anew.
    """

    scheduler: DDIMScheduler
    plan: SamplingPlan
    latents: Tensor
    noise: Tensor
    mask: Tensor

    def __call__(self, x: Tensor, index: int) -> Tensor:
        """The result x of step `index`, with the picture in it."""
        kept = self.latents
        if index + 1 < len(self.plan):
            kept = self.scheduler.add_noise(self.latents, self.noise, self.plan.timesteps[index + 1])
        return (1 - self.mask) * kept + self.mask * x


class Start(NamedTuple):
    """What a run starts from.

    Attributes:
        x: the first x_t, (b z h w).
        channels: what the U-Net is given beside x, (b c h w).
        keep: puts back what is to stay of the picture.
    """

    x: Tensor
    channels: Tensor | None = None
    keep: Kept | None = None

    def shown(self, copies: int) -> dict[str, Tensor]:
        """The mask, (copies·b 1 h w), and what is left of the picture, as callbacks may see them; if there is a mask.

        Args:
            copies: how often the U-Net sees each sample: twice under guidance.
        """
        if self.channels is not None:
            mask, rest = self.channels[:, :1], self.channels[:, 1:]
            return {"mask": mask.repeat(copies, 1, 1, 1), "masked_image_latents": rest.repeat(copies, 1, 1, 1)}
        return {} if self.keep is None else {"mask": self.keep.mask.repeat(copies, 1, 1, 1)}

    def changed(self, given: Mapping[str, Any]) -> Start:
        """The same with another mask or other latents, by the names of `shown`; of copies the last ones count.

        Raises:
            ValueError: one is not of the shape of what it is to replace.
        """

        def other(name: str, own: Tensor) -> Tensor:
            value = given.get(name)
            if value is None:
                return own
            if not isinstance(value, Tensor) or len(value) < len(own) or value.shape[1:] != own.shape[1:]:
                what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"the callback's {name} must be a tensor of shape {tuple(own.shape)}, not {what}")
            return value[-len(own) :].to(own)

        if self.channels is not None:
            mask, rest = other("mask", self.channels[:, :1]), other("masked_image_latents", self.channels[:, 1:])
            return self._replace(channels=torch.cat([mask, rest], dim=1))
        return self if self.keep is None else self._replace(keep=replace(self.keep, mask=other("mask", self.keep.mask)))


class StartsFromPictures(LatentPipeline):
    """A pipeline on latents whose runs may start from pictures.

    Generators are drawn from in the order in which diffusers' pipelines draw from them, so that the same generator
    gives the same images here and there.
    """

    def task(
        self,
        origin: Origin,
        plan: SamplingPlan,
        prompts: int,
        images_per_prompt: int | None,
        generator: Generators,
        seed: int | Sequence[int] | None,
    ) -> Task:
        """Check what a call asks for, and bring what it starts from to tensors.

        Args:
            origin: after its own check.
            plan: the steps to make.
            prompts: how many texts there are.
            images_per_prompt, generator, seed: as in a call.

        Raises:
            ConfigError, ValueError, TypeError: sizes, pictures, generators or a U-Net that cannot work together.
        """
        canvas = self._canvas(origin)
        count = prompts * (1 if images_per_prompt is None else positive(images_per_prompt, "num_images_per_prompt"))
        shape = (count, self.vae.config.latent_channels, *canvas.size)
        sources = generators(generator, seed, count)
        check_channels(self.unet.config.in_channels, shape[1], canvas.mask is not None)
        return Task(
            plan=plan,
            prompts=prompts,
            shape=shape,
            generator=sources,
            seeded=seed is not None,
            canvas=canvas,
            latents=None if origin.latents is None else self._given_latents(origin.latents, shape),
            masked_latents=origin.masked_image_latents,
            strength=origin.strength,
            is_noised=origin.is_noised,
        )

    def _canvas(self, origin: Origin) -> Canvas:
        """The picture and the mask, resized to what is drawn.

        Raises:
            ValueError, TypeError: sizes that are no whole latents, or what is given is no picture or no mask.
        """
        factor, config = self.vae_scale_factor, self.vae.config
        size, image, mask_image = origin.size, origin.image, origin.mask_image
        check_sides(*size, factor)
        if image is None:
            height, width = pixels(*size, self.unet.config, origin.latents, factor)
            return Canvas((height // factor, width // factor))
        crop = None
        if mask_image is not None:  # a picture without a mask may keep its own size
            size = pixels(*size, self.unet.config, origin.latents, factor)
            if origin.padding_mask_crop is not None:
                crop = Crop(image, mask_image, size, origin.padding_mask_crop)
                image, mask_image = crop.picture, crop.mask
        picture = to_tensor(image, size, factor, config.in_channels, config.latent_channels)
        rows, columns = picture.shape[2:]
        if picture.shape[1] != config.latent_channels:
            rows, columns = rows // factor, columns // factor
        return Canvas((rows, columns), picture, to_mask(mask_image, (rows * factor, columns * factor)), crop)

    def start(self, task: Task) -> Start:
        """The start that fits what was given: noise or its latents, a picture, or a picture under a mask."""
        if task.canvas.picture is None:
            return Start(self._noise(task) if task.latents is None else task.latents)
        picture = task.canvas.picture.to(self.device)
        if task.canvas.mask is None:
            return self._from_picture(task, picture)
        return self._from_masked_picture(task, picture, task.canvas.mask.to(self.device))

    def _from_picture(self, task: Task, picture: Tensor) -> Start:
        """A picture (p c H W), or its latents, with the noise of the plan's first timestep."""
        if task.latents is not None:
            return Start(task.latents)
        latents = self._encode_pictures(task, picture, each_its_own=True)
        if task.is_noised:
            return Start(latents)
        return Start(self.scheduler.add_noise(latents, self._noise(task), task.plan.timesteps[0]))

    def _from_masked_picture(self, task: Task, picture: Tensor, mask: Tensor) -> Start:
        """A picture (p c H W), or its latents, to be painted anew where the mask (m 1 H W) is 1.

        A U-Net that was trained to inpaint is given the mask and the masked picture's latents as further channels. For
        another one, what the mask leaves is put back after each step, at that step's level of noise.
        """
        blends = self.unet.config.in_channels == task.shape[1]
        adds_noise = task.latents is None and task.strength < 1
        if blends or adds_noise or task.is_noised:
            latents = self._encode_pictures(task, picture, each_its_own=task.seeded)
        noise = self._noise(task) if task.latents is None else task.latents
        x = noise
        if task.is_noised and task.latents is None:
            x = latents
        elif adds_noise:
            x = self.scheduler.add_noise(latents, noise, task.plan.timesteps[0])
        small = task.spread(F.interpolate(mask, size=task.shape[2:]), "masks").to(noise)
        if blends:
            self._draw_in_vain(task, picture, mask)
            return Start(x, keep=Kept(self.scheduler, task.plan, latents, noise, small))
        masked = self._masked_latents(task, picture, mask).to(noise)
        return Start(x, channels=torch.cat([small, masked], dim=1))

    def _masked_latents(self, task: Task, picture: Tensor, mask: Tensor) -> Tensor:
        """The latents (b z h w) of the picture without what the mask covers: those that were given, or encoded ones.

        Raises:
            ValueError: the picture is given as latents, which cannot be masked; or the given ones do not fit.
        """
        if task.masked_latents is not None:
            masked = task.spread(task.masked_latents, "masked_image_latents")
        elif task.is_latent(picture):
            raise ValueError("this U-Net sees the masked picture: with latents as image, give masked_image_latents")
        else:
            masked = self._encode_pictures(task, picture * (mask < 0.5), each_its_own=task.seeded)
        if masked.shape[1:] != task.shape[1:]:
            raise ValueError(f"masked_image_latents have shape {tuple(masked.shape)}, needed is {task.shape}")
        return masked

    def _draw_in_vain(self, task: Task, picture: Tensor, mask: Tensor) -> None:
        """Draw the noise that diffusers' pipeline draws to encode the masked picture, which is of no use here.

        After it, generators that the caller gave give the same numbers as there. Those of a seed are our own, and need
        not.
        """
        draws = "latent_magnitude" not in self.vae.config  # AutoencoderTiny gives latents, and no distribution of them
        if draws and task.masked_latents is None and not (task.is_latent(picture) or task.seeded):
            pictures = max(len(picture), len(mask))
            generator = _first(task.generator, pictures)
            gaussian_noise((pictures, *task.shape[1:]), generator, self.device, self.vae.dtype)

    def _encode_pictures(self, task: Task, pictures: Tensor, each_its_own: bool) -> Tensor:
        """Latents (b z h w), as the U-Net knows them, drawn from what the autoencoder says of pictures (p c H W).

        Pictures that are latents already are left as they are.

        Args:
            each_its_own: with a list of generators, the copies of one picture are drawn from by a generator each.
        """
        if task.is_latent(pictures):
            latents = pictures.to(self.device, self.dtype)
        else:
            with self.in_use(self.vae) as own:
                vae = self.wide_enough(own, encodes=True)
                encoded = vae.encode(pictures.to(self.device, vae.dtype))
            latents = self.scaled(self._drawn(task, encoded, each_its_own))
        if latents.shape[2:] != task.shape[2:]:
            raise ValueError(f"image has latents of shape {tuple(latents.shape)}, needed is {task.shape}")
        return task.spread(latents, "pictures")

    def _drawn(self, task: Task, encoded: Any, each_its_own: bool) -> Tensor:
        """Latents (b z h w) of what the autoencoder says of pictures, as `_encode_pictures` draws them."""
        if not hasattr(encoded, "latent_dist"):
            return most_likely_latents(encoded)
        dist, generator = encoded.latent_dist, task.generator
        if isinstance(generator, Sequence):
            if each_its_own:
                dist = type(dist)(task.spread(dist.parameters, "pictures"))
            generator = _first(generator, len(dist.parameters))
        latents: Tensor = dist.sample(generator)
        return latents

    def _noise(self, task: Task) -> Tensor:
        return gaussian_noise(task.shape, task.generator, self.device, self.dtype)


def check_channels(channels: int, latents: int, masked: bool) -> None:
    """Raise a ConfigError unless the U-Net's `channels` are those of latents or, for a masked picture, also of a mask
    and the masked picture's latents.
    """
    if channels == latents or (masked and channels == 2 * latents + 1):
        return
    if channels == 2 * latents + 1:
        raise ConfigError("this U-Net is for inpainting: give image and mask_image")
    raise ConfigError(f"the U-Net takes {channels} channels, and the autoencoder's latents have {latents}")


def _first(generator: Generators, count: int) -> Generators:
    """Of a list of generators, the first ones."""
    return generator[:count] if isinstance(generator, Sequence) else generator
