"""DDIMPipeline: against diffusers' on the same weights and noise, and what only ours has."""

from __future__ import annotations

import copy
import inspect
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CONFIG, tiny_pipeline, tiny_unet
from torch import Tensor

import ddim
from ddim.errors import CheckpointError, ConfigError, NonFiniteError
from ddim.pipelines import DDIMPipeline, DiffusionPipeline
from ddim.pipelines.base import NETWORKS, PIPELINES
from ddim.scheduler import DDIMInverseScheduler, DDIMScheduler

T = 1000


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def silent(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(pipe: DDIMPipeline, **options: Any) -> Tensor:
    images = pipe(**{"num_inference_steps": 4, "output_type": "pt", **options}).images
    assert isinstance(images, Tensor)
    return images


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(saved: Path) -> Any:
    return silent(diffusers.DDIMPipeline.from_pretrained(saved))


@pytest.fixture(scope="module")
def ours() -> DDIMPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def classes() -> DDIMPipeline:
    """Knows ten classes and, as the eleventh, none."""
    return tiny_pipeline(num_class_embeds=11)


# --- against diffusers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize("clipped", [None, False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("several", [False, True], ids=["one generator", "a list"])
@pytest.mark.thin(together=2)
def test_images_are_those_of_diffusers(
    steps: int, clipped: bool | None, eta: float, several: bool, ours: DDIMPipeline, theirs: Any
) -> None:
    def run(pipe: Any) -> Any:
        return pipe(
            batch_size=2,
            generator=[generator(1), generator(2)] if several else generator(),
            eta=eta,
            num_inference_steps=steps,
            use_clipped_model_output=clipped,
            output_type="np",
        ).images

    mine, reference = run(ours), run(theirs)
    assert mine.shape == reference.shape == (2, 8, 8, 3)
    assert mine.dtype == reference.dtype == np.float32
    assert np.abs(mine - reference).max() < 1e-4


def test_every_output_type_is_that_of_diffusers(ours: DDIMPipeline, theirs: Any) -> None:
    mine, reference = (pipe(2, generator(), 0.0, 5, None, "pil").images for pipe in (ours, theirs))
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in mine)
    for left, right in zip(mine, reference, strict=True):
        assert np.abs(np.asarray(left, dtype=int) - np.asarray(right, dtype=int)).max() <= 1
    mine, reference = (pipe(2, generator(), 0.0, 5, None, "pt").images for pipe in (ours, theirs))
    torch.testing.assert_close(mine, reference, rtol=0, atol=1e-4)
    (plain,) = ours(2, generator(), 0.0, 5, None, "pt", False)
    assert torch.equal(plain, mine)
    assert torch.equal(ours(2, generator(), 0.0, 5, None, "pt")[0], mine)


