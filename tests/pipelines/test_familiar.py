"""What scripts for diffusers touch on a pipeline, against diffusers' own; and such scripts in our own words."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline
from tiny_sd import SCHEDULE, tiny_reference
from torch import Tensor

import ddim
from ddim.errors import CheckpointError, ConfigError
from ddim.models.tokenizer import CLIPTokenizer
from ddim.pipelines import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from ddim.pipelines.familiar import INSTEAD
from ddim.scheduler import DDIMScheduler

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")  # diffusers says so of its older names

CPU = torch.device("cpu")
PROMPT = "a photo of a red cat on stars"
BASE: dict[str, Any] = {**SCHEDULE, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def silent(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Pair:
    """diffusers' pipeline and ours, loaded from the folder that it was saved in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.theirs = tiny_reference(folder, 1)
        self.ours: StableDiffusionPipeline = silent(ddim.DiffusionPipeline.from_pretrained(folder))


def pixels(pipe: StableDiffusionPipeline, **options: Any) -> Tensor:
    images = pipe(**{"prompt": PROMPT, "num_inference_steps": 3, "output_type": "pt", "seed": 0, **options}).images
    assert isinstance(images, Tensor)
    return images


def edit_index(folder: Path, **entries: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    pair = Pair(tmp_path_factory.mktemp("familiar"))
    pair.theirs.scheduler = diffusers.DDIMScheduler(**BASE)
    pair.ours.scheduler = DDIMScheduler(**BASE)
    return pair


@pytest.fixture(scope="module")
def three(pair: Pair) -> list[tuple[Any, Any]]:
    """Text to image, image to image and inpainting: (theirs, ours) each."""
    kinds = (
        (diffusers.StableDiffusionPipeline, StableDiffusionPipeline),
        (diffusers.StableDiffusionImg2ImgPipeline, StableDiffusionImg2ImgPipeline),
        (diffusers.StableDiffusionInpaintPipeline, StableDiffusionInpaintPipeline),
    )
    made = []
    for theirs, ours in kinds:
        parts = {**pair.theirs.components, "safety_checker": None, "feature_extractor": None}
        own = theirs(**parts, requires_safety_checker=False)
        made.append((silent(own), silent(ours(**pair.ours.components))))
    return made


def close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() < tolerance


def picture(seed: int = 0, size: tuple[int, int] = (16, 16)) -> Image.Image:
    numbers = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(numbers)


# --- helpers ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_texts_and_latents_are_handled_as_in_diffusers(pair: Pair) -> None:
    prompts = [PROMPT, "a blue dog"]
    for arguments in ((prompts, CPU, 2, True, ["blurry", "bad"]), (PROMPT, "cpu", 1, True)):
        close(pair.ours._encode_prompt(*arguments), pair.theirs._encode_prompt(*arguments))
    embeds = pair.ours._encode_prompt(PROMPT, CPU, 1, False)
    assert torch.equal(embeds, pair.ours.encode_prompt(PROMPT, CPU, 1, False)[0])
    latents = torch.randn(2, 4, 8, 8, generator=generator())
    arrays = [pipe.decode_latents(latents) for pipe in (pair.ours, pair.theirs)]
    assert arrays[0].dtype == arrays[1].dtype == np.float32
    close(*arrays, tolerance=1e-4)
    pictures = [pipe.numpy_to_pil(array) for pipe, array in zip((pair.ours, pair.theirs), arrays, strict=True)]
    assert [image.size for image in pictures[0]] == [image.size for image in pictures[1]] == [(16, 16)] * 2
    assert pair.ours.numpy_to_pil(arrays[0][0])[0].tobytes() == pictures[0][0].tobytes()


def test_noise_is_prepared_as_in_diffusers(pair: Pair) -> None:
    for given in (generator(3), [generator(1), generator(2)]):
        arguments = (2, 4, 16, 24, torch.float32, CPU)
        ours = pair.ours.prepare_latents(*arguments, given)
        again = generator(3) if isinstance(given, torch.Generator) else [generator(1), generator(2)]
        assert torch.equal(ours, pair.theirs.prepare_latents(*arguments, again))
    own = torch.randn(1, 4, 8, 8)
    assert torch.equal(pair.ours.prepare_latents(1, 4, 16, 16, torch.float32, CPU, None, own), own)
    with pytest.raises(ValueError, match="2 generators were given for a batch of 3"):
        pair.ours.prepare_latents(3, 4, 16, 16, torch.float32, CPU, [generator(), generator()])
    made = generator()
    assert pair.ours.prepare_extra_step_kwargs(made, 0.5) == pair.theirs.prepare_extra_step_kwargs(made, 0.5)
    scales = torch.tensor([6.5, 0.0])
    for width in (16, 17):
        embedding = pair.theirs.get_guidance_scale_embedding(scales, width)
        close(pair.ours.get_guidance_scale_embedding(scales, width), embedding, 1e-3)


@torch.no_grad()
def test_image_to_image_is_prepared_as_in_diffusers(three: list[tuple[Any, Any]]) -> None:
    theirs, ours = three[1]
    for pipe in (theirs, ours):
        pipe.scheduler.set_timesteps(10)
    for strength in (0.0, 0.25, 0.5, 1.0):
        (expected, count), (found, number) = (pipe.get_timesteps(10, strength, "cpu") for pipe in (theirs, ours))
        assert number == count
        assert found.tolist() == expected.tolist()
    image = ours.image_processor.preprocess([picture(1), picture(2)])
    close(image, theirs.image_processor.preprocess([picture(1), picture(2)]))
    timestep = found[2:3]
    for prompts, given in ((2, lambda: generator(5)), (4, lambda: [generator(k) for k in range(4)])):
        results = [
            pipe.prepare_latents(image, timestep, prompts, 1, torch.float32, CPU, given()) for pipe in (ours, theirs)
        ]
        close(*results, tolerance=1e-4)
    latents = torch.randn(1, 4, 8, 8)
    results = [
        pipe.prepare_latents(latents, timestep, 1, 2, torch.float32, CPU, generator()) for pipe in (ours, theirs)
    ]
    close(*results)
    with pytest.raises(ValueError, match="2 images do not fit 3"):
        ours.prepare_latents(image, timestep, 3, 1, torch.float32, CPU)


@torch.no_grad()
def test_inpainting_is_prepared_as_in_diffusers(three: list[tuple[Any, Any]]) -> None:
    theirs, ours = three[2]
    image = ours.image_processor.preprocess(picture(1))
    mask_picture = Image.fromarray((np.random.default_rng(0).random((16, 16)) * 255).astype(np.uint8))
    mask = ours.mask_processor.preprocess(mask_picture)
    assert torch.equal(mask, theirs.mask_processor.preprocess(mask_picture))
    size = (2, 4, 16, 16, torch.float32, CPU)
    for options in (
        {"is_strength_max": True, "return_noise": True},
        {"is_strength_max": False, "image": image, "timestep": torch.tensor([500]), "return_image_latents": True},
        {"image": image, "return_noise": True, "return_image_latents": True, "latents": torch.ones(2, 4, 8, 8)},
    ):
        results = [pipe.prepare_latents(*size, generator(4), **options) for pipe in (ours, theirs)]
        assert len(results[0]) == len(results[1])
        for found, expected in zip(*results, strict=True):
            close(found, expected, 1e-4)
    given = (mask, image * (mask < 0.5), 2, 16, 16, torch.float32, CPU)
    results = [pipe.prepare_mask_latents(*given, generator(2), True) for pipe in (ours, theirs)]
    for found, expected in zip(*results, strict=True):
        close(found, expected.detach(), 1e-4)
    with pytest.raises(ValueError, match="give image and timestep"):
        ours.prepare_latents(*size, None, is_strength_max=False)


INPUTS: list[tuple[int, dict[str, Any]]] = [
    (0, {"prompt": None}),
    (0, {"prompt": "a", "prompt_embeds": torch.ones(1, 2, 3)}),
    (0, {"height": 17}),
    (0, {"callback_steps": 0}),
    (0, {"callback_on_step_end_tensor_inputs": ["noise"]}),
    (0, {"negative_prompt": "a", "negative_prompt_embeds": torch.ones(1, 2, 3)}),
    (1, {"strength": 1.5}),
    (1, {"prompt": None}),
    (2, {"strength": -0.5}),
    (2, {"height": 17}),
    (2, {"padding_mask_crop": 3, "output_type": "np"}),
]


@pytest.mark.parametrize(
    ("which", "wrong"), INPUTS, ids=lambda value: " ".join(value) if isinstance(value, dict) else ""
)
def test_inputs_are_checked_as_in_diffusers(which: int, wrong: dict[str, Any], three: list[tuple[Any, Any]]) -> None:
    right: dict[str, Any] = [
        {"prompt": "a", "height": 16, "width": 16, "callback_steps": None},
        {"prompt": "a", "strength": 0.5, "callback_steps": None},
        {
            "prompt": "a",
            "image": picture(),
            "mask_image": picture(),
            "height": 16,
            "width": 16,
            "strength": 1.0,
            "callback_steps": None,
            "output_type": "pil",
        },
    ][which]
    for pipe in three[which]:
        pipe.check_inputs(**right)
        with pytest.raises((ValueError, TypeError)):
            pipe.check_inputs(**{**right, **wrong})


def test_the_image_processor_is_like_diffusers(pair: Pair) -> None:
    ours, theirs = pair.ours.image_processor, pair.theirs.image_processor
    for given, options in (
        (picture(size=(20, 13)), {}),
        (picture(size=(20, 13)), {"height": 16, "width": 24}),
        ([picture(1), picture(2)], {}),
        (np.random.default_rng(1).random((2, 16, 18, 3), dtype=np.float32), {}),
        (torch.rand(1, 3, 16, 16), {"height": 8, "width": 8}),
    ):
        close(ours.preprocess(given, **options), theirs.preprocess(given, **options))
        first = given[0] if isinstance(given, list) else given
        assert ours.get_default_height_width(given) == theirs.get_default_height_width(first)
    decoded = torch.randn(2, 3, 6, 5)
    for flags in (None, [True, False]):
        for kind in ("np", "pt", "latent"):
            options = {"output_type": kind, "do_denormalize": flags}
            inside = decoded if flags is None else decoded.abs().clamp(0, 1)
            close(ours.postprocess(inside, **options), theirs.postprocess(inside, **options))
    first, second = ours.postprocess(decoded), theirs.postprocess(decoded)
    assert [image.tobytes() for image in first] == [image.tobytes() for image in second]
    array = ours.pil_to_numpy(first)
    close(array, theirs.pil_to_numpy(second))
    close(ours.numpy_to_pt(array), theirs.numpy_to_pt(array))
    close(ours.pt_to_numpy(decoded), theirs.pt_to_numpy(decoded))
    close(ours.denormalize(decoded), theirs.denormalize(decoded))
    assert ours.config.vae_scale_factor == theirs.config.vae_scale_factor == 2
    with pytest.raises(ValueError, match="padding_mask_crop"):
        ours.preprocess(picture(), resize_mode="fill")


# --- attributes ------------------------------------------------------------------------------------------------------


def test_attributes_are_those_of_diffusers(three: list[tuple[Any, Any]]) -> None:
    for theirs, ours in three:
        assert set(ours.components) == set(theirs.components)
        assert ours.safety_checker is ours.feature_extractor is ours.image_encoder is None
        for name in (
            "vae_scale_factor",
            "_optional_components",
            "model_cpu_offload_seq",
            "_callback_tensor_inputs",
            "hf_device_map",
            "config_name",
            "_execution_device",
            "device",
            "dtype",
        ):
            if name == "_callback_tensor_inputs":
                assert set(getattr(ours, name)) <= set(getattr(theirs, name))
            else:
                assert getattr(ours, name) == getattr(theirs, name), name
        names = {name for name in theirs.config if not name.startswith("_")}
        assert {name for name in ours.config if not name.startswith("_")} == names
        for name in names:
            assert ours.config[name] == theirs.config[name], name
        assert ours.config["_class_name"] == type(theirs).__name__


def test_a_missing_name_says_what_to_use(pair: Pair) -> None:
    pixel_pipe = tiny_pipeline()
    for pipe in (pair.ours, pixel_pipe):
        for name, instead in INSTEAD.items():
            if name in dir(pipe):
                pytest.fail(f"{name} is there and in the table of what is not")
            assert not hasattr(pipe, name)
            with pytest.raises(AttributeError, match="has no attribute") as caught:
                getattr(pipe, name)
            assert instead in str(caught.value)
            assert caught.value.name == name
        with pytest.raises(AttributeError, match=r"has no attribute 'nonsense'$"):
            _ = pipe.nonsense


def test_every_name_of_diffusers_is_here_or_in_the_table(three: list[tuple[Any, Any]]) -> None:
    """What is left is loading and saving by other ways, and what diffusers' own machinery calls."""
    machinery = set(
        """extract_init_dict from_config get_config_dict has_compatibles ignore_for_config load_config parameters
        register_for_auto_class register_to_config save_config to_json_file to_json_string pack_weights
        write_lora_layers""".split()
    )
    for theirs, ours in three:
        public = {name for name in dir(type(theirs)) if not name.startswith("_")} - machinery
        assert {name for name in public if name not in dir(ours) and name not in INSTEAD} == set()
    theirs_of_pixels = {name for name in dir(diffusers.DDIMPipeline) if not name.startswith("_")} - machinery
    known = dir(tiny_pipeline())
    assert {name for name in theirs_of_pixels if name not in known and name not in INSTEAD} == set()


def test_switches_of_memory_change_nothing_in_an_image() -> None:
    for pipe in (tiny_pipeline(),):
        before = pipe(num_inference_steps=2, seed=0, output_type="np").images
        pipe.enable_attention_slicing()
        pipe.enable_attention_slicing("max")
        pipe.set_attention_slice(1)
        pipe.enable_xformers_memory_efficient_attention()
        pipe.maybe_free_model_hooks()
        pipe.remove_all_hooks()
        assert np.array_equal(pipe(num_inference_steps=2, seed=0, output_type="np").images, before)
        pipe.disable_attention_slicing()
        pipe.disable_xformers_memory_efficient_attention()
        if not torch.accelerator.is_available():
            for enable in (pipe.enable_model_cpu_offload, pipe.enable_sequential_cpu_offload):
                with pytest.raises(RuntimeError, match="accelerator"):
                    enable()


def test_networks_are_asked_for_freeu_and_fused_projections(pair: Pair) -> None:
    pipe = silent(StableDiffusionPipeline(**{**pair.ours.components, "unet": copy.deepcopy(pair.theirs.unet)}))
    before = pixels(pipe)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert not torch.allclose(pixels(pipe), before)
    pipe.disable_freeu()
    assert torch.equal(pixels(pipe), before)
    pipe.fuse_qkv_projections()
    torch.testing.assert_close(pixels(pipe), before, rtol=0, atol=1e-4)
    pipe.unfuse_qkv_projections()


def test_bars() -> None:
    pipe = tiny_pipeline()
    assert list(pipe.progress_bar([3, 4])) == [3, 4]
    for bar in (pipe.progress_bar(total=5), pipe.progress_bar(5)):
        with bar:
            assert bar.total == 5
    with pytest.raises(ValueError, match="total="):
        pipe.progress_bar()


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((torch.float64,), {}),
        (("cpu", torch.float64), {}),
        (("cpu",), {"torch_dtype": torch.float64}),
        ((), {"dtype": torch.float64, "silence_dtype_warnings": True}),
        ((), {"torch_device": "cpu", "torch_dtype": torch.float64}),
        ((torch.device("cpu"),), {"dtype": torch.float64}),
    ],
)
def test_to(arguments: Any, options: Any) -> None:
    pipe = tiny_pipeline()
    assert pipe.to(*arguments, **options) is pipe
    assert (pipe.dtype, pipe.device) == (torch.float64, CPU)
    with pytest.raises(TypeError, match="one device and one type"):
        pipe.to("cpu", device="cpu")


