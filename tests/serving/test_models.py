"""Of each kind of model: requests that differ, drawn together and compared with calls of their own; what is refused."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from alone import alone, assert_alone
from PIL import Image
from tiny import tiny_pipeline
from tiny_sd import tiny_reference

from ddim import DDIMScheduler, DiffusionPipeline, StableDiffusionInpaintPipeline, UNet2DConditionModel
from ddim.errors import ConfigError
from ddim.serving import Engine, Request, Step

LISTS = {"4": [980, 700, 400, 90]}
SUITED: dict[str, Any] = {
    "optimized_timesteps": LISTS,
    "recommended_steps": 4,
    "recommended_order": 2,
    "recommended_spacing": "optimized",
    "recommended_guidance_scale": 3.0,
    "recommended_guidance_rescale": 0.5,
}


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(texts: str) -> Any:
    """Draws texts, and predicts v."""
    return quiet(DiffusionPipeline.from_pretrained(texts))


@pytest.fixture(scope="module")
def inpainter(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model whose U-Net sees the mask and the masked picture: nine channels."""
    folder = tmp_path_factory.mktemp("nine")
    tiny_reference(folder, 1, in_channels=9)
    return quiet(DiffusionPipeline.from_pretrained(folder))


def picture(seed: int = 0, side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8))


