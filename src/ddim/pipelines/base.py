"""DiffusionPipeline: read model_index.json, pick the class, load its parts."""

from __future__ import annotations

import importlib
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ddim.backends import accelerate, describe
from ddim.checkpoint import Repository, Savable, choose_dtype, read_json, write_json
from ddim.checkpoint.config import DIFFUSERS_VERSION
from ddim.errors import CheckpointError
from ddim.noise import Generators, gaussian_noise, generators
from ddim.pipelines.info import ModelInfo, model_info
from ddim.pipelines.inputs import Pictures
from ddim.sampling import Denoiser, Pipeline
from ddim.scheduler import DDIMInverseScheduler, DDIMScheduler

INDEX = "model_index.json"

# The classes that a model_index.json may name, each with the module that has it, and with ":" and the name of our class
# where that is another one. Schedulers are not listed, as every one becomes a DDIMScheduler.
PIPELINES = {
    "DDIMPipeline": "ddim.pipelines.pixels",
    "DDPMPipeline": "ddim.pipelines.pixels:DDIMPipeline",
    "StableDiffusionPipeline": "ddim.pipelines.text_to_image",
    "StableDiffusionImg2ImgPipeline": "ddim.pipelines.image_to_image",
    "StableDiffusionInpaintPipeline": "ddim.pipelines.image_to_image",
}
NETWORKS = {
    "AutoencoderKL": "ddim.models",
    "CLIPTextModel": "ddim.models",
    "CLIPTokenizer": "ddim.models.tokenizer",
    "CLIPTokenizerFast": "ddim.models.tokenizer:CLIPTokenizer",
    "UNet2DConditionModel": "ddim.models",
    "UNet2DModel": "ddim.models",
}
# The libraries that an index may say its classes are of. None is imported: the classes are this package's own.
LIBRARIES = ("diffusers", "transformers")
# The classes that are written into an index as transformers'; the others are diffusers'.
OF_TRANSFORMERS = ("CLIPTextModel", "CLIPTokenizer")
# Options that diffusers' users pass. They are taken and change nothing: what they ask for is done in any case.
WITHOUT_EFFECT = ("low_cpu_mem_usage", "use_safetensors")