# --- calls -----------------------------------------------------------------------------------------------------------


def test_the_older_callback(pair: Pair) -> None:
    seen: list[list[Any]] = [[], []]
    for pipe, listed in zip((pair.theirs, pair.ours), seen, strict=True):

        def watch(index: int, timestep: Any, latents: Tensor, listed: list[Any] = listed) -> None:
            listed.append((index, int(timestep), latents.clone()))

        pipe(PROMPT, num_inference_steps=4, generator=generator(), callback=watch, callback_steps=2)
    assert [entry[:2] for entry in seen[0]] == [entry[:2] for entry in seen[1]]
    assert len(seen[1]) == 2
    for theirs, ours in zip(*seen, strict=True):
        close(ours[2], theirs[2], 1e-4)


def test_a_callback_of_diffusers_says_itself_what_it_needs(pair: Pair) -> None:
    from diffusers.callbacks import SDCFGCutoffCallback

    images = []
    for pipe in (pair.theirs, pair.ours):
        cutoff = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
        options = {"num_inference_steps": 5, "output_type": "np", "callback_on_step_end": cutoff}
        images.append(pipe(PROMPT, generator=generator(), **options).images)
    close(*images, tolerance=1e-4)


def test_a_callback_changes_the_guidance_scale(pair: Pair) -> None:
    """A dynamic scale, as scripts set it; and what a run without negative embeddings cannot do."""

    def rise(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale += 1.0
        return values

    images = []
    for pipe in (pair.theirs, pair.ours):
        options = {"num_inference_steps": 5, "guidance_scale": 2.0, "output_type": "np", "callback_on_step_end": rise}
        images.append(pipe(PROMPT, generator=generator(), **options).images)
        assert pipe.guidance_scale == 7.0
        assert pipe.num_timesteps == 5
    close(*images, tolerance=1e-4)

    def stop(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> None:
        pipe._guidance_scale = 1.0

    def stop_as_diffusers_can(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        stop(pipe, index, timestep, values)
        return {"prompt_embeds": values["prompt_embeds"][-1:]}

    halves = [pixels(pair.ours, callback_on_step_end=stop)]
    inputs = ["latents", "prompt_embeds"]
    halving = {"callback_on_step_end": stop_as_diffusers_can, "callback_on_step_end_tensor_inputs": inputs}
    assert torch.equal(halves[0], pixels(pair.ours, **halving))
    with pytest.raises(ValueError, match="without negative embeddings"):
        pair.ours(PROMPT, num_inference_steps=2, guidance_scale=1.0, callback_on_step_end=rise)
    with pytest.raises(AttributeError, match="no call is running"):
        pair.ours._guidance_scale = 3.0


def test_attention_kwargs_reach_the_network(pair: Pair) -> None:
    unet = copy.deepcopy(pair.theirs.unet)
    seen = []
    forward = unet.forward

    def watch(*arguments: Any, **options: Any) -> Any:
        seen.append(options.get("cross_attention_kwargs"))
        return forward(*arguments, **{**options, "cross_attention_kwargs": None})

    unet.forward = watch
    pipe = silent(StableDiffusionPipeline(**{**pair.ours.components, "unet": unet}))
    expected = pixels(pipe)
    assert seen == [None] * 3
    assert torch.equal(pixels(pipe, cross_attention_kwargs={"scale": 1.0}), expected)
    assert seen == [None] * 6
    pixels(pipe, cross_attention_kwargs={"gamma": 2})
    assert seen[6:] == [{"gamma": 2}] * 3
    assert pipe.cross_attention_kwargs == {"gamma": 2}


def test_what_is_no_setting_of_ddim_is_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match=r"sigmas is not implemented.*timesteps="):
        pair.ours(PROMPT, sigmas=[1.0, 0.5])
    pipe = tiny_pipeline()
    with pytest.warns(UserWarning, match="knows no classes: guidance_scale has no effect"):
        guided = pipe(num_inference_steps=2, seed=0, guidance_scale=7.5, output_type="np").images
    assert np.array_equal(guided, pipe(num_inference_steps=2, seed=0, output_type="np").images)


def test_a_safety_checker_that_is_given_is_asked(pair: Pair) -> None:
    """The line that scripts copy to be rid of it; and one that finds something."""
    pipe = silent(StableDiffusionPipeline(**pair.ours.components))
    expected = pixels(pipe)
    pipe.safety_checker = lambda images, clip_input: (images, False)
    result = pipe(PROMPT, num_inference_steps=3, seed=0, output_type="pt")
    assert torch.equal(result.images, expected)
    assert result.nsfw_content_detected == [False]

    class Seen:
        pixel_values = torch.ones(2, 3, 4, 4)

    def check(images: Tensor, clip_input: Tensor) -> tuple[Tensor, list[bool]]:
        assert clip_input is not None
        images[1] = 0
        return images, [False, True]

    pipe.feature_extractor = lambda pictures, return_tensors: Seen()
    pipe.safety_checker = check
    images, found = pipe([PROMPT, "a dog"], num_inference_steps=2, seed=0, output_type="np", return_dict=False)
    assert found == [False, True]
    assert images[1].max() == 0 < images[0].std()
    assert pipe.components["safety_checker"] is check
    with pytest.raises(TypeError, match="must be None"):
        pipe.safety_checker = object()
    with pytest.raises(TypeError, match="IP-Adapters"):
        pipe.image_encoder = object()


def test_a_pipeline_may_only_encode_texts(pair: Pair) -> None:
    texts = {name: pair.ours.components[name] for name in ("text_encoder", "tokenizer")}
    others = dict.fromkeys(("vae", "unet", "scheduler"))
    pipe = StableDiffusionPipeline(**texts, **others)
    expected = pair.ours.encode_prompt(PROMPT)
    for found, wanted in zip(pipe.encode_prompt(PROMPT), expected, strict=True):
        assert torch.equal(found, wanted)
    with pytest.raises(ConfigError, match="has no unet and no vae and no scheduler: assign"):
        pipe(PROMPT)


# --- parts of transformers -------------------------------------------------------------------------------------------


def test_a_tokenizer_and_a_text_encoder_of_transformers_are_used_and_saved(pair: Pair, tmp_path: Path) -> None:
    theirs = {name: pair.theirs.components[name] for name in ("tokenizer", "text_encoder")}
    pipe = silent(StableDiffusionPipeline(**{**pair.ours.components, **theirs}))
    assert pipe.tokenizer is theirs["tokenizer"]
    for options in ({}, {"clip_skip": 1, "negative_prompt": "bad"}):
        torch.testing.assert_close(pixels(pipe, **options), pixels(pair.ours, **options), rtol=0, atol=1e-4)
    with pytest.warns(UserWarning, match="the end of .* was cut"):
        pipe.encode_prompt("photo " * 100)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    again = silent(StableDiffusionPipeline.from_pretrained(tmp_path))
    assert isinstance(again.tokenizer, CLIPTokenizer)
    torch.testing.assert_close(pixels(again), pixels(pair.ours), rtol=0, atol=1e-4)
    assert silent(diffusers.StableDiffusionPipeline.from_pretrained(tmp_path))(PROMPT, num_inference_steps=1)
    given = StableDiffusionPipeline.from_pretrained(pair.folder, **theirs)
    assert given.text_encoder is theirs["text_encoder"]


def test_a_whole_pipeline_of_diffusers_becomes_ours(pair: Pair) -> None:
    pipe = silent(StableDiffusionPipeline.from_pipe(pair.theirs))
    torch.testing.assert_close(pixels(pipe), pixels(pair.ours), rtol=0, atol=1e-4)
    pipe = silent(StableDiffusionPipeline(**pair.theirs.components))
    torch.testing.assert_close(pixels(pipe), pixels(pair.ours), rtol=0, atol=1e-4)


# --- loading and saving ----------------------------------------------------------------------------------------------


def test_options_of_saving_and_loading(pair: Pair, tmp_path: Path) -> None:
    pair.ours.save_pretrained(tmp_path, True, "fp16", "5GB")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    pair.ours.save_pretrained(tmp_path / "pickles", safe_serialization=False, max_shard_size=None)
    assert (tmp_path / "pickles" / "unet" / "diffusion_pytorch_model.bin").is_file()
    assert torch.equal(pixels(silent(StableDiffusionPipeline.from_pretrained(tmp_path / "pickles"))), pixels(pair.ours))
    with pytest.raises(CheckpointError, match="no weights"):
        StableDiffusionPipeline.from_pretrained(tmp_path / "pickles", use_safetensors=True)
    pair.ours.save_pretrained(tmp_path / "all", max_shard_size="50KB")
    assert len(list((tmp_path / "all" / "unet").glob("*.safetensors"))) > 1
    pipe = StableDiffusionPipeline.from_pretrained(
        tmp_path / "all",
        torch_dtype={"unet": torch.bfloat16, "default": torch.float16},
        device_map="cpu",
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        use_safetensors=True,
        low_cpu_mem_usage=True,
        resume_download=None,
        custom_pipeline=None,
        use_auth_token=True,
    )
    assert (pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype) == (torch.bfloat16, torch.float16, torch.float16)
    assert pipe.name_or_path == pipe.config["_name_or_path"] == str(tmp_path / "all")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device_map": {"unet": "cpu", "vae": "meta"}}, "name one device"),
        ({"custom_pipeline": "lpw_stable_diffusion"}, "never run"),
        ({"trust_remote_code": True}, "never run"),
        ({"quantization_config": object()}, "not quantised"),
        ({"output_loading_info": True}, "WeightsError"),
    ],
)
def test_options_that_cannot_be_followed(options: dict[str, Any], says: str, pair: Pair) -> None:
    error = ValueError if "device_map" in options else TypeError
    with pytest.raises(error, match=says):
        StableDiffusionPipeline.from_pretrained(pair.folder, **options)