def upper_half(side: int = 16) -> Image.Image:
    mask = np.zeros((side, side), np.uint8)
    mask[: side // 2] = 255
    return Image.fromarray(mask)


def draw_together(pipe: Any, requests: list[Request], **options: Any) -> None:
    """Draw all requests by one engine, and compare each with its own call."""
    requests = [dataclasses.replace(request, output_type="pt") for request in requests]
    with Engine(pipe, **options) as engine:
        futures = engine.submit_all(requests)
        pictures = [future.result(60) for future in futures]
        assert max(engine.stats().batches) > 1 or len(requests) == 1  # they were computed together
    for request, drawn in zip(requests, pictures, strict=True):
        assert_alone(pipe, request, drawn)


OF_TEXTS: list[dict[str, Any]] = [
    {"steps": 8},
    {"steps": 5, "eta": 1.0},
    {"steps": 4, "eta": "sigma_hat"},
    {"steps": 6, "order": 2},
    {"steps": 3, "guidance_scale": 1.0},
    {"steps": 3, "guidance_scale": 0.5},
    {"steps": 7, "guidance_scale": 9.0, "guidance_rescale": 0.7},
    {"steps": 6, "guidance_interval": (200, 700), "negative_prompt": "a cat"},
    {"steps": 5, "guidance_interval": (2000, 3000)},
    {"steps": 5, "spacing": "linspace"},
    {"steps": 5, "spacing": "quadratic", "order": 2},
    {"timesteps": [900, 333, 32]},
    {"timesteps": (901, 333, 32), "order": 2},
    {"steps": 1},
    {"steps": 3, "number": 2, "eta": 0.3},
    {"steps": 3, "seed": 2**40},
]


def text_requests() -> list[Request]:
    return [Request(**{"prompt": f"a cat {place}", "seed": place, **given}) for place, given in enumerate(OF_TEXTS)]  # type: ignore[arg-type]


def test_texts(pipe: Any) -> None:
    draw_together(pipe, text_requests())


def test_texts_of_several_sizes(pipe: Any) -> None:
    sizes = [(16, 16), (24, 16), (16, 24), (None, None), (24, 16)]
    draw_together(
        pipe, [Request(prompt="a dog", seed=n, steps=3 + n, width=w, height=h) for n, (w, h) in enumerate(sizes)]
    )


def test_start_pictures(pipe: Any) -> None:
    latents = torch.randn(4, 8, 8)
    requests = [
        Request(prompt="a cat", seed=0, steps=5),
        Request(prompt="a cat", seed=1, steps=5, image=picture()),
        Request(prompt="a dog", seed=2, steps=8, image=picture(1), strength=0.5, eta=0.7),
        Request(prompt="a dog", seed=3, steps=8, image=torch.rand(3, 16, 16), strength=1.0),
        Request(prompt="a dog", seed=4, steps=4, image=picture(2, 24), strength=0.6),
        Request(prompt="a dog", seed=5, steps=4, image=picture(2, 40), width=16, height=16),
        Request(prompt="a dog", seed=6, steps=6, image=latents, strength=0.4, order=2),
    ]
    draw_together(pipe, requests)


@pytest.mark.parametrize("strength", [None, 0.5, 1.0])
def test_masks(pipe: Any, strength: float | None) -> None:
    requests = [
        Request(prompt="a cat", seed=0, steps=5),
        Request(prompt="a cat", seed=1, steps=5, image=picture(), mask=upper_half(), strength=strength),
        Request(prompt="a cat", seed=2, steps=8, image=picture(1), mask=upper_half(), strength=strength, eta=1.0),
        Request(prompt="a cat", seed=3, steps=6, image=picture(2), mask=upper_half(), strength=strength, order=2),
        Request(prompt="a cat", seed=4, steps=6, image=picture(2)),
    ]
    draw_together(pipe, requests)


def test_the_strength_that_is_not_said_is_that_of_the_pipelines_class(pipe: Any) -> None:
    painter = quiet(StableDiffusionInpaintPipeline.from_pipe(pipe))
    draw_together(
        painter, [Request(prompt="a", seed=n, steps=5, image=picture(n), mask=upper_half()) for n in range(2)]
    )


def test_a_network_that_was_trained_to_inpaint(inpainter: Any) -> None:
    requests = [
        Request(prompt=f"a cat {n}", seed=n, steps=3 + n, image=picture(n), mask=upper_half(), strength=strength)
        for n, strength in enumerate([None, 0.5, 1.0, 0.7])
    ]
    draw_together(
        inpainter,
        [*requests, Request(prompt="a", seed=9, steps=5, image=picture(), mask=upper_half(), guidance_scale=1)],
    )
    with Engine(inpainter) as engine, pytest.raises(ConfigError, match="for inpainting: give image and mask"):
        engine.submit(Request(prompt="a cat"))


OF_CLASSES: list[dict[str, Any]] = [
    {"steps": 8},
    {"class_label": 1, "steps": 5},
    {"class_label": 2, "steps": 6, "guidance_scale": 3.0},
    {"class_label": 0, "steps": 6, "guidance_scale": 0.5},
    {"class_label": 0, "steps": 4, "guidance_scale": -1.0},
    {"class_label": 1, "steps": 7, "guidance_scale": 2.0, "guidance_rescale": 0.5, "eta": 1.0},
    {"class_label": 1, "steps": 6, "guidance_scale": 2.0, "guidance_interval": [100, 600], "order": 2},
    {"class_label": 3, "timesteps": [900, 400, 20], "number": 1},
    {"class_label": 3, "steps": 9, "eta": "sigma_hat"},
]


@pytest.mark.parametrize(
    "scheduler",
    [
        {},
        {"clip_sample": False},
        {"thresholding": True, "prediction_type": "v_prediction"},
        {"prediction_type": "sample"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"legacy_previous_timestep": True},
        SUITED,
    ],
)
@pytest.mark.thin(every=2)
def test_classes(scheduler: dict[str, Any]) -> None:
    pipe = tiny_pipeline(scheduler=DDIMScheduler(**scheduler), num_class_embeds=5)
    given = [
        settings for settings in OF_CLASSES if not ("legacy_previous_timestep" in scheduler and "order" in settings)
    ]
    draw_together(pipe, [Request(seed=seed, **settings) for seed, settings in enumerate(given)])


def test_recommended_steps_and_guidance() -> None:
    pipe = tiny_pipeline(scheduler=DDIMScheduler(**SUITED), num_class_embeds=4)
    draw_together(pipe, [Request(seed=0, class_label=1), Request(seed=1, class_label=2), Request(seed=2, steps=6)])
    with Engine(pipe) as engine:
        settings = engine.submit(Request(seed=0, class_label=1)).result(60).settings
    assert (settings["steps"], settings["order"], settings["spacing"]) == (4, 2, "optimized")
    assert (settings["guidance_scale"], settings["guidance_rescale"]) == (3.0, 0.5)


def test_no_classes_and_a_learned_variance() -> None:
    requests = [Request(seed=seed, steps=4 + seed, eta=float(seed == 1)) for seed in range(4)]
    draw_together(tiny_pipeline(), requests)
    draw_together(tiny_pipeline(out_channels=6), requests)


def test_a_network_that_was_distilled_under_guidance(pipe: Any) -> None:
    torch.manual_seed(0)
    config = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
    unet = UNet2DConditionModel(**{**config, "time_cond_proj_dim": 32}).eval()
    student = quiet(type(pipe).from_pipe(pipe, unet=unet))
    requests = [Request(prompt="a", seed=n, steps=4, guidance_scale=scale) for n, scale in enumerate([1.0, 4.0, 8.0])]
    draw_together(student, requests)


def test_a_student_says_that_it_was_made_for_other_steps() -> None:
    scheduler = DDIMScheduler(trained_timesteps=[999, 499], recommended_steps=2, recommended_guidance_scale=1.0)
    pipe = tiny_pipeline(scheduler=scheduler, num_class_embeds=4)
    with Engine(pipe) as engine, pytest.warns(UserWarning, match="expect worse pictures"):
        engine.submit(Request(class_label=1, steps=5)).result(60)


@pytest.mark.parametrize("replace", ["hook", "method"])
def test_a_network_with_a_part_that_somebody_replaced(replace: str, texts: str) -> None:
    pipe = quiet(DiffusionPipeline.from_pretrained(texts))
    if replace == "hook":
        pipe.unet.mid_block.register_forward_hook(lambda module, given, out: out * 0.9)
    else:
        inner = pipe.unet.conv_out.forward
        pipe.unet.conv_out.forward = lambda x: inner(x) * 1.1
    draw_together(pipe, [Request(prompt="a", seed=n, steps=3 + n) for n in range(3)])


def test_a_scheduler_with_a_step_of_its_own() -> None:
    class Own(DDIMScheduler):
        def step(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **options: Any) -> Any:
            return super().step(model_output * 0.9, timestep, sample, *args, **options)

    pipe = tiny_pipeline(scheduler=Own(), num_class_embeds=4)
    draw_together(pipe, [Request(seed=n, class_label=1, steps=3 + n) for n in range(3)])


def test_weights_that_change_between_requests(texts: str) -> None:
    pipe = quiet(DiffusionPipeline.from_pretrained(texts))
    request = Request(prompt="a cat", seed=0, steps=3, output_type="pt")
    with Engine(pipe) as engine:
        assert_alone(pipe, request, engine.submit(request).result(60))
        with torch.no_grad():
            pipe.unet.time_embedding.linear_1.weight.mul_(1.5)
            for name, weight in [*pipe.unet.named_parameters(), *pipe.text_encoder.named_parameters()]:
                if "to_k" in name or "final_layer_norm.weight" in name:
                    weight.mul_(2)
        assert_alone(pipe, request, engine.submit(request).result(60))


def test_previews_are_pictures_of_the_predicted_x0(pipe: Any) -> None:
    expected: dict[int, Any] = {}
    name = "pred_original_sample"

    def keep(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> None:
        expected[index + 1] = pipe.decode(values[name], "pt")[0]

    how: dict[str, Any] = {"callback_on_step_end": keep, "callback_on_step_end_tensor_inputs": [name]}
    pipe("a cat", seed=1, num_inference_steps=10, **how)
    masked = Request(prompt="a dog", steps=7, image=picture(), mask=upper_half(), strength=1.0, preview_every=2)
    with Engine(pipe) as engine:
        beside = engine.submit(masked)
        future = engine.submit(Request(prompt="a cat", seed=1, steps=10, previews=3, output_type="pt"))
        steps = [event for event in future.events(60) if isinstance(event, Step)]
        others = [event for event in beside.events(60) if isinstance(event, Step)]
    assert [step.number for step in others if isinstance(step.preview, Image.Image)] == [2, 4, 6]
    assert [step.number for step in steps] == list(range(1, 11))
    assert [step.number for step in steps if step.preview is not None] == [2, 5, 8]
    for step in steps:
        if step.preview is not None:
            assert float((step.preview - expected[step.number]).abs().max()) < 1e-4


def test_a_safety_checker_is_asked(texts: str) -> None:
    pipe = quiet(DiffusionPipeline.from_pretrained(texts))
    first = Request(prompt="a cat", seed=0, steps=2, output_type="pt")
    with Engine(pipe) as engine:
        assert engine.submit(first).result(60).is_flagged is None
        pipe.safety_checker = lambda images, clip_input: (images * 0, [True] * len(images))
        futures = engine.submit_all([first, dataclasses.replace(first, seed=1)])
        assert [future.result(60).is_flagged for future in futures] == [True, True]
        assert not futures[0].result().image.any()  # what it has made of the picture


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(texts: str, dtype: torch.dtype) -> None:
    pipe = quiet(DiffusionPipeline.from_pretrained(texts, dtype=dtype))
    requests = [
        Request(prompt="a cat", seed=0, steps=5, eta=1.0, output_type="pt"),
        Request(prompt="a dog", seed=1, steps=6, order=2, guidance_scale=4.0, output_type="pt"),
        Request(prompt="a dog", seed=2, steps=6, image=picture(), mask=upper_half(), output_type="pt"),
    ]
    with Engine(pipe) as engine:
        for request, future in zip(requests, engine.submit_all(requests), strict=True):
            drawn, expected = future.result(60).image, alone(pipe, request)
            assert drawn.dtype == expected.dtype == dtype
            assert float((drawn - expected).abs().max()) < (0.1 if dtype == torch.bfloat16 else 1e-9)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": None}, "prompt must be a text"),
        ({"prompt": ["a", "b"]}, "prompt must be a text"),
        ({"negative_prompt": 3}, "negative_prompt must be a text"),
        ({"class_label": 1}, "class_label is not for this model, which draws texts"),
        ({"steps": 0}, "steps must be an int of 1 or more"),
        ({"steps": 2.5}, "steps must be an int of 1 or more"),
        ({"steps": 1001}, "steps"),
        ({"eta": -1.0}, "eta"),
        ({"eta": 0.5, "order": 2}, "order=2 is for a plan"),
        ({"order": 3}, "order must be 1 or 2"),
        ({"spacing": "sideways"}, "sideways"),
        ({"spacing": "optimized", "steps": 5}, "optimized"),
        ({"timesteps": [1, 2]}, "timesteps"),
        ({"timesteps": [5000]}, "timesteps"),
        ({"timesteps": 500}, "timesteps must be a list of ints, not 500"),
        ({"timesteps": "500"}, "timesteps must be a list of ints, not '500'"),
        ({"spacing": ["leading"]}, "spacing"),
        ({"eta": "much"}, "eta"),
        ({"timesteps": [500, 1], "steps": 2}, "give either timesteps, or steps"),
        ({"timesteps": [500, 1], "spacing": "leading"}, "give either timesteps, or steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be finite"),
        ({"guidance_scale": "much"}, "guidance_scale must be a number"),
        ({"guidance_rescale": 2.0}, "guidance_rescale must be in"),
        ({"guidance_interval": (5, 1)}, "guidance_interval"),
        ({"guidance_interval": (5,)}, "guidance_interval must be two timesteps"),
        ({"guidance_interval": (1.5, 2)}, "guidance_interval must be two timesteps"),
        ({"width": 15}, "width must be a multiple of 2"),
        ({"height": -16}, "height must be a positive int"),
        ({"strength": 0.5}, "strength is for a picture to start from"),
        ({"mask": upper_half()}, "mask is for a picture to start from"),
        ({"image": picture(), "strength": 1.5}, "strength must be a number in"),
        ({"image": picture(), "strength": 0.001, "steps": 5}, "leaves none of 5 steps"),
        ({"image": torch.rand(2, 3, 16, 16)}, "image must be one picture, not 2"),
        ({"image": "heart.png"}, "image must be a PIL image"),
        ({"image": picture(), "mask": torch.rand(2, 1, 16, 16)}, "mask must be one picture, not 2"),
        ({"image": picture(), "mask": torch.rand(3, 16, 16, 3)}, "mask"),
        ({"seed": -1}, "seed must be an int of 0 or more"),
        ({"seed": True}, "seed must be an int of 0 or more"),
        ({"number": -1}, "number must be an int of 0 or more"),
        ({"previews": -1}, "previews must be an int of 0 or more"),
        ({"preview_every": 0}, "preview_every must be an int of 1 or more"),
        ({"previews": 2, "preview_every": 2}, "give previews or preview_every"),
        ({"deadline": 0}, "deadline must be a positive number"),
        ({"deadline": float("nan")}, "deadline must be a positive number"),
        ({"output_type": "np"}, "output_type='np' is neither"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_at_once(pipe: Any, given: dict[str, Any], message: str) -> None:
    with Engine(pipe) as engine:
        with pytest.raises(ConfigError, match=message) as caught:
            engine.submit(Request(**{"prompt": "a cat", **given}))
        assert "num_inference_steps" not in str(caught.value)
        assert "mask_image" not in str(caught.value)
        assert engine.stats().submitted == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "a cat"}, "prompt is not for this model"),
        ({"image": picture()}, "image is not for this model"),
        ({"strength": 0.5}, "strength is not for this model"),
        ({"class_label": 7}, "class_label must be in 0…3"),
        ({"class_label": "7"}, "class_label must be an int"),
        ({"width": 16}, "draws pictures of 8x8 alone"),
    ],
)
def test_what_a_model_of_classes_refuses(given: dict[str, Any], message: str) -> None:
    with Engine(tiny_pipeline(num_class_embeds=4)) as engine, pytest.raises(ConfigError, match=message):
        engine.submit(Request(**given))