class DiffusionPipeline(Savable):
    """Networks and a scheduler that together make images; this class loads any of its subclasses."""

    # The names of the parts in the constructor's order; the classes that an index may name for each; and the parts that
    # a pipeline may be without.
    parts: ClassVar[tuple[str, ...]] = ()
    classes: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    nullable: ClassVar[tuple[str, ...]] = ()
    # Entries that diffusers' index and constructor have for what this package does not do, with the only values that
    # they may have here.
    left_out: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, **components: Any) -> None:
        self.components: dict[str, Any] = {}
        self._progress: dict[str, Any] = {}
        for name, component in components.items():
            setattr(self, name, component)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "scheduler":
            value = as_ddim(value)
        if name in self.parts:
            self.components[name] = value
        super().__setattr__(name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make images; see the subclass."""
        raise NotImplementedError(f"{type(self).__name__} makes no images: use DiffusionPipeline.from_pretrained")

    # --- what a run is made of: see `sampling.Pipeline` --------------------------------------------------------------

    scheduler: DDIMScheduler

    @property
    def draws_texts(self) -> bool:
        """Whether it draws what a text says, rather than classes or nothing in particular."""
        raise NotImplementedError

    @property
    def class_count(self) -> int | None:
        """How many classes can be asked for; None where the model knows none."""
        return None

    def denoiser(self, *args: Any, **conditions: Any) -> Denoiser:
        """`denoiser(plan, count, …)`: the network as `sample` wants it, (x, timestep) -> prediction.

        The network will be asked at the plan's timesteps, about `count` samples at a time, under the conditions that
        the subclass names.
        """
        raise NotImplementedError

    def picture_shape(self) -> tuple[int, int, int]:
        """What is drawn: (channels, height, width) in pixels."""
        raise NotImplementedError

    def sample_shape(self, count: int) -> tuple[int, ...]:
        """The shape of `count` samples in model space, (count c h w)."""
        raise NotImplementedError

    def encode(self, pictures: Pictures) -> Tensor:
        """Pictures as the clean samples (b c h w) that they are in model space; the same every time.

        Args:
            pictures: see `inputs.to_tensor`; resized to what the model draws.
        """
        raise NotImplementedError

    def decode(self, x: Tensor, output_type: str = "pil") -> Any:
        """What `encode` undoes: clean samples (b c h w) as pictures; see `images.to_images`."""
        raise NotImplementedError

    # --- loading and saving ------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a pipeline from a folder in diffusers' layout, a bundled model or a repository of the hub.

        Args:
            pretrained_model_name_or_path: for example "./my-model", "digits" or "google/ddpm-cifar10-32".
            dtype: the networks' type, float32 unless told; `torch_dtype` is its older name.
            variant: "fp16" reads the `.fp16.safetensors` files.
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub; a part by its
                name (`unet=…`, `scheduler=…`) is used instead of the stored one. `use_safetensors` and
                `low_cpu_mem_usage` are without effect: safetensors come first, and are mapped into memory.

        Raises:
            CheckpointError: a file is missing, broken, or names a class that this package does not have.
            WeightsError: weights do not fit their config.
        """
        dtype = choose_dtype(dtype, torch_dtype)
        repository = Repository.open(pretrained_model_name_or_path, options)
        path = repository.find(INDEX)
        if path is None:
            raise CheckpointError(f"{repository.name} has no {INDEX}: it is no pipeline")
        index = read_json(path)
        pipeline = _look_up(index.get("_class_name"), PIPELINES, "pipeline", path)
        if cls.classes and cls.classes is pipeline.classes:  # inherited: another use of the same networks
            pipeline = cls
        if not issubclass(pipeline, cls):
            raise CheckpointError(f"{path} is a {pipeline.__name__}, not a {cls.__name__}: use DiffusionPipeline")
        options = {name: value for name, value in options.items() if name not in WITHOUT_EFFECT}
        unknown = sorted(set(options) - {*pipeline.parts, *pipeline.left_out})
        if unknown:
            raise TypeError(
                f"{pipeline.__name__}.from_pretrained has no argument {', '.join(unknown)}; "
                f"its parts are {', '.join(pipeline.parts)}"
            )
        components = dict(options)
        for name in pipeline.parts:
            if name in options:
                continue
            if name in pipeline.nullable and index.get(name, [None]) in (None, [None], [None, None]):
                components[name] = None
            elif name == "scheduler":
                _check_entry(index, name, path)
                components[name] = _load_scheduler(repository)
            else:
                known = {kind: NETWORKS[kind] for kind in pipeline.classes.get(name, NETWORKS)}
                part = _look_up(_check_entry(index, name, path), known, name, path)
                components[name] = part.load(
                    repository, _subfolder(repository, name, part.config_name), dtype=dtype, variant=variant
                )
        return cast(Self, pipeline(**components))

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **parts: Any) -> Self:
        """Another use of the same networks, which are shared: `StableDiffusionImg2ImgPipeline.from_pipe(pipe)`.

        Args:
            pipeline: whose parts to take.
            parts: others instead, by their names.

        Raises:
            TypeError: the parts are not this pipeline's.
        """
        if set(pipeline.parts) != set(cls.parts):
            raise TypeError(f"the parts of a {type(pipeline).__name__} make no {cls.__name__}")
        return cls(**{**pipeline.components, **parts})

    def write(self, folder: Path, variant: str | None) -> None:
        """Write what `from_pretrained` reads, here and in diffusers; the index last."""
        index: dict[str, Any] = {"_class_name": type(self).__name__, "_diffusers_version": DIFFUSERS_VERSION}
        index |= self.left_out
        for name, component in self.components.items():
            if component is None:
                index[name] = [None, None]
                continue
            component = getattr(component, "_orig_mod", component)  # what torch.compile has wrapped
            component.save_pretrained(folder / name, variant=variant)
            kind = type(component).__name__
            index[name] = ["transformers" if kind in OF_TRANSFORMERS else "diffusers", kind]
        write_json(folder / INDEX, index)

    # --- where it runs -----------------------------------------------------------------------------------------------

    @property
    def _networks(self) -> list[nn.Module]:
        return [component for component in self.components.values() if isinstance(component, nn.Module)]

    @property
    def device(self) -> torch.device:
        """The device that the networks are on."""
        return next(self._networks[0].parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the networks' parameters."""
        return next(self._networks[0].parameters()).dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or convert the networks, as `torch.nn.Module.to`."""
        for network in self._networks:
            network.to(*args, **kwargs)
        return self

    def accelerate(self, backend: str = "auto", dtype: torch.dtype | None = None) -> Self:
        """Have the networks run by a backend from now on; see `ddim.backends`.

        Args:
            backend: "openvino" (on CPUs), "compile", "eager", or "auto" for what suits the device.
            dtype: to compute in. None is the backend's choice: OpenVINO's is bfloat16 where the processor has it.

        Returns:
            This pipeline, whose `backend` says what was picked and, after a run, in what it computes.

        Raises:
            ConfigError: no such backend, or a type that is not for it.

        Warns:
            UserWarning: its library is not installed, or later, it cannot run a network: PyTorch runs instead.
        """
        accelerate(self._networks, backend, dtype)
        return self

    @property
    def backend(self) -> str:
        """What runs the networks, in words: "eager" unless `accelerate` said otherwise."""
        return " | ".join(dict.fromkeys(describe(network) for network in self._networks))

    def info(self) -> ModelInfo:
        """What the pipeline is made of: its parts, their sizes, types and settings. A notebook shows it as a table."""
        return model_info(self)

    # --- running -----------------------------------------------------------------------------------------------------

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Arguments for tqdm; `disable=True` turns the bar off."""
        self._progress = kwargs

    def progress_bar(self, total: int) -> tqdm[Any]:
        """A bar of so many steps, as `set_progress_bar_config` wants it."""
        return tqdm(total=total, **self._progress)

    def _initial_noise(
        self, shape: tuple[int, ...], generator: Generators, seed: int | Sequence[int] | None, latents: Tensor | None
    ) -> tuple[Tensor, Generators]:
        """x_T, given or drawn, and the generators that draw the noise of the steps."""
        generator = generators(generator, seed, shape[0])
        if latents is None:
            return gaussian_noise(shape, generator, self.device, self.dtype), generator
        return self._given_latents(latents, shape), generator

    def _given_latents(self, latents: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The caller's x_T, where and as the networks are; a ValueError unless it is of this shape."""
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}, needed is {shape}")
        return latents.to(self.device, self.dtype)


if TYPE_CHECKING:  # so that mypy holds pipelines to what the rest of the package needs of one
    _NEEDED: type[Pipeline] = DiffusionPipeline


def same_shape(given: Any, x: Tensor) -> Tensor:
    """The latents that a callback returned, in the place of `x`; an error unless they are of its shape."""
    if not isinstance(given, Tensor) or given.shape != x.shape:
        what = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"the callback's latents must be a tensor of shape {tuple(x.shape)}, not {what}")
    return given.to(x)