def test_the_class_that_is_named_wins_over_the_index(pair: Pair, tmp_path: Path) -> None:
    pair.ours.save_pretrained(tmp_path)
    edit_index(tmp_path, _class_name="LatentConsistencyModelPipeline")
    for kind in (StableDiffusionPipeline, StableDiffusionInpaintPipeline):
        assert type(kind.from_pretrained(tmp_path)) is kind
    assert torch.equal(pixels(silent(StableDiffusionPipeline.from_pretrained(tmp_path))), pixels(pair.ours))
    with pytest.raises(CheckpointError, match=r"'LatentConsistencyModelPipeline'.*StableDiffusionPipeline\.from_pre"):
        ddim.DiffusionPipeline.from_pretrained(tmp_path)
    edit_index(tmp_path, _class_name=["pipeline_mine", "Mine"])
    assert type(StableDiffusionPipeline.from_pretrained(tmp_path)) is StableDiffusionPipeline
    with pytest.raises(CheckpointError, match=r"other parts than a DDIMPipeline: also '(text_encoder|tokenizer|vae)'"):
        ddim.DDIMPipeline.from_pretrained(tmp_path)
    edit_index(tmp_path, _class_name="StableDiffusionControlNetPipeline", controlnet=["diffusers", "ControlNetModel"])
    with pytest.raises(CheckpointError, match="there is no controlnet/config"):
        StableDiffusionPipeline.from_pretrained(tmp_path)


