"""What the engine keeps of timesteps and texts, and what it gives the network: nothing is computed twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from alone import assert_alone
from tiny import tiny_pipeline
from torch import Tensor

from ddim import DiffusionPipeline
from ddim.models import ChosenTimes
from ddim.serving import Engine, Request, Step
from ddim.serving import network as networks
from ddim.serving.network import Network


@pytest.fixture
def pipe(texts: str) -> Any:
    pipe = DiffusionPipeline.from_pretrained(texts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def asked(**given: Any) -> Request:
    return Request(**{"prompt": "a cat", "steps": 6, "seed": 0, "output_type": "pt", **given})


def test_what_does_not_change_is_computed_once(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()

    def counted(owner: Any, name: str, size: Any) -> None:
        own = getattr(owner, name)

        def counting(*given: Any, **named: Any) -> Any:
            counts[name] += size(*given)
            return own(*given, **named)

        monkeypatch.setattr(owner, name, counting)

    counted(type(pipe.unet), "project_text", lambda unet, text: len(text))
    counted(type(pipe.unet), "embed", lambda unet, timesteps: len(timesteps))
    counted(type(pipe), "embed", lambda pipe, texts: len(texts))
    counted(Network, "_side_by_side", lambda network, texts: 1)
    with Engine(pipe) as engine:
        futures = engine.submit_all([asked(seed=n, prompt=f"a cat {n % 2}", steps=6 + 3 * (n == 3)) for n in range(4)])
        pictures = [future.result(60) for future in futures]
        timesteps = {t for steps in (6, 9) for t in pipe.scheduler.plan(steps).timesteps}
        assert len(timesteps) < 15
        # two prompts and the empty one; each timestep; and joined for four samples, then for the one that is left
        assert counts == {"embed": 3 + len(timesteps), "project_text": 3, "_side_by_side": 2}
        again = engine.submit(asked(prompt="a cat 0", seed=9))
        again.result(60)
        assert counts == {"embed": 3 + len(timesteps), "project_text": 3, "_side_by_side": 3}
    monkeypatch.undo()
    for future, picture in zip([*futures, again], [*pictures, again.result()], strict=True):
        assert_alone(pipe, future.request, picture)


def test_guidance_is_computed_within_its_interval_alone(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    own = Network.__call__

    def counting(self: Network, x: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(x))
        return own(self, x, *rest)

    monkeypatch.setattr(Network, "__call__", counting)
    plans = [asked(), asked(guidance_scale=1.0, seed=1), asked(guidance_interval=(300, 600), seed=2)]
    with Engine(pipe) as engine:
        for future in engine.submit_all(plans):
            future.result(60)
    within = [300 <= timestep <= 600 for timestep in pipe.scheduler.plan(6).timesteps]
    assert 0 < sum(within) < 6
    assert sizes == [4 + inside for inside in within]


def test_a_table_of_timesteps_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline(num_class_embeds=4)
    monkeypatch.setattr(networks, "LARGEST_TABLE", 5 * sum(pipe.unet.time_widths))
    with Engine(pipe) as engine:
        requests = [Request(seed=n, class_label=n, steps=4 + n, output_type="pt") for n in range(3)]
        futures = engine.submit_all(requests)
        for request, future in zip(requests, futures, strict=True):
            assert_alone(pipe, request, future.result(60))
        table = engine._driver.network._table
    assert table is not None
    assert len(table) <= 15


def test_weights_and_backends_that_change_on_the_way(pipe: Any) -> None:
    """A change takes effect at once for all that runs, as it does in a run of the pipeline."""
    used: list[int] = []

    def runner(*inputs: Tensor) -> Tensor:
        used.append(len(inputs[0]))
        out: Tensor = pipe.unet.core(*inputs)
        return out

    def change(event: Any) -> None:
        if isinstance(event, Step) and event.number == 3:
            pipe.unet.runner = runner
            with torch.no_grad():
                pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight.mul_(-3)
                pipe.unet.time_embedding.linear_2.weight.mul_(2)

    def changing(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> None:
        change(Step(index + 1, 6))

    kept = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    expected = pipe("a cat", num_inference_steps=6, seed=0, output_type="pt", callback_on_step_end=changing).images[0]
    assert not used  # a run of the pipeline goes on with the backend of its beginning; an engine runs for ever
    pipe.unet.load_state_dict(kept)
    pipe.unet.runner = None
    with Engine(pipe) as engine:
        future = engine.submit(asked())
        future.listen(change)
        drawn = future.result(60).image
    assert float((drawn - expected).abs().max()) < 1e-4
    assert used == [2, 2, 2]


def test_a_runner_says_how_large_its_batches_are(pipe: Any) -> None:
    class Even:
        """A backend that wants eight samples, or a multiple."""

        seen: list[tuple[int, ...]]

        def __init__(self, network: Any) -> None:
            self.network, self.seen = network, []

        def rounded(self, batch: int) -> int:
            return -(-batch // 8) * 8

        def __call__(self, *inputs: Tensor) -> Tensor:
            assert {len(x) for x in inputs} == {len(inputs[0])}
            self.seen.append(tuple(inputs[0].shape))
            out: Tensor = self.network.core(*inputs)
            return out

    pipe.unet.runner, pipe.vae.runner = Even(pipe.unet), None
    requests = [asked(seed=n, steps=2 + n, eta=float(n == 1), guidance_scale=1 + n) for n in range(4)]
    with Engine(pipe) as engine:
        pictures = [future.result(60) for future in engine.submit_all(requests)]
    assert {shape[0] for shape in pipe.unet.runner.seen} == {8}
    pipe.unet.runner = None
    for request, picture in zip(requests, pictures, strict=True):
        assert_alone(pipe, request, picture)


def test_each_sample_may_have_another_row() -> None:
    table = torch.arange(12.0).view(4, 3)
    chosen = ChosenTimes(table, torch.tensor([3, 0, 3]))
    assert torch.equal(chosen.at(torch.tensor(5)), table[[3, 0, 3]])