def test_positional_arguments_are_those_of_diffusers() -> None:
    reference = inspect.signature(diffusers.DDIMPipeline.__call__).parameters
    mine = list(inspect.signature(DDIMPipeline.__call__).parameters.values())
    positional = [parameter for parameter in mine if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    assert [parameter.name for parameter in positional] == list(reference)
    left_open = {"num_inference_steps": None}  # for what the model recommends; 50, as in diffusers, if it does not
    expected = {**{name: p.default for name, p in reference.items()}, **left_open}
    assert {parameter.name: parameter.default for parameter in positional} == expected


def test_global_randomness_is_that_of_diffusers(ours: DDIMPipeline, theirs: Any) -> None:
    results = []
    for pipe in (ours, theirs):
        torch.manual_seed(3)
        results.append(pipe(batch_size=2, num_inference_steps=5, eta=1.0, output_type="np").images)
    assert np.abs(results[0] - results[1]).max() < 1e-4


def test_their_pipeline_runs_with_our_scheduler(theirs: Any) -> None:
    own = theirs.scheduler

    def run(eta: float) -> Any:
        return theirs(batch_size=2, generator=generator(), eta=eta, num_inference_steps=5, output_type="np").images

    try:
        for eta in (0.0, 1.0):
            theirs.scheduler = own
            reference = run(eta)
            theirs.scheduler = DDIMScheduler.from_config(own.config)
            assert np.abs(run(eta) - reference).max() < 1e-4
    finally:
        theirs.scheduler = own


@pytest.mark.filterwarnings("ignore")  # of diffusers and transformers
@pytest.mark.parametrize(
    "settings",
    [
        {"beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1},
        {
            "prediction_type": "v_prediction",
            "clip_sample": False,
            "steps_offset": 1,
            "timestep_spacing": "trailing",
            "rescale_betas_zero_snr": True,
        },
    ],
    ids=["as Stable Diffusion 1", "as Stable Diffusion 2.1, with zero SNR"],
)
def test_their_text_to_image_pipeline_runs_with_our_scheduler(settings: dict[str, Any]) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = {piece: k for k, piece in enumerate([*words, *(f"{letter}</w>" for letter in words)])}
    start, end = len(vocabulary), len(vocabulary) + 1
    tokens = {"<|startoftext|>": start, "<|endoftext|>": end}
    tokenizer = CLIPTokenizer(vocab={**vocabulary, **tokens}, merges=[], model_max_length=16)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=end + 1,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(16,), latent_channels=4, norm_num_groups=8)
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=diffusers.DDIMScheduler(**settings),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    silent(pipe)
    own = pipe.scheduler
    for eta in (0.0, 1.0):
        results = []
        for scheduler in (own, DDIMScheduler.from_config(own.config)):
            pipe.scheduler = scheduler
            images = pipe(
                "a red heart",
                num_inference_steps=5,
                eta=eta,
                generator=generator(),
                guidance_rescale=0.5,
                output_type="np",
            ).images
            results.append(images)
        assert np.isfinite(results[0]).all()
        assert np.abs(results[0] - results[1]).max() < 1e-4


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_pipeline_comes_back_the_same(ours: DDIMPipeline, saved: Path) -> None:
    expected = pixels(ours, generator=generator())
    for cls in (DiffusionPipeline, DDIMPipeline):
        loaded = silent(cls.from_pretrained(saved))
        assert type(loaded) is DDIMPipeline
        assert not loaded.unet.training
        images = pixels(loaded, generator=generator())
        # Not to the bit: weights mapped from a file lie elsewhere in memory, and some kernels sum by alignment.
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
        loaded.unet = copy.deepcopy(loaded.unet)
        assert torch.equal(pixels(loaded, generator=generator()), expected)
    assert sorted(str(path.relative_to(saved)) for path in saved.rglob("*.json")) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
    ]


def test_diffusers_picks_its_class_and_gives_the_same(ours: DDIMPipeline, saved: Path) -> None:
    loaded = silent(diffusers.DiffusionPipeline.from_pretrained(saved))
    assert type(loaded) is diffusers.DDIMPipeline
    assert type(loaded.scheduler) is diffusers.DDIMScheduler
    reference = loaded(generator=generator(), num_inference_steps=4, output_type="pt").images
    torch.testing.assert_close(pixels(ours, generator=generator()), reference, rtol=0, atol=1e-4)


