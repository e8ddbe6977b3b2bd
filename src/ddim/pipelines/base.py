"""DiffusionPipeline: read model_index.json, pick the class, load its parts."""

from __future__ import annotations

import importlib
import inspect
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast, overload

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ddim.backends import BackendName, accelerate, describe
from ddim.checkpoint import Repository, Savable, Saving, choose_dtype, read_json, write_json
from ddim.checkpoint.config import DIFFUSERS_VERSION
from ddim.checkpoint.known import INDEX, find_index
from ddim.checkpoint.pretrained import DeviceMap, PretrainedModel, chosen_device
from ddim.errors import CheckpointError, ConfigError
from ddim.images import OutputType
from ddim.noise import Generators, gaussian_noise, generators
from ddim.pipelines.familiar import Familiar
from ddim.pipelines.info import ModelInfo, model_info, summary
from ddim.pipelines.inputs import Pictures
from ddim.pipelines.memory import SavesMemory
from ddim.pipelines.outputs import Array, Drawn, ImagePipelineOutput, PlainOutput
from ddim.sampling import Denoiser, Pipeline
from ddim.scheduler import DDIMInverseScheduler, DDIMScheduler

Type = torch.dtype | str  # the parameters' type; "auto" is the one that they are stored in

# The classes that a model_index.json may name, each with the module that has it, and with ":" and the name of our class
# where that is another one. Schedulers are not listed, as every one becomes a DDIMScheduler.
PIPELINES = {
    "DDIMPipeline": "ddim.pipelines.pixels",
    "DDPMPipeline": "ddim.pipelines.pixels:DDIMPipeline",
    "StableDiffusionPipeline": "ddim.pipelines.text_to_image",
    "StableDiffusionControlNetImg2ImgPipeline": "ddim.pipelines.controlled",
    "StableDiffusionControlNetInpaintPipeline": "ddim.pipelines.controlled",
    "StableDiffusionControlNetPipeline": "ddim.pipelines.controlled",
    "StableDiffusionImg2ImgPipeline": "ddim.pipelines.image_to_image",
    "StableDiffusionInpaintPipeline": "ddim.pipelines.image_to_image",
    "StableDiffusionXLControlNetImg2ImgPipeline": "ddim.pipelines.xl_controlled",
    "StableDiffusionXLControlNetInpaintPipeline": "ddim.pipelines.xl_controlled",
    "StableDiffusionXLControlNetPipeline": "ddim.pipelines.xl_controlled",
    "StableDiffusionXLPipeline": "ddim.pipelines.xl",
    "StableDiffusionXLImg2ImgPipeline": "ddim.pipelines.xl_image_to_image",
    "StableDiffusionXLInpaintPipeline": "ddim.pipelines.xl_image_to_image",
}
NETWORKS = {
    "AutoencoderKL": "ddim.models",
    "AutoencoderTiny": "ddim.models",
    "CLIPTextModel": "ddim.models",
    "CLIPTextModelWithProjection": "ddim.models",
    "CLIPTokenizer": "ddim.models.tokenizer",
    "CLIPTokenizerFast": "ddim.models.tokenizer:CLIPTokenizer",
    "ControlNetModel": "ddim.models",
    "MultiControlNetModel": "ddim.models",
    "UNet2DConditionModel": "ddim.models",
    "UNet2DModel": "ddim.models",
}
# The libraries that an index may say its classes are of. None is imported: the classes are this package's own.
LIBRARIES = ("diffusers", "transformers")
# The classes that are written into an index as transformers'; the others are diffusers'.
OF_TRANSFORMERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPTokenizer")
# Options that diffusers' users pass. They are taken and change nothing: what they ask for is done in any case.
WITHOUT_EFFECT = (
    "disable_mmap",
    "load_connected_pipeline",
    "low_cpu_mem_usage",
    "max_memory",
    "mirror",
    "offload_folder",
    "offload_state_dict",
    "resume_download",
    "use_safetensors",
)
# Options of diffusers' from_pretrained that ask for what is not done here; None and False ask for nothing.
REFUSED = {
    "custom_pipeline": "code of other places is never run: write a class with your loop, or use ddim.sample",
    "dduf_file": "give the folder that the file was made of",
    "from_flax": "convert the weights to safetensors first",
    "output_loading_info": "weights that are missing or unexpected raise a WeightsError that lists them",
    "provider": "see pipe.accelerate for what can run the networks",
    "proxies": "set the environment variables HTTP_PROXY and HTTPS_PROXY",
    "quantization_config": "weights are not quantised: give dtype=torch.float16 or torch.bfloat16",
    "trust_remote_code": "code of other places is never run",
    "use_flashpack": "weights are .safetensors files",
    "use_onnx": "see pipe.accelerate for what can run the networks",
}