def as_ddim(scheduler: Any) -> DDIMScheduler:
    """A DDIMScheduler with the settings of any scheduler that has a config.

    Raises:
        TypeError: it has none, or it is a scheduler that makes noise of images.
    """
    if isinstance(scheduler, DDIMScheduler):
        return scheduler
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise TypeError(f"a scheduler is needed, such as DDIMScheduler(), not {type(scheduler).__name__}")
    if isinstance(scheduler, DDIMInverseScheduler):
        raise TypeError(
            "a pipeline makes images of noise; to make noise of images, run "
            "ddim.sample(denoiser, images, inverse_scheduler.plan(steps))"
        )
    return DDIMScheduler.from_config(config)


# --- reading model_index.json ----------------------------------------------------------------------------------------


def _look_up(name: Any, table: Mapping[str, str], what: str, index: Path) -> Any:
    if not isinstance(name, str) or name not in table:
        raise CheckpointError(f"{index} names the {what} {reprlib.repr(name)}; known are {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def _check_entry(index: Mapping[str, Any], name: str, path: Path) -> str:
    """The class that the index gives for a part: ["diffusers", "UNet2DModel"]."""
    entry = index.get(name)
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(word, str) for word in entry):
        raise CheckpointError(f"{path} does not say what its {name} is, but {reprlib.repr(entry)}: give {name}=…")
    library, class_name = entry
    if library not in LIBRARIES:
        raise CheckpointError(
            f"{path} takes its {name} from {reprlib.repr(library)}: code of other places than "
            f"{' and '.join(LIBRARIES)} is never run; give {name}=…"
        )
    return str(class_name)


def _subfolder(repository: Repository, name: str, config_name: str) -> str | None:
    """Where a part is: in a folder of its name or, as in the first published checkpoints, beside the index."""
    if repository.find(config_name, name) is None and repository.find(config_name) is not None:
        return None
    return name


def _load_scheduler(repository: Repository) -> DDIMScheduler:
    subfolder = _subfolder(repository, "scheduler", DDIMScheduler.config_name)
    config, path = DDIMScheduler.read_config(repository, subfolder)
    named = config.get("_class_name", "DDIMScheduler")
    if named != "DDIMScheduler" and not {"beta_start", "beta_schedule", "trained_betas"} & set(config):
        raise CheckpointError(f"{path} describes a {reprlib.repr(named)}, which has no betas that DDIM could use")
    return cast(DDIMScheduler, DDIMScheduler.construct(config, path))