def test_what_diffusers_saves_gives_the_same_here(theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    loaded = silent(DiffusionPipeline.from_pretrained(tmp_path))
    reference = theirs(generator=generator(), num_inference_steps=4, output_type="pt").images
    torch.testing.assert_close(pixels(loaded, generator=generator()), reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DDIMScheduler"])
def test_a_ddpm_checkpoint_becomes_a_ddim_pipeline(scheduler: str, tmp_path: Path) -> None:
    unet = diffusers.UNet2DModel(**CONFIG)
    made = getattr(diffusers, scheduler)(num_train_timesteps=200, beta_end=0.03)
    diffusers.DDPMPipeline(unet=unet, scheduler=made).save_pretrained(tmp_path)
    for cls in (DiffusionPipeline, DDIMPipeline):
        loaded = silent(cls.from_pretrained(tmp_path))
        assert type(loaded) is DDIMPipeline
        assert type(loaded.scheduler) is DDIMScheduler
        assert loaded.scheduler.config.num_train_timesteps == 200
        assert loaded.scheduler.config.beta_end == 0.03
    reference = silent(diffusers.DDIMPipeline.from_pretrained(tmp_path))
    loaded.scheduler = DDIMScheduler.from_config(loaded.scheduler.config, legacy_previous_timestep=True)
    expected = reference(generator=generator(), num_inference_steps=4, output_type="pt").images
    torch.testing.assert_close(pixels(loaded, generator=generator()), expected, rtol=0, atol=1e-4)


def test_types_and_variants_reach_the_network(ours: DDIMPipeline, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    with pytest.warns(UserWarning, match="variant='fp16'"):
        DiffusionPipeline.from_pretrained(tmp_path)
    for name in ("dtype", "torch_dtype"):
        pipe = DiffusionPipeline.from_pretrained(tmp_path, variant="fp16", **{name: torch.bfloat16})
        assert pipe.dtype == torch.bfloat16
    assert DiffusionPipeline.from_pretrained(tmp_path, variant="fp16").dtype == torch.float32


def test_parts_can_be_given(saved: Path) -> None:
    unet, scheduler = tiny_unet(seed=5), DDIMScheduler(num_train_timesteps=50)
    pipe = DiffusionPipeline.from_pretrained(saved, unet=unet, scheduler=scheduler)
    assert pipe.unet is unet
    assert pipe.scheduler is scheduler
    assert pipe.components == {"unet": unet, "scheduler": scheduler}
    euler = diffusers.EulerDiscreteScheduler(num_train_timesteps=60)
    pipe = DiffusionPipeline.from_pretrained(saved, scheduler=euler)
    assert type(pipe.scheduler) is DDIMScheduler
    assert pipe.scheduler.config.num_train_timesteps == 60


def test_unknown_arguments_are_refused(saved: Path) -> None:
    with pytest.raises(TypeError, match="no argument revison, safety_checker; its parts are unet, scheduler"):
        DiffusionPipeline.from_pretrained(saved, revison="main", safety_checker=None)


def test_a_pipeline_of_another_class_is_refused(saved: Path) -> None:
    class Same(DiffusionPipeline):
        parts = ("unet", "scheduler")

    class Other(DiffusionPipeline):
        parts = ("unet", "vae", "scheduler")

    assert type(Same.from_pretrained(saved)) is Same
    with pytest.raises(CheckpointError, match=r"model_index\.json is a DDIMPipeline, not a Other: use Diffusion"):
        Other.from_pretrained(saved)


def test_every_class_that_an_index_may_name_is_there() -> None:
    from ddim.pipelines.base import _look_up

    for table in (PIPELINES, NETWORKS):
        for name in table:
            assert isinstance(_look_up(name, table, "", Path()), type)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_a_compiled_network_is_saved_as_what_it_is(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.unet = torch.compile(pipe.unet)
    pipe.save_pretrained(tmp_path)
    DiffusionPipeline.from_pretrained(tmp_path)


# --- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_of_a_seed_does_not_depend_on_the_batch(eta: float) -> None:
    """The noise is the same bit for bit; the network's own rounding may depend on the batch."""
    drawn = {}

    def keep(pipe: Any, index: int, timestep: int, state: dict[str, Any]) -> None:
        drawn.setdefault(len(state["latents"]), []).append(state["latents"])

    pipe = tiny_pipeline()
    with torch.no_grad():  # predicts nothing: what remains is the noise
        pipe.unet.conv_out.weight.zero_()
        pipe.unet.conv_out.bias.zero_()
    pipe.scheduler = DDIMScheduler(clip_sample=False)
    for count in (1, 2, 4):
        pipe(count, seed=3, eta=eta, num_inference_steps=3, callback_on_step_end=keep)
    for one, two, four in zip(drawn[1], drawn[2], drawn[4], strict=True):
        assert torch.equal(one, four[:1])
        assert torch.equal(two, four[:2])
        assert len({tuple(image.flatten().tolist()) for image in four}) == 4

    pipe = tiny_pipeline()
    one, two, four = (pixels(pipe, batch_size=count, seed=3, eta=eta) for count in (1, 2, 4))
    torch.testing.assert_close(one, four[:1], rtol=0, atol=1e-5)
    torch.testing.assert_close(two, four[:2], rtol=0, atol=1e-5)


def test_a_list_of_seeds_has_one_for_each_image(ours: DDIMPipeline) -> None:
    several = pixels(ours, seed=[11, 5, 11], eta=1.0)
    assert len(several) == 3
    for image, seed in zip(several, (11, 5, 11), strict=True):
        torch.testing.assert_close(image, pixels(ours, seed=seed, eta=1.0)[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(several[0], several[2], rtol=0, atol=1e-5)
    assert not torch.allclose(several[0], several[1], atol=1e-3)
    with pytest.raises(ValueError, match="3 seeds were given for 2 images"):
        ours(batch_size=2, seed=[1, 2, 3])


def test_a_seed_leaves_the_global_randomness_alone(ours: DDIMPipeline) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = pixels(ours, seed=1, eta=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(pixels(ours, seed=1, eta=1.0), first)


def test_generators_and_latents_say_how_many(ours: DDIMPipeline) -> None:
    assert len(pixels(ours, generator=[generator(1), generator(2)])) == 2
    assert len(pixels(ours, latents=torch.randn(3, 3, 8, 8))) == 3
    assert len(pixels(ours)) == 1


def test_latents_are_the_first_sample(ours: DDIMPipeline) -> None:
    noise = torch.randn((2, 3, 8, 8), generator=generator())
    kept = noise.clone()
    assert torch.equal(pixels(ours, latents=noise), pixels(ours, batch_size=2, generator=generator()))
    assert torch.equal(noise, kept)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"seed": 1, "generator": generator()}, ValueError, "a generator or a seed, not both"),
        ({"generator": 5}, TypeError, "or use seed="),
        ({"generator": [5]}, TypeError, "or use seed="),
        ({"generator": [generator()], "batch_size": 3}, ValueError, "1 generators were given for a batch of 3"),
        ({"seed": -1}, ValueError, "a seed must be an int of 0 or more"),
        ({"latents": torch.zeros(1, 3, 4, 4)}, ValueError, r"latents have shape \(1, 3, 4, 4\), needed is"),
        ({"latents": torch.zeros(2, 3, 8, 8), "batch_size": 3}, ValueError, "needed is"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive int"),
        ({"batch_size": 2.0}, ValueError, "batch_size must be a positive int"),
        ({"batch_size": "2"}, ValueError, "batch_size must be a positive int"),
        ({"batch_size": False}, ValueError, "batch_size must be a positive int"),
        ({"num_inference_steps": 0}, ConfigError, "num_inference_steps"),
        ({"num_inference_steps": 1001}, ConfigError, "num_inference_steps"),
        ({"num_inference_steps": "ten"}, ConfigError, "num_inference_steps"),
        ({"timesteps": []}, ConfigError, "at least one timestep"),
        ({"timesteps": [1, 2]}, ConfigError, "fall strictly"),
        ({"eta": -1}, ConfigError, "eta"),
        ({"eta": "much"}, ConfigError, "eta"),
        ({"output_type": "jpeg"}, ValueError, "output_type='jpeg' is none of pil, np, pt"),
        ({"class_labels": 1}, ConfigError, "knows no classes"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_run(
    options: dict[str, Any], error: Any, says: str, ours: DDIMPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours.unet, "forward", lambda *_: pytest.fail("the network was run"))
    with pytest.raises(error, match=says):
        ours(**options)


# --- the run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_timesteps_can_be_given(kind: Any, ours: DDIMPipeline) -> None:
    seen: list[int] = []
    ours(
        timesteps=kind([900, 400, 3]),
        callback_on_step_end=lambda pipe, index, timestep, state: seen.append(timestep),
        num_inference_steps=7,
    )
    assert seen == [900, 400, 3]
    by_number = pixels(ours, num_inference_steps=4, generator=generator())
    assert torch.equal(pixels(ours, timesteps=kind([750, 500, 250, 0]), generator=generator()), by_number)


def test_the_callback_sees_every_step(ours: DDIMPipeline) -> None:
    calls: list[tuple[Any, int, int, dict[str, Any]]] = []
    images = pixels(ours, generator=generator(), callback_on_step_end=lambda *call: calls.append(call))
    assert torch.equal(images, pixels(ours, generator=generator()))
    assert [call[1] for call in calls] == [0, 1, 2, 3]
    assert [call[2] for call in calls] == [750, 500, 250, 0]
    assert all(call[0] is ours for call in calls)
    assert all(set(call[3]) == {"latents", "pred_original_sample"} for call in calls)
    assert torch.equal((calls[-1][3]["latents"] / 2 + 0.5).clamp(0, 1), images)


def test_the_callback_can_replace_the_sample(ours: DDIMPipeline) -> None:
    start = torch.randn((1, 3, 8, 8), generator=generator())

    def restart(pipe: Any, index: int, timestep: int, state: dict[str, Any]) -> dict[str, Any]:
        return {"latents": start} if index == 1 else state

    replaced = pixels(ours, seed=1, callback_on_step_end=restart)
    torch.testing.assert_close(replaced, pixels(ours, latents=start, timesteps=[250, 0]), rtol=0, atol=1e-5)
    last = pixels(
        ours, seed=1, callback_on_step_end=lambda pipe, index, timestep, state: {"latents": torch.ones(1, 3, 8, 8)}
    )
    assert torch.equal(last, torch.ones(1, 3, 8, 8))
    for nonsense in (torch.zeros(1, 3, 4, 4), "x"):
        with pytest.raises(ValueError, match="the callback's latents must be a tensor of shape"):
            ours(callback_on_step_end=lambda *_, nonsense=nonsense: {"latents": nonsense})


def test_the_callback_can_stop(ours: DDIMPipeline) -> None:
    indices: list[int] = []

    def stop(pipe: Any, index: int, timestep: int, state: dict[str, Any]) -> bool | None:
        indices.append(index)
        return False if index == 1 else None

    early = pixels(ours, generator=generator(), callback_on_step_end=stop)
    assert indices == [0, 1]
    assert not torch.equal(early, pixels(ours, generator=generator()))


def test_a_network_that_breaks_names_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline()
    forward = pipe.unet.forward

    def broken(x: Tensor, timestep: Tensor, **options: Any) -> Any:
        out = forward(x, timestep, **options)
        return type(out)(out.sample * torch.nan) if int(timestep) == 500 else out

    monkeypatch.setattr(pipe.unet, "forward", broken)
    with pytest.raises(NonFiniteError, match=r"step 2 of 4 \(timestep 500\)"):
        pipe(num_inference_steps=4)


def test_the_progress_bar_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config()
    pipe(num_inference_steps=4)
    assert "4/4" in capsys.readouterr().err
    pipe.set_progress_bar_config(desc="drawing")
    pipe(num_inference_steps=4)
    assert "drawing" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe(num_inference_steps=4)
    assert capsys.readouterr().err == ""


def test_a_call_leaves_no_trace_in_the_pipeline() -> None:
    pipe = tiny_pipeline()
    before = dict(vars(pipe.scheduler))
    pixels(pipe, eta=1.0)
    assert vars(pipe.scheduler).keys() == before.keys()
    assert all(vars(pipe.scheduler)[key] is before[key] for key in before)
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())


def test_threads_share_a_pipeline() -> None:
    pipe = tiny_pipeline(num_class_embeds=11)
    jobs = [
        {
            "seed": k,
            "num_inference_steps": 3 + k,
            "eta": (0.0, 1.0)[k % 2],
            "class_labels": k,
            "guidance_scale": 1.0 + k,
        }
        for k in range(8)
    ]
    serial = [pixels(pipe, **job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda job: pixels(pipe, **job), jobs))
    for one, other in zip(serial, parallel, strict=True):
        assert torch.equal(one, other)


# --- classes and guidance --------------------------------------------------------------------------------------------


def by_hand(pipe: DDIMPipeline, noise: Tensor, labels: list[int], scale: float, steps: int = 4) -> Tensor:
    """Guidance with diffusers' scheduler and two passes of the network, u and c apart."""
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(steps)
    x = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            without = pipe.unet(x, t, torch.full((len(x),), 10)).sample
            within = pipe.unet(x, t, torch.tensor(labels)).sample
            x = scheduler.step(without + scale * (within - without), t, x).prev_sample
    return (x / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_is_what_it_says(scale: float, classes: DDIMPipeline) -> None:
    noise = torch.randn((3, 3, 8, 8), generator=generator())
    images = pixels(classes, latents=noise, class_labels=[4, 0, 10], guidance_scale=scale)
    torch.testing.assert_close(images, by_hand(classes, noise, [4, 0, 10], scale), rtol=0, atol=1e-4)


def test_labels_come_in_many_forms(classes: DDIMPipeline) -> None:
    expected = pixels(classes, batch_size=2, class_labels=[4, 4], seed=1)
    for labels in (4, torch.tensor(4), [4], np.array([4, 4]), torch.tensor([4, 4]), (4, 4), torch.tensor([4, 4]).int()):
        assert torch.equal(pixels(classes, batch_size=2, class_labels=labels, seed=1), expected)
    assert len(pixels(classes, class_labels=[1, 2, 3])) == 3
    assert len(pixels(classes, class_labels=np.array([1, 2, 3]))) == 3
    assert torch.equal(pixels(classes, seed=1), pixels(classes, class_labels=10, seed=1))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (11, "must be in 0…10"),
        (-1, "must be in 0…10"),
        ([1, 2], "2 class_labels were given for 3 images"),
        ([1.0, 2.0, 3.0], "must be ints"),
        ([True, False, True], "must be ints"),
        ("three", "must be ints"),
        (["1", "2", "3"], "must be ints"),
        ([], "must be ints"),
    ],
)
def test_wrong_labels_are_refused(labels: Any, says: str, classes: DDIMPipeline) -> None:
    with pytest.raises(ValueError, match=says):
        classes(batch_size=3, class_labels=labels)


def batches(pipe: DDIMPipeline, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[int]:
    """The batch sizes that the network saw."""
    seen: list[int] = []
    forward = pipe.unet.forward

    def spy(x: Tensor, *args: Any, **given: Any) -> Any:
        seen.append(len(x))
        return forward(x, *args, **given)

    with monkeypatch.context() as patch:
        patch.setattr(pipe.unet, "forward", spy)
        pixels(pipe, batch_size=3, **options)
    return seen


def test_guidance_runs_no_more_than_it_needs(classes: DDIMPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    assert batches(classes, monkeypatch, class_labels=1) == [3, 3, 3, 3]
    assert batches(classes, monkeypatch, class_labels=1, guidance_scale=1) == [3, 3, 3, 3]
    assert batches(classes, monkeypatch, class_labels=1, guidance_scale=2) == [6, 6, 6, 6]
    assert batches(classes, monkeypatch, class_labels=1, guidance_scale=2, guidance_interval=(250, 500)) == [3, 6, 6, 3]


def test_guidance_outside_its_interval_is_none(classes: DDIMPipeline) -> None:
    options: dict[str, Any] = {"class_labels": 3, "seed": 1}
    plain = pixels(classes, **options)
    assert torch.equal(pixels(classes, guidance_scale=5.0, guidance_interval=(998, 999), **options), plain)
    everywhere = pixels(classes, guidance_scale=5.0, guidance_interval=(0, 999), **options)
    assert torch.equal(everywhere, pixels(classes, guidance_scale=5.0, **options))
    assert not torch.allclose(everywhere, plain)


def test_rescaled_guidance_is_diffusers_formula(classes: DDIMPipeline) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    noise = torch.randn((2, 3, 8, 8), generator=generator())
    images = pixels(
        classes, latents=noise, class_labels=[1, 2], guidance_scale=4.0, guidance_rescale=0.7, timesteps=[900]
    )
    timestep = torch.tensor(900)
    with torch.no_grad():
        without = classes.unet(noise, timestep, torch.tensor([10, 10])).sample
        within = classes.unet(noise, timestep, torch.tensor([1, 2])).sample
    output = rescale_noise_cfg(without + 4 * (within - without), within, 0.7)
    expected = classes.scheduler.plan(timesteps=[900]).step(output, 900, noise).prev_sample
    torch.testing.assert_close(images, (expected / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_rescale": 1.5},
        {"guidance_scale": float("nan")},
        {"guidance_interval": (500, 100)},
    ],
)
def test_guidance_that_cannot_be_is_refused(options: dict[str, Any], classes: DDIMPipeline) -> None:
    with pytest.raises(ConfigError, match="guidance_"):
        classes(**{"guidance_scale": 2.0, **options})


def test_other_kinds_of_class_embeddings_are_refused() -> None:
    pipe = tiny_pipeline(class_embed_type="timestep")
    with pytest.raises(ConfigError, match=r"not class_embed_type='timestep': pass your own denoiser to ddim\.sample"):
        pipe(num_inference_steps=2)


# --- networks and schedulers of other kinds --------------------------------------------------------------------------


def test_a_learned_variance_is_cut_off() -> None:
    pipe = tiny_pipeline(out_channels=6, num_class_embeds=11)
    images = pixels(pipe, class_labels=3, guidance_scale=2.0, guidance_rescale=0.7, seed=1)
    assert images.shape == (1, 3, 8, 8)
    # The same network without its last three channels, which rescaling must not have counted.
    narrow = tiny_pipeline(num_class_embeds=11)
    state = {key: value[:3] if key.startswith("conv_out") else value for key, value in pipe.unet.state_dict().items()}
    narrow.unet.load_state_dict(state)
    expected = pixels(narrow, class_labels=3, guidance_scale=2.0, guidance_rescale=0.7, seed=1)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


def test_sizes_that_are_not_square(theirs: Any) -> None:
    for size in ((8, 16), [8, 16]):
        pipe = tiny_pipeline(sample_size=size)
        assert pixels(pipe).shape == (1, 3, 8, 16)
        assert pipe(num_inference_steps=1).images[0].size == (16, 8)


def test_no_size_needs_latents() -> None:
    pipe = tiny_pipeline(sample_size=None)
    with pytest.raises(ConfigError, match="sample_size: give latents"):
        pipe()
    assert pixels(pipe, latents=torch.randn(2, 3, 4, 12)).shape == (2, 3, 4, 12)


@pytest.mark.parametrize("size", ["8", (8,), (8, 8, 8), -8, 0, (8, 0), (8, "8"), 8.0])
def test_sizes_that_are_none_are_refused(size: Any) -> None:
    with pytest.raises(ConfigError, match="sample_size must be one or two positive ints"):
        tiny_pipeline(sample_size=size)(num_inference_steps=1)


@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_of_one_or_four_channels(channels: int) -> None:
    pipe = tiny_pipeline(in_channels=channels, out_channels=channels)
    image = pipe(num_inference_steps=2).images[0]
    assert image.mode == {1: "L", 4: "RGBA"}[channels]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    pipe = tiny_pipeline()
    latents = torch.randn((2, 3, 8, 8), generator=generator())
    reference = pixels(pipe, latents=latents)
    assert pipe.to(dtype) is pipe
    assert pipe.dtype == dtype
    images = pixels(pipe, latents=latents)
    assert images.dtype == dtype
    torch.testing.assert_close(images.float(), reference, rtol=0, atol={torch.bfloat16: 0.1}.get(dtype, 0.02))
    for options in ({"seed": 1}, {"generator": generator()}, {}):
        assert pixels(pipe, eta=1.0, **options).isfinite().all()
    assert isinstance(pipe(num_inference_steps=2).images[0], Image.Image)
    assert pipe(num_inference_steps=2, output_type="np").images.dtype == np.float32
    assert pipe.device == torch.device("cpu")


def test_any_scheduler_with_betas_can_be_assigned() -> None:
    pipe = tiny_pipeline()
    images = pixels(pipe, seed=1)
    own = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.scheduler = own
    assert pipe.scheduler is own
    assert pipe.components["scheduler"] is own
    assert not torch.allclose(pixels(pipe, seed=1), images)
    pipe.scheduler = diffusers.DDIMScheduler()
    assert type(pipe.scheduler) is DDIMScheduler
    assert torch.equal(pixels(pipe, seed=1), images)
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(num_train_timesteps=100)
    assert pipe.scheduler.config.num_train_timesteps == 100
    pixels(pipe)
    for nonsense in (None, "ddim", DDIMScheduler):
        with pytest.raises(TypeError, match="a scheduler is needed"):
            pipe.scheduler = nonsense
    with pytest.raises(TypeError, match=r"makes images of noise; .* run ddim\.sample"):
        pipe.scheduler = DDIMInverseScheduler()


def test_zero_snr_with_epsilon_is_refused_before_it_makes_noise_of_everything(ours: DDIMPipeline) -> None:
    pipe = DDIMPipeline(ours.unet, DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"))
    with pytest.raises(ConfigError, match="prediction_type='v_prediction'"):
        pipe()


def test_their_network_runs_in_our_pipeline(ours: DDIMPipeline, theirs: Any, tmp_path: Path) -> None:
    pipe = silent(DDIMPipeline(theirs.unet, theirs.scheduler))
    expected = pixels(ours, generator=generator())
    torch.testing.assert_close(pixels(pipe, generator=generator()), expected, rtol=0, atol=1e-4)
    pipe.save_pretrained(tmp_path)
    again = silent(DiffusionPipeline.from_pretrained(tmp_path))
    torch.testing.assert_close(pixels(again, generator=generator()), expected, rtol=0, atol=1e-4)


def test_the_run_by_hand_is_the_same(ours: DDIMPipeline) -> None:
    """What the pipeline does, from the pieces that the package offers."""
    x = torch.randn((2, 3, 8, 8), generator=generator())
    plan = ours.scheduler.plan(4)
    with torch.no_grad():
        for step in ddim.sample(lambda x, t: ours.unet(x, t).sample, x, plan):
            x = step.sample
    found = pixels(ours, batch_size=2, generator=generator())
    torch.testing.assert_close(found, (x / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)


def test_what_does_not_change_between_steps_is_computed_once(
    classes: DDIMPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classes that occur at the plan's timesteps; at others, and where it would be very much, at each step."""
    counted: list[int] = []
    embed = classes.unet.embed

    def embed_and_count(timesteps: Tensor, *labels: Tensor | None, **conditions: Any) -> Tensor:
        counted.append(len(timesteps))
        return embed(timesteps, *labels, **conditions)

    monkeypatch.setattr(classes.unet, "embed", embed_and_count)
    options: dict[str, Any] = {"class_labels": [3, 1, 3], "seed": 1, "num_inference_steps": 4}
    once = pixels(classes, **options)
    assert counted == [4 * 2]
    guided = pixels(classes, guidance_scale=2.0, **options)
    assert counted[1:] == [4 * 2, 4 * 3]
    monkeypatch.setattr("ddim.pipelines.pixels.LARGEST_CACHE", 4)
    counted.clear()
    torch.testing.assert_close(pixels(classes, **options), once, rtol=0, atol=1e-5)
    torch.testing.assert_close(pixels(classes, guidance_scale=2.0, **options), guided, rtol=0, atol=1e-5)
    assert counted == [3] * 4 + [6] * 4
    monkeypatch.undo()
    plan, x = classes.scheduler.plan(4), torch.randn((3, 3, 8, 8), generator=generator())
    denoiser = classes.denoiser(plan, 3, class_labels=[3, 1, 3])
    with torch.no_grad():
        for timestep in (torch.tensor(500), torch.tensor(501), torch.tensor([500, 500, 1])):
            expected = classes.unet(x, timestep, torch.tensor([3, 1, 3])).sample
            torch.testing.assert_close(denoiser(x, timestep), expected, rtol=0, atol=1e-5)