def test_a_class_of_the_user_needs_no_more_than_a_constructor(pair: Pair, tmp_path: Path) -> None:
    """As diffusers' guide to writing a pipeline has it."""

    class OneStep(ddim.DiffusionPipeline):
        def __init__(self, unet: Any, scheduler: Any) -> None:
            super().__init__()
            self.register_modules(unet=unet, scheduler=scheduler)

        def __call__(self) -> Tensor:
            x = torch.ones(1, 3, 8, 8)
            self.scheduler.set_timesteps(2)
            t = self.scheduler.timesteps[0]
            result: Tensor = self.scheduler.step(self.unet(x, t).sample, t, x).prev_sample
            return result

    source = tiny_pipeline()
    pipe = OneStep(source.unet, diffusers.DDIMScheduler())
    assert list(pipe.components) == ["unet", "scheduler"]
    with torch.no_grad():
        expected = pipe()
        pipe.save_pretrained(tmp_path)
        torch.testing.assert_close(OneStep.from_pretrained(tmp_path)(), expected)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "OneStep"


# --- schedulers without betas ----------------------------------------------------------------------------------------

NO_BETAS: dict[str, tuple[dict[str, Any], str]] = {
    "EDM": ({"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}, "no betas"),
    "UnCLIP": ({"_class_name": "UnCLIPScheduler", "variance_type": "fixed_small_log"}, "no betas"),
    "Stable Audio": ({"_class_name": "CosineDPMSolverMultistepScheduler", "sigma_max": 500}, "no betas"),
    "IPNDM": ({"_class_name": "IPNDMScheduler", "trained_betas": None, "num_train_timesteps": 1000}, "no betas"),
    "flow": ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "flow matching"),
    "flow of DPM": ({**BASE, "_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "flow matching"),
    "flow prediction": ({**BASE, "prediction_type": "flow_prediction"}, "flow matching"),
    "Playground 2.5": (
        {
            "_class_name": "EDMDPMSolverMultistepScheduler",
            "_diffusers_version": "0.27.0.dev0",
            "algorithm_type": "dpmsolver++",
            "dynamic_thresholding_ratio": 0.995,
            "euler_at_final": False,
            "final_sigmas_type": "zero",
            "lower_order_final": True,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "rho": 7.0,
            "sample_max_value": 1.0,
            "sigma_data": 0.5,
            "sigma_max": 80.0,
            "sigma_min": 0.002,
            "solver_order": 2,
            "solver_type": "midpoint",
            "thresholding": False,
        },
        "EDMDPMSolverMultistepScheduler, which has no betas.*EDM.*in diffusers|another kind, which has no betas",
    ),
    "CogVideoX": (
        {**BASE, "_class_name": "CogVideoXDDIMScheduler", "snr_shift_scale": 3.0},
        r"snr_shift_scale=3\.0, which shifts the noise",
    ),
}


@pytest.mark.parametrize("name", NO_BETAS)
def test_every_door_refuses_a_scheduler_without_betas(name: str, pair: Pair, tmp_path: Path) -> None:
    config, says = NO_BETAS[name]
    for kind in (DDIMScheduler, ddim.DDIMInverseScheduler):
        with pytest.raises(ConfigError, match=says):
            kind.from_config(config)
    pair.ours.save_pretrained(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=says) as caught:
        DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert "scheduler_config.json" in str(caught.value)
    with pytest.raises(ConfigError, match=says):
        ddim.DiffusionPipeline.from_pretrained(tmp_path)
    # A scheduler may bring its class's name in its config, or not.
    plain = {key: value for key, value in config.items() if key != "_class_name"}
    assigned = type(config.get("_class_name", "Odd"), (), {"config": plain})()
    before = pair.ours.scheduler
    with pytest.raises(ConfigError, match=says):
        pair.ours.scheduler = assigned
    assert pair.ours.scheduler is before
    pair.ours.scheduler = DDIMScheduler(**BASE)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.EDMEulerScheduler,
        diffusers.FlowMatchEulerDiscreteScheduler,
    ],
)
def test_schedulers_of_diffusers_without_betas_cannot_be_assigned(scheduler: Callable[[], Any], pair: Pair) -> None:
    with pytest.raises(ConfigError, match=r"no betas|flow matching"):
        pair.ours.scheduler = scheduler()
    with pytest.raises(ConfigError, match=r"no betas|flow matching"):
        DDIMScheduler.from_config(scheduler().config)


def test_the_shifted_levels_of_cogvideox_can_be_assigned() -> None:
    """Its class shifts unless told; what a shift of 1 leaves as it is, is taken."""
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    theirs = diffusers.CogVideoXDDIMScheduler(**schedule, prediction_type="v_prediction", timestep_spacing="trailing")
    for config in (theirs.config, {**schedule, "_class_name": "CogVideoXDPMScheduler"}):
        with pytest.raises(ConfigError, match=r"snr_shift_scale=3\.0"):
            DDIMScheduler.from_config(config)
    ours = DDIMScheduler.from_config(theirs.config, snr_shift_scale=1.0, clip_sample=False)  # it never clips
    assert (ours.alphas_cumprod - theirs.alphas_cumprod).abs().max() > 0.1
    ours.alphas_cumprod = theirs.alphas_cumprod
    x, v = torch.randn(2, 1, 4, 8, 8)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    for timestep in theirs.timesteps:
        expected = theirs.step(v, timestep, x).prev_sample
        torch.testing.assert_close(ours.step(v, timestep, x).prev_sample, expected, atol=1e-5, rtol=1e-5)


# --- scripts, rebuilt ------------------------------------------------------------------------------------------------


def course_sample(pipe: Any, prompt: str, start: Tensor, steps: int, scale: float, negative: str) -> Tensor:
    """The diffusion course, unit 4: sampling by hand, with the stride T // N."""
    device = pipe._execution_device
    texts = pipe._encode_prompt(prompt, device, 1, True, negative)
    pipe.scheduler.set_timesteps(steps, device=device)
    x = start
    for t in pipe.progress_bar(pipe.scheduler.timesteps):
        doubled = pipe.scheduler.scale_model_input(torch.cat([x] * 2), t)
        without, within = pipe.unet(doubled, t, encoder_hidden_states=texts).sample.chunk(2)
        eps = without + scale * (within - without)
        here = pipe.scheduler.alphas_cumprod[t.item()]
        there = pipe.scheduler.alphas_cumprod[max(1, t.item() - 1000 // steps)]
        x0 = (x - (1 - here).sqrt() * eps) / here.sqrt()
        x = there.sqrt() * x0 + (1 - there).sqrt() * eps
    return x


def course_invert(pipe: Any, prompt: str, start: Tensor, steps: int, scale: float) -> Tensor:
    """The diffusion course, unit 4: the same equation from the image to its noise."""
    texts = pipe._encode_prompt(prompt, pipe.device, 1, True, "")
    pipe.scheduler.set_timesteps(steps, device=pipe.device)
    x = start
    rising = pipe.scheduler.timesteps.flip(0)
    for i in range(1, steps):
        t = rising[i]
        without, within = pipe.unet(torch.cat([x] * 2), t, encoder_hidden_states=texts).sample.chunk(2)
        eps = without + scale * (within - without)
        here = pipe.scheduler.alphas_cumprod[max(0, t.item() - 1000 // steps)]
        there = pipe.scheduler.alphas_cumprod[t.item()]
        x = (x - (1 - here).sqrt() * eps) * (there.sqrt() / here.sqrt()) + (1 - there).sqrt() * eps
    return x


@torch.no_grad()
def course(pipe: Any) -> Any:
    pixels_of_image = pipe.image_processor.preprocess(picture(3))
    latents = 0.18215 * pipe.vae.encode(pixels_of_image).latent_dist.mean
    noise = course_invert(pipe, "a cat", latents, 5, 1.5)
    x = course_sample(pipe, "a dog", noise, 5, 3.5, "blurry")
    images = pipe.numpy_to_pil(pipe.decode_latents(x))
    assert images[0].size == (16, 16)
    return x


@torch.no_grad()
def prompt_to_prompt(pipe: Any) -> Any:
    """Prompt-to-prompt and null-text inversion: the texts, an image's latents and back, DDIM steps both ways."""

    def init_prompt(prompt: str) -> Tensor:
        how = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        nothing = pipe.tokenizer(
            [""], padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
        )
        text = pipe.tokenizer([prompt], max_length=pipe.tokenizer.model_max_length, **how)
        vectors = [pipe.text_encoder(ids.input_ids.to(pipe.device))[0] for ids in (nothing, text)]
        return torch.cat(vectors)

    def image2latent(image: Image.Image) -> Tensor:
        array = torch.from_numpy(np.array(image)).float() / 127.5 - 1
        found: Tensor = pipe.vae.encode(array.permute(2, 0, 1)[None])["latent_dist"].mean * 0.18215
        return found

    def latent2image(latents: Tensor) -> Any:
        decoded = pipe.vae.decode(1 / 0.18215 * latents)["sample"]
        array = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        return (array * 255).astype(np.uint8)

    words = "a photo of a red cat"
    ids = pipe.tokenizer.encode(words)
    pieces = [pipe.tokenizer.decode([item]).strip("#") for item in ids][1:-1]
    assert "".join(pieces) == words.replace(" ", "")
    context = init_prompt(words)
    pipe.scheduler.set_timesteps(5)
    x = image2latent(picture(4))
    scheduler = pipe.scheduler
    for i in range(5):
        t = scheduler.timesteps[len(scheduler.timesteps) - i - 1]
        eps = pipe.unet(x, t, encoder_hidden_states=context[1:])["sample"]
        before = min(t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps, 999)
        here = scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod
        there = scheduler.alphas_cumprod[t]
        x0 = (x - (1 - here) ** 0.5 * eps) / here**0.5
        x = there**0.5 * x0 + (1 - there) ** 0.5 * eps
    for t in scheduler.timesteps:
        without, within = pipe.unet(torch.cat([x] * 2), t, encoder_hidden_states=context)["sample"].chunk(2)
        x = scheduler.step(without + 7.5 * (within - without), t, x)["prev_sample"]
    assert latent2image(x).shape == (1, 16, 16, 3)
    return x


@torch.no_grad()
def ddpm_inversion(pipe: Any) -> Any:
    """The edit-friendly DDPM inversion: its texts, its variance, and a step with a noise map."""

    def encode_text(prompts: str) -> Tensor:
        taken = pipe.tokenizer(
            prompts,
            padding="max_length",
            max_length=pipe.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        vectors: Tensor = pipe.text_encoder(taken.input_ids.to(pipe.device))[0]
        return vectors

    texts = torch.cat([encode_text(""), encode_text("a photo of a blue dog")])
    pipe.scheduler.set_timesteps(5)
    x = torch.randn(1, 4, 8, 8, generator=generator(9)) * pipe.scheduler.init_noise_sigma
    for op in pipe.progress_bar(pipe.scheduler.timesteps):
        without, within = (pipe.unet.forward(x, timestep=op, encoder_hidden_states=c[None])["sample"] for c in texts)
        eps = without + 3.0 * (within - without)
        before = op - pipe.scheduler.config.num_train_timesteps // pipe.scheduler.num_inference_steps
        variance = pipe.scheduler._get_variance(op, before)
        here = pipe.scheduler.alphas_cumprod[op]
        there = pipe.scheduler.alphas_cumprod[before] if before >= 0 else pipe.scheduler.final_alpha_cumprod
        x0 = (x - (1 - here) ** 0.5 * eps) / here**0.5
        mean = there**0.5 * x0 + (1 - there - variance) ** 0.5 * eps
        x = mean + variance**0.5 * torch.ones_like(x)
    return x


@torch.no_grad()
def image_by_hand(pipe: Any) -> Any:
    """SDEdit's loop out of the helpers of the image-to-image pipeline."""
    image = pipe.image_processor.preprocess(picture(5))
    pipe.check_inputs("a cat", 0.6, 1)
    texts = torch.cat(pipe.encode_prompt("a cat", pipe.device, 1, True, negative_prompt="bad")[::-1])
    pipe.scheduler.set_timesteps(5, device=pipe.device)
    timesteps, steps = pipe.get_timesteps(5, 0.6, pipe.device)
    x = pipe.prepare_latents(image, timesteps[:1], 1, 1, texts.dtype, pipe.device, generator(1))
    extra = pipe.prepare_extra_step_kwargs(generator(2), 0.5)
    with pipe.progress_bar(total=steps) as bar:
        for t in timesteps:
            doubled = pipe.scheduler.scale_model_input(torch.cat([x] * 2), t)
            without, within = pipe.unet(doubled, t, encoder_hidden_states=texts).sample.chunk(2)
            x = pipe.scheduler.step(without + 5 * (within - without), t, x, **extra).prev_sample
            bar.update()
    decoded = pipe.vae.decode(x / pipe.vae.config.scaling_factor, return_dict=False)[0]
    decoded, _ = pipe.run_safety_checker(decoded, pipe.device, texts.dtype)
    (drawn,) = pipe.image_processor.postprocess(decoded, output_type="pil", do_denormalize=[True])
    pipe.maybe_free_model_hooks()
    assert drawn.size == (16, 16)
    return x


SCRIPTS = {"course": (course, 0), "prompt-to-prompt": (prompt_to_prompt, 0), "DDPM inversion": (ddpm_inversion, 0)}
SCRIPTS |= {"SDEdit by hand": (image_by_hand, 1)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_run_with_another_import(name: str, three: list[tuple[Any, Any]]) -> None:
    script, which = SCRIPTS[name]
    for pipe in three[which]:
        kind = diffusers.DDIMScheduler if pipe is three[which][0] else DDIMScheduler
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    theirs, ours = (script(pipe) for pipe in three[which])
    assert theirs.isfinite().all()
    assert theirs.std() > 0.1
    close(ours, theirs, 1e-3 * float(theirs.abs().max()))