class DiffusionPipeline(Familiar, SavesMemory, Savable):
    """Networks and a scheduler that together make images; this class loads any of its subclasses."""

    # The names of the parts in the constructor's order; the classes that an index may name for each; and the parts that
    # a pipeline may be without.
    parts: ClassVar[tuple[str, ...]] = ()
    classes: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    nullable: ClassVar[tuple[str, ...]] = ()
    # Of these, those that an index must name all the same, though it may say null.
    stated: ClassVar[tuple[str, ...]] = ()
    # Entries of the index that are yes or no, with what they are unless it says so: they go to the constructor, and are
    # attributes of the pipeline.
    settings: ClassVar[Mapping[str, bool]] = {}
    # Of these, those that are not saved, as diffusers' class of this name has none such.
    unsaved: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[tuple[str, ...]] = ()  # that it may be given as well, and neither its index nor its constructor has
    # Entries that diffusers' index and constructor have for what this package does not load, with the values that they
    # are saved with.
    left_out: ClassVar[Mapping[str, Any]] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        pipe = super().__new__(cls)
        object.__setattr__(pipe, "components", {})  # here, as a subclass may assign parts before it calls __init__
        object.__setattr__(pipe, "_progress", {})
        return pipe

    def __init__(self, **components: Any) -> None:
        for name, component in components.items():
            if name == "scheduler" and component is None:  # a pipeline that only encodes texts, say, needs none
                self.components[name] = None
                object.__setattr__(self, name, None)
            else:
                setattr(self, name, component)

    def __init_subclass__(cls, **options: Any) -> None:
        """A class that says nothing of its parts, as none of diffusers does, has what its constructor takes."""
        super().__init_subclass__(**options)
        if not cls.parts and "__init__" in vars(cls):
            named = list(inspect.signature(cls.__init__).parameters.values())[1:]
            cls.parts = tuple(each.name for each in named if each.kind is each.POSITIONAL_OR_KEYWORD)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "scheduler":
            value = as_ddim(value)
        if name in self.parts or name in self.components:
            self.components[name] = value
        super().__setattr__(name, value)

    @overload
    def __call__(self, *args: Any, return_dict: Literal[False], **options: Any) -> PlainOutput: ...
    @overload
    def __call__(self, *args: Any, output_type: Literal["np"], **options: Any) -> ImagePipelineOutput[Array]: ...
    @overload
    def __call__(
        self, *args: Any, output_type: Literal["pt", "latent"], **options: Any
    ) -> ImagePipelineOutput[Tensor]: ...
    @overload
    def __call__(self, *args: Any, **options: Any) -> ImagePipelineOutput[Drawn]: ...
    def __call__(self, *args: Any, **options: Any) -> ImagePipelineOutput[Any] | PlainOutput:
        """Make images; see the subclass."""
        raise NotImplementedError(f"{type(self).__name__} makes no images: use DiffusionPipeline.from_pretrained")

    def __repr__(self) -> str:
        """A few lines: where it is from and where it runs, and its parts. `info` says all there is to know."""
        return summary(self)

    # --- what a run is made of: see `sampling.Pipeline` --------------------------------------------------------------

    scheduler: DDIMScheduler
    loaded_from: Repository | None = None  # None if it was not loaded as a whole

    @property
    def draws_texts(self) -> bool:
        """Whether it draws what a text says, rather than classes or nothing in particular."""
        raise NotImplementedError

    @property
    def is_xl(self) -> bool:
        """Whether it is Stable Diffusion XL, which is told more of a picture than a text."""
        return False

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

    def decode(self, x: Tensor, output_type: OutputType = "pil") -> Any:
        """What `encode` undoes: clean samples (b c h w) as pictures; see `images.to_images`."""
        raise NotImplementedError

    # --- loading and saving ------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        torch_dtype: Type | Mapping[str, Type] | None = None,
        dtype: Type | Mapping[str, Type] | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        device_map: DeviceMap = None,
        **options: Any,
    ) -> Self:
        """Load a pipeline from a folder in diffusers' layout, a bundled model or a repository of the hub.

        The class that it is called on wins over the one that the index names, if the parts are the same;
        `DiffusionPipeline` itself takes the index's.

        Args:
            pretrained_model_name_or_path: for example "./my-model", "digits" or "google/ddpm-cifar10-32".
            dtype: the networks' type, float32 unless told; "auto" for those that are stored; or a dict with one for
                each part, and one for the others under "default". `torch_dtype` is its older name.
            variant: "fp16" reads the `.fp16.safetensors` files; so does None, with a warning, where there are no plain
                ones.
            use_safetensors: True reads `.safetensors` alone, False `.bin` alone; otherwise the first if there is one.
            device_map: a device, such as "cuda", that all networks go to. "auto", "balanced" and the like put them on
                the first GPU if there is one, as they are not divided here.
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub; a part by its
                name (`unet=…`, `scheduler=…`) is used instead of the stored one, and other arguments of the class are
                passed on (`add_watermarker=False`). Those in `WITHOUT_EFFECT` are without effect.

        Raises:
            CheckpointError: a file is missing, broken, or names a class that this package does not have.
            WeightsError: weights do not fit their config.
            TypeError, ValueError: an option is unknown, or asks for what is not done here.
        """
        types = _types(dtype, torch_dtype)
        device = chosen_device(device_map)
        options = _options(options)
        repository = Repository.open(pretrained_model_name_or_path, options)
        path = find_index(repository)
        index = read_json(path)
        pipeline = cls._choose(index, path)
        taken = {*pipeline.parts, *pipeline.left_out, *pipeline.settings, *pipeline.extra, *_named(pipeline)}
        unknown = sorted(set(options) - taken)
        if unknown:
            raise TypeError(
                f"{pipeline.__name__}.from_pretrained has no argument {', '.join(unknown)}; "
                f"its parts are {', '.join(pipeline.parts)}"
            )
        extra = {name: options.pop(name) for name in pipeline.extra if name in options and name not in pipeline.parts}
        components = {**_settings(pipeline, index, path), **options}
        named = [name for name in pipeline.extra if index.get(name, [None]) not in (None, [None], [None, None])]
        for name in dict.fromkeys((*pipeline.parts, *named)):
            if name in options or name in extra:
                continue
            is_named = name in index or name not in pipeline.stated
            if is_named and name in pipeline.nullable and index.get(name) in (None, [None], [None, None]):
                components[name] = None
            elif name == "scheduler":
                _check_entry(index, name, path)
                components[name] = _load_scheduler(repository)
            else:
                known = {kind: NETWORKS[kind] for kind in pipeline.classes.get(name, NETWORKS)}
                part = _look_up(_check_entry(index, name, path), known, name, path)
                how = {"use_safetensors": use_safetensors} if issubclass(part, PretrainedModel) else {}
                subfolder = _subfolder(repository, name, part.config_name)
                components[name] = part.load(repository, subfolder, dtype=types(name), variant=variant, **how)
        extra |= {name: components.pop(name) for name in named if name not in pipeline.parts and name in components}
        made = cast(Self, pipeline(**components))
        for name, part in extra.items():
            setattr(made, name, part)
        made.name_or_path, made.loaded_from = repository.name, repository
        return made if device is None else made.to(device)

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """Load a checkpoint that is one `.safetensors` file in the original layout, of whichever family it is.

        Args:
            pretrained_model_link_or_path: the file, or its address at huggingface.co.
            options: as of the subclasses that have this method, such as `StableDiffusionPipeline`.

        Raises:
            CheckpointError: no such file, or not this format.
            TypeError: it is called on a class whose models are no such files.
        """
        from ddim.checkpoint.located import locate
        from ddim.pipelines.single_file import class_of

        if cls.parts:
            raise TypeError(f"no {cls.__name__} was published as a single file: use DiffusionPipeline.from_single_file")
        hub = ("revision", "token", "cache_dir", "local_files_only", "force_download")
        file = locate(pretrained_model_link_or_path, {key: options[key] for key in hub if key in options})
        return cast(Self, _class(class_of(file)).from_single_file(file, **options))

    @classmethod
    def _choose(cls, index: Mapping[str, Any], path: Path) -> type[DiffusionPipeline]:
        """The class to load an index as: this one, if it has the index's parts, or for the base class the index's own.

        Raises:
            CheckpointError: the parts are not this class's, or the base class does not know the index's class.
        """
        named = index.get("_class_name")
        if not cls.parts:
            try:
                return cast(type[DiffusionPipeline], _look_up(named, PIPELINES, "pipeline", path))
            except CheckpointError as error:
                fitting = [
                    name for name in PIPELINES if ":" not in PIPELINES[name] and not _misfits(_class(name), index)
                ]
                if not fitting:
                    raise
                raise CheckpointError(
                    f"{error}. Its parts are those of {' and of '.join(fitting)}: if one of these does with them what "
                    f"the other does, call from_pretrained on that class, as in {fitting[0]}.from_pretrained"
                ) from None
        if isinstance(named, str) and named in PIPELINES:
            pipeline = _class(named)
            if cls.classes is not pipeline.classes and not issubclass(pipeline, cls) and _misfits(cls, index):
                raise CheckpointError(f"{path} is a {pipeline.__name__}, not a {cls.__name__}: use DiffusionPipeline")
            return cls
        misfits = _misfits(cls, index)
        if misfits:
            raise CheckpointError(
                f"{path} names the pipeline {named!r:.100}, which has other parts than a {cls.__name__}: "
                + ", ".join(misfits)
            )
        return cls

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **parts: Any) -> Self:
        """Another use of the same networks, which are shared: `StableDiffusionImg2ImgPipeline.from_pipe(pipe)`.

        Args:
            pipeline: whose parts to take.
            parts: others instead, by their names; and parts that it has not, such as a `controlnet`.

        Raises:
            TypeError: the parts are not this pipeline's.
        """
        own = dict(pipeline.components)
        known = (*cls.parts, *cls.left_out, *cls.extra)
        if set(cls.parts) - set(own) - set(parts) or any(own[name] is not None for name in own if name not in known):
            raise TypeError(f"the parts of a {type(pipeline).__name__} make no {cls.__name__}")
        own = {name: part for name, part in own.items() if name in (*cls.parts, *cls.left_out)}
        # A pipeline of diffusers has a config, too; one of ours may have more than its index says.
        config = {**getattr(pipeline, "config", {}), **vars(pipeline)}
        own |= {name: config[name] for name in cls.settings if isinstance(config.get(name), bool)}
        extra = {name: parts.pop(name) for name in cls.extra if name in parts and name not in cls.parts}
        made = cls(**{**own, **parts})
        for name, part in extra.items():
            setattr(made, name, part)
        made.loaded_from = getattr(pipeline, "loaded_from", None)  # a pipeline of diffusers has no such thing
        return made

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """`Savable.save_pretrained` with its arguments in the order that they have for diffusers' pipelines.

        Args:
            max_shard_size: as there; None is the usual size.
        """
        if max_shard_size is not None:
            options["max_shard_size"] = max_shard_size
        how: dict[str, Any] = {"safe_serialization": safe_serialization, "variant": variant, "push_to_hub": push_to_hub}
        super().save_pretrained(save_directory, **how, **options)

    def write(self, folder: Path, saving: Saving) -> None:
        """Write what `from_pretrained` reads, here and in diffusers; the index last."""
        index: dict[str, Any] = {"_class_name": self._class_name(), "_diffusers_version": DIFFUSERS_VERSION}
        for name, component in self.components.items():
            if hasattr(component, "save_pretrained") or hasattr(component, "_orig_mod"):
                component = getattr(component, "_orig_mod", component)  # what torch.compile has wrapped
                taken = inspect.signature(component.save_pretrained).parameters
                takes_all = isinstance(component, Savable)
                options = {n: value for n, value in saving.options().items() if takes_all or n in taken}
                component.save_pretrained(folder / name, **options)
        write_json(folder / INDEX, {**index, **self._index()})

    def _class_name(self) -> str:
        """The name of the class that can load all that this pipeline has."""
        return type(self).__name__

    def _index(self) -> dict[str, Any]:
        """The entries of the index: (library, class) of each part, and what is left out."""
        entries = {name: [None, None] for name in self.left_out if self.left_out[name] == [None, None]}
        settings = {name: getattr(self, name) for name in self.settings if name not in self.unsaved}
        return {
            **self.left_out,
            **settings,
            **entries,
            **{name: _entry(part) for name, part in self.components.items()},
        }

    # --- where it runs -----------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device that the networks run on."""
        if self._offload is not None:
            return self._offload
        return next(self._main_network().parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the U-Net's parameters, and so of the samples."""
        return next(self._main_network().parameters()).dtype

    def _main_network(self) -> nn.Module:
        """The U-Net; in a pipeline without one, the first network."""
        unet = self.components.get("unet")
        if isinstance(unet, nn.Module):
            return unet
        if not self._networks:
            raise ConfigError(f"this {type(self).__name__} has no networks")
        return self._networks[0]

    def require_parts(self, *names: str) -> None:
        """Raise a ConfigError that names the parts that this pipeline is without, if there are such."""
        missing = [name for name in names if self.components.get(name) is None]
        if missing:
            raise ConfigError(f"this {type(self).__name__} has no {' and no '.join(missing)}: assign pipe.{missing[0]}")

    def to(
        self,
        *args: Any,
        device: str | torch.device | int | None = None,
        dtype: torch.dtype | None = None,
        torch_device: str | torch.device | int | None = None,
        torch_dtype: torch.dtype | None = None,
        silence_dtype_warnings: bool = False,
        **options: Any,
    ) -> Self:
        """Move or convert the networks: `to(device)`, `to(dtype)`, `to(device, dtype)`, or by the arguments' names.

        Args:
            device: where to; `torch_device` is its older name. An offloaded pipeline that is moved to an accelerator
                stays there.
            dtype: the parameters' type; `torch_dtype` is its older name.
            silence_dtype_warnings: without effect.
            options: as `torch.nn.Module.to` takes them, such as `non_blocking`.

        Raises:
            TypeError: a device or a type is given twice.
        """
        where = [each for each in (device, torch_device) if each is not None]
        kinds = [each for each in (dtype, torch_dtype) if each is not None]
        for value in args:
            if value is not None:
                (kinds if isinstance(value, torch.dtype) else where).append(value)
        if len(where) > 1 or len(kinds) > 1:
            raise TypeError("to takes one device and one type")
        if where:
            options["device"] = torch.device(where[0])
            if options["device"].type != "cpu":
                self._offload = None
        if kinds:
            options["dtype"] = kinds[0]
        for network in self._networks if options else ():
            network.to(**options)
        return self

    def accelerate(self, backend: BackendName = "auto", dtype: torch.dtype | None = None) -> Self:
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

    def progress_bar(self, iterable: Iterable[Any] | int | None = None, total: int | None = None) -> tqdm[Any]:
        """A bar over what is looped over, or of so many steps, as `set_progress_bar_config` wants it.

        Args:
            iterable: what is looped over. A number is taken for `total`.
            total: how many steps there are.

        Raises:
            ValueError: neither is given.
        """
        if isinstance(iterable, int):
            iterable, total = None, iterable
        if iterable is None and total is None:
            raise ValueError("give what is looped over, or total=, the number of steps")
        return tqdm(iterable, total=total, **self._progress)

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
        what = "None" if scheduler is None else type(scheduler).__name__
        raise TypeError(f"a scheduler is needed, such as DDIMScheduler(), not {what}")
    if isinstance(scheduler, DDIMInverseScheduler):
        raise TypeError(
            "a pipeline makes images of noise; to make noise of images, run "
            "ddim.sample(denoiser, images, inverse_scheduler.plan(steps))"
        )
    return DDIMScheduler.from_config({"_class_name": type(scheduler).__name__, **config})


# --- the options of from_pretrained -----------------------------------------------------------------------------------


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are left to be used; a TypeError if one asks for what is not done here."""
    for name, instead in REFUSED.items():
        if options.get(name) not in (None, False):
            raise TypeError(f"{name}={reprlib.repr(options[name])} is not possible: {instead}")
    left = {name: value for name, value in options.items() if name not in (*WITHOUT_EFFECT, *REFUSED)}
    if "use_auth_token" in left:  # the older name
        left.setdefault("token", left.pop("use_auth_token"))
    return left


def _types(
    dtype: Type | Mapping[str, Type] | None, torch_dtype: Type | Mapping[str, Type] | None
) -> Callable[[str], torch.dtype | None]:
    """What gives the type of a part by its name, from one type for all or a dict; errors as in `choose_dtype`."""

    def of(given: Type | Mapping[str, Type] | None, name: str) -> Type | None:
        return given.get(name, given.get("default")) if isinstance(given, Mapping) else given

    choose_dtype(of(dtype, "default"), of(torch_dtype, "default"))
    return lambda name: choose_dtype(of(dtype, name), of(torch_dtype, name), auto=None)


# --- reading model_index.json ----------------------------------------------------------------------------------------


def _look_up(name: Any, table: Mapping[str, str], what: str, index: Path) -> Any:
    if not isinstance(name, str) or name not in table:
        raise CheckpointError(f"{index} names the {what} {name!r:.100}; known are {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def _class(name: str) -> type[DiffusionPipeline]:
    """The class of ours that a name in `PIPELINES` stands for."""
    module, _, attribute = PIPELINES[name].partition(":")
    return cast(type[DiffusionPipeline], getattr(importlib.import_module(module), attribute or name))


def _misfits(cls: type[DiffusionPipeline], index: Mapping[str, Any]) -> list[str]:
    """In words, the differences between the parts of a class and those that an index names."""
    entries = {name: entry for name, entry in index.items() if isinstance(entry, list) and not name.startswith("_")}
    missing = [f"no {name}" for name in cls.parts if name not in entries and name not in cls.nullable]
    known = {*cls.parts, *cls.left_out, *cls.extra}
    return missing + [
        f"also {reprlib.repr(name)}" for name, entry in entries.items() if name not in known and any(entry)
    ]


def _settings(cls: type[DiffusionPipeline], index: Mapping[str, Any], path: Path) -> dict[str, bool]:
    """The settings that an index has for a class; a CheckpointError if one is neither true nor false."""
    found = {name: index[name] for name in cls.settings if index.get(name) is not None}
    for name, value in found.items():
        if not isinstance(value, bool):
            raise CheckpointError(f"{path}: {name} must be true or false, not {reprlib.repr(value)}")
    return found


def _named(cls: type[DiffusionPipeline]) -> list[str]:
    """The names of the arguments of a pipeline's constructor."""
    parameters = [*inspect.signature(cls.__init__).parameters.values()][1:]
    return [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]


def _entry(part: Any) -> list[str | None]:
    """[library, class] of a part, as an index names it; of what cannot be saved, [None, None]."""
    part = getattr(part, "_orig_mod", part)
    if not hasattr(part, "save_pretrained"):
        return [None, None]
    kind = type(part).__name__
    library = type(part).__module__.partition(".")[0]
    if library in LIBRARIES:
        return [library, kind]
    return ["transformers" if kind in OF_TRANSFORMERS else "diffusers", kind]


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
    return cast(DDIMScheduler, DDIMScheduler.construct(config, path))