def test_what_a_model_without_classes_refuses() -> None:
    with Engine(tiny_pipeline()) as engine:
        with pytest.raises(ConfigError, match="knows no classes"):
            engine.submit(Request(class_label=1))
        with pytest.raises(ConfigError, match="knows no classes: leave guidance_scale out"):
            engine.submit(Request(guidance_scale=2.0))


def test_engines_are_for_pipelines_that_draw(pipe: Any) -> None:
    with pytest.raises(ConfigError, match="StableDiffusionXLPipeline or a DDIMPipeline, not a AutoencoderKL"):
        Engine(pipe.vae)
    away = type(pipe).from_pipe(pipe)
    away._offload = torch.device("cuda")
    with pytest.raises(ConfigError, match="instead of offloading"):
        Engine(away)
    silent = type(pipe).from_pipe(pipe, text_encoder=None)
    with Engine(silent) as engine, pytest.raises(ConfigError, match="has no text_encoder"):
        engine.submit(Request(prompt="a"))


def test_weights_are_refused_and_new_words_are_not(pipe: Any) -> None:
    """Texts with weights may differ in length; a word that is learnt on the way is drawn from then on."""
    own = {"tokenizer": copy.deepcopy(pipe.tokenizer), "text_encoder": copy.deepcopy(pipe.text_encoder)}
    own_pipe = quiet(type(pipe).from_pipe(pipe, **own))
    request = Request("a <toy>", seed=1, steps=2, output_type="pt")
    with Engine(own_pipe) as engine:
        before = engine.submit(request).result(60)
        own_pipe.load_textual_inversion({"<toy>": torch.ones(2, 32)})
        drawn = engine.submit(request).result(60)
        assert not torch.equal(before.image, drawn.image)
        assert_alone(own_pipe, request, drawn)
        own_pipe.weights = "a1111"
        with pytest.raises(ConfigError, match=r"set pipe.weights = None"):
            engine.submit(request)
