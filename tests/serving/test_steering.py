"""Requests that ControlNets steer: each picture is that of the pipeline's call, whatever was drawn beside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from alone import assert_alone
from PIL import Image
from tiny_sd import tiny_reference
from tiny_xl import tiny_xl

from ddim.errors import ConfigError
from ddim.models import ControlNetModel
from ddim.noise import seeded_generators
from ddim.pipelines import DiffusionPipeline
from ddim.serving import Engine, Finished, Request, Step
from ddim.serving.models import uncontrolled
from ddim.serving.probe import probe


def control(unet: Any, seed: int, **config: Any) -> ControlNetModel:
    """A ControlNet for a U-Net that steers strongly."""
    made = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    if config:
        made = ControlNetModel.from_config({**made.config, **config})
    (generator,) = seeded_generators(seed, 1)
    for name, parameter in made.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += (0.3 if name.startswith("controlnet") else 0.05) * noise
    return made.eval()


def loaded(folder: Path, *seeds: int, **config: Any) -> Any:
    pipe: Any = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    networks = [control(pipe.unet, seed, **config) for seed in seeds]
    pipe.controlnet = networks if len(networks) > 1 else networks[0]
    return pipe


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    tiny_reference(folder / "sd", 1)
    tiny_reference(folder / "painter", 1, in_channels=9)
    tiny_xl(folder / "xl")
    return {name: folder / name for name in ("sd", "painter", "xl")}


@pytest.fixture(scope="module")
def sd(folders: dict[str, Path]) -> Any:
    return loaded(folders["sd"], 1)


def noise(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    (generator,) = seeded_generators(seed, 1)
    numbers = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(numbers.numpy())


MASK = Image.linear_gradient("L").resize((16, 16))


def asked(**given: Any) -> Request:
    usual = {"prompt": "a cat", "steps": 5, "seed": 0, "output_type": "pt", "width": 16, "height": 16}
    return Request(**{**usual, **given})


def drawn_together(pipe: Any, requests: list[Request], **how: Any) -> None:
    """Check that pictures that are drawn together are those of the calls alone."""
    with Engine(pipe, **how) as engine:
        futures = engine.submit_all(requests)
        pictures = [future.result(120) for future in futures]
        assert max(engine.stats().batches) == len(requests)
    for request, picture in zip(requests, pictures, strict=True):
        assert_alone(pipe, request, picture)


SHOWN = {"control_image": noise(1)}
MIXED = [
    asked(**SHOWN),
    asked(seed=1),
    asked(seed=2, control_image=noise(2), controlnet_conditioning_scale=0.5, steps=7, eta=1.0),
    asked(seed=3, control_image=noise(3), guess_mode=True, negative_prompt="a dog"),
    asked(seed=4, control_image=noise(4), control_guidance_start=0.2, control_guidance_end=0.7, steps=9),
    asked(seed=5, control_image=noise(5), guidance_scale=1.0),
    asked(seed=6, control_image=noise(6), guidance_interval=(300, 700), guess_mode=True),
    asked(seed=7, control_image=noise(7, (40, 24)), controlnet_conditioning_scale=0.0),
    asked(seed=8, control_image=noise(8), image=noise(9), strength=0.6),
    asked(seed=9, control_image=noise(8), image=noise(9), mask=MASK, strength=0.9),
]


def test_a_picture_is_that_of_the_call_whatever_is_drawn_beside_it(sd: Any) -> None:
    steered = MIXED[0]
    with Engine(sd) as engine:
        one, other = (engine.submit(r).result(60).image for r in (steered, asked(control_image=noise(2))))
    assert float((one - other).abs().max()) > 0.05  # what it is shown matters
    of_one_kind = [request for request in MIXED if request.image is None]
    with Engine(sd) as engine:
        futures = engine.submit_all(MIXED)
        pictures = [future.result(120) for future in futures]
    for request, picture in zip(MIXED, pictures, strict=True):
        assert_alone(sd, request, picture)
    drawn_together(sd, of_one_kind)


def test_several_controlnets_each_with_its_own_picture(folders: dict[str, Path]) -> None:
    pipe = loaded(folders["sd"], 1, 2)
    both = [noise(1), noise(2)]
    drawn_together(
        pipe,
        [
            asked(control_image=both),
            asked(seed=1, control_image=both[::-1], controlnet_conditioning_scale=[0.5, 0.0]),
            asked(seed=2, control_image=both, control_guidance_start=[0.0, 0.5], control_guidance_end=[0.5, 1.0]),
            asked(seed=3),
            asked(seed=4, control_image=both, guess_mode=True),
        ],
    )


def test_a_controlnet_that_says_what_and_not_where(folders: dict[str, Path]) -> None:
    pipe = loaded(folders["sd"], 1, global_pool_conditions=True)
    drawn_together(pipe, [asked(**SHOWN), asked(seed=1, control_image=noise(2), guidance_scale=1.0), asked(seed=2)])


def test_a_network_for_inpainting_shows_its_controlnet_the_latents_alone(folders: dict[str, Path]) -> None:
    pipe = loaded(folders["painter"], 1, in_channels=4)
    start = {"image": noise(9), "mask": MASK, "strength": 1.0}
    drawn_together(pipe, [asked(**start, **SHOWN), asked(seed=1, **start)])


def test_xl_with_its_sizes(folders: dict[str, Path]) -> None:
    pipe = loaded(folders["xl"], 1)
    requests = [asked(**SHOWN, original_size=(99, 77)), asked(seed=1, control_image=noise(2)), asked(seed=2)]
    with Engine(pipe) as engine:
        pictures = [future.result(60).image for future in engine.submit_all(requests)]
    plain = uncontrolled(pipe)
    plain.set_progress_bar_config(disable=True)
    how: dict[str, Any] = {"num_inference_steps": 5, "width": 16, "height": 16, "output_type": "pt"}
    expected = [
        pipe("a cat", seed=0, control_image=noise(1), original_size=(99, 77), **how),
        pipe("a cat", seed=1, control_image=noise(2), **how),
        plain("a cat", seed=2, **how),
    ]
    for picture, call in zip(pictures, expected, strict=True):
        torch.testing.assert_close(picture, call.images[0], rtol=0, atol=1e-4)


def test_a_size_is_that_of_what_is_shown(sd: Any) -> None:
    request = asked(control_image=noise(1, (41, 24)), width=None, height=None)
    with Engine(sd) as engine:
        picture = engine.submit(request).result(60)
    assert picture.image.shape == (3, 24, 40)
    assert_alone(sd, request, picture)


def test_a_part_that_was_replaced_is_called_at_every_step(folders: dict[str, Path]) -> None:
    pipe = loaded(folders["sd"], 1)
    seen: list[int] = []
    pipe.controlnet.mid_block.register_forward_hook(lambda *_: seen.append(1))
    with Engine(pipe) as engine:
        pictures = [future.result(60) for future in engine.submit_all(MIXED[:2])]
    assert len(seen) == 5
    for request, picture in zip(MIXED[:2], pictures, strict=True):
        assert_alone(pipe, request, picture)


def test_what_does_not_change_is_computed_once_a_request(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    for name in ("read", "project_text", "embed"):
        own = getattr(ControlNetModel, name)

        def counting(net: Any, given: Any, *rest: Any, _own: Any = own, _name: str = name, **named: Any) -> Any:
            counts[_name] += len(given)
            return _own(net, given, *rest, **named)

        monkeypatch.setattr(ControlNetModel, name, counting)
    with Engine(sd) as engine:
        for future in engine.submit_all([asked(**SHOWN), asked(seed=1, control_image=noise(2)), asked(seed=2)]):
            future.result(60)
    assert counts == {"read": 2, "project_text": 2, "embed": 5}  # a text and the empty one


def test_it_is_given_only_those_on_which_it_acts(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    own = ControlNetModel.forward

    def counting(net: Any, sample: Any, *rest: Any, **named: Any) -> Any:
        sizes.append(len(sample))
        return own(net, sample, *rest, **named)

    monkeypatch.setattr(ControlNetModel, "forward", counting)
    half = {"control_guidance_end": 0.4, "guess_mode": True}
    with Engine(sd) as engine:
        for future in engine.submit_all([asked(**SHOWN, **half), asked(seed=1), asked(seed=2)]):
            future.result(60)
    assert sizes == [1, 1]


def test_weights_of_a_controlnet_that_change_on_the_way(folders: dict[str, Path]) -> None:
    pipe = loaded(folders["sd"], 1)
    layer = pipe.controlnet.controlnet_mid_block
    kept = layer.weight.detach().clone()

    def change(*_: Any) -> None:
        with torch.no_grad():
            layer.weight.mul_(-3)

    given = {"num_inference_steps": 5, "seed": 0, "output_type": "pt", "width": 16, "height": 16, **SHOWN}
    expected = pipe(
        "a cat", **given, callback_on_step_end=lambda pipe, index, *_: change() if index == 2 else None
    ).images[0]
    with torch.no_grad():
        layer.weight.copy_(kept)
    with Engine(pipe) as engine:
        future = engine.submit(asked(**SHOWN))
        future.listen(lambda event: change() if isinstance(event, Step) and event.number == 3 else None)
        picture = future.result(60).image
    torch.testing.assert_close(picture, expected, rtol=0, atol=1e-4)


def test_companions_change_no_bit_where_that_is_asked_for(sd: Any) -> None:
    found = probe(sd)
    requests = [request for request in MIXED if request.image is None][:7]
    with Engine(sd, slots=found.slots, decoded=found.decoded) as engine:
        alone = [engine.submit(request).result(60).image for request in requests]
        both = [future.result(60).image for future in engine.submit_all(requests)]
    assert all(torch.equal(one, other) for one, other in zip(alone, both, strict=True))
    without = probe(uncontrolled(sd))
    assert without.digest != found.digest  # it looks at what ControlNets compute too


def test_a_backend_runs_those_that_are_steered_with_the_others(folders: dict[str, Path]) -> None:
    pipe = loaded(folders["sd"], 1)
    used: list[int] = []

    def runner(*inputs: Any) -> Any:
        used.append(len(inputs[0]))
        return pipe.unet.core(*inputs)

    pipe.unet.runner = runner
    requests = [asked(**SHOWN), asked(seed=1), asked(seed=2)]
    with Engine(pipe) as engine:
        pictures = [future.result(60) for future in engine.submit_all(requests)]
    pipe.unet.runner = None
    assert used == [6] * 5
    for request, picture in zip(requests, pictures, strict=True):
        assert_alone(pipe, request, picture)


def test_a_cancelled_one_leaves_the_others_alone(sd: Any) -> None:
    with Engine(sd) as engine:
        gone, *stay = engine.submit_all([asked(**SHOWN, steps=300), *MIXED[1:5]])
        stay[1].listen(lambda event: gone.cancel() if isinstance(event, Step) and event.number == 2 else None)
        for future in stay:
            assert_alone(sd, future.request, future.result(60))
        assert gone.cancelled()
        assert isinstance([*stay[0].events()][-1], Finished)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"controlnet_conditioning_scale": 0.5},
            "controlnet_conditioning_scale is for a ControlNet: give control_image",
        ),
        ({"guess_mode": True}, "guess_mode is for a ControlNet"),
        ({**SHOWN, "guess_mode": 1}, "guess_mode must be True or False"),
        ({"control_image": [noise(1), noise(2)]}, "control_image must be one picture for each ControlNet"),
        ({"control_image": 5}, "control_image must be a PIL image"),
        ({"control_image": torch.full((3, 16, 16), torch.nan)}, "control_image has NaN"),
        ({**SHOWN, "controlnet_conditioning_scale": [1.0, 2.0]}, "has 2 numbers for 1 ControlNets"),
        ({**SHOWN, "control_guidance_start": 0.5, "control_guidance_end": 0.5}, "control_guidance_start=0.5 and"),
    ],
)
def test_what_cannot_be_drawn(sd: Any, given: dict[str, Any], message: str) -> None:
    with Engine(sd) as engine, pytest.raises(ConfigError, match=message):
        engine.submit(asked(**given))


def test_a_pipeline_without_controlnets_or_with_another_models(sd: Any, folders: dict[str, Path]) -> None:
    with Engine(uncontrolled(sd)) as engine, pytest.raises(ConfigError, match="this pipeline has none"):
        engine.submit(asked(**SHOWN))
    pipe = loaded(folders["xl"], 1)
    pipe.controlnet = sd.controlnet
    with pytest.raises(ConfigError, match="the ControlNet is for another model"):
        Engine(pipe)
    larger = ControlNetModel.from_unet(sd.unet, conditioning_embedding_out_channels=(8, 16, 16))
    with pytest.raises(ConfigError, match="reads pictures 4 times as large as latents, and the pipeline's are 2 times"):
        Engine(sd.from_pipe(sd, controlnet=larger))
