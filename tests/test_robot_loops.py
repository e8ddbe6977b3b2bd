"""Robots' policies as LeRobot and diffusion_policy have them: training, control ticks, inpainted trajectories.

Written anew from how those programs use a scheduler. Each loop takes the library as an argument, `ddim` or `diffusers`,
which is the one import that a user changes; what it gives must be the same.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

import ddim

HORIZON, ACTIONS, SEEN = 16, 7, 5

# What the two programs configure, and other legal choices.
CONFIGS: dict[str, dict[str, Any]] = {
    "diffusion_policy": {"beta_schedule": "squaredcos_cap_v2", "set_alpha_to_one": True, "clip_sample": True},
    "LeRobot": {"beta_schedule": "squaredcos_cap_v2", "clip_sample": True, "clip_sample_range": 1.0},
    "x0": {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
    "v": {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "clip_sample": False},
    "linear": {"beta_schedule": "linear", "steps_offset": 1, "clip_sample_range": 2.0},
}


class Policy(nn.Module):
    """A network over trajectories: ε or x0 of (batch, horizon, actions) from it, the timestep and what was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Embedding(1000, 16)
        self.seen = nn.Linear(SEEN, 16)
        self.net = nn.Sequential(nn.Linear(HORIZON * ACTIONS + 16, 32), nn.Mish(), nn.Linear(32, HORIZON * ACTIONS))

    def forward(self, trajectory: Tensor, timestep: Any, global_cond: Tensor) -> Tensor:
        timesteps = torch.as_tensor(timestep).expand(len(trajectory))
        context = self.time(timesteps) + self.seen(global_cond)
        return self.net(torch.cat([trajectory.flatten(1), context], dim=1)).view_as(trajectory)


def scheduler_of(library: Any, train_steps: int, config: dict[str, Any]) -> Any:
    return library.DDIMScheduler(num_train_timesteps=train_steps, beta_start=0.0001, beta_end=0.02, **config)


# --- the loops -------------------------------------------------------------------------------------------------------


def lerobot_sample(scheduler: Any, policy: Policy, seen: Tensor, steps: int, seed: int) -> Tensor:
    """One control tick: noise to actions; the timesteps are set anew each time."""
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(len(seen), HORIZON, ACTIONS, generator=generator)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        output = policy(sample, torch.full(sample.shape[:1], t, dtype=torch.long), global_cond=seen)
        sample = scheduler.step(output, t, sample, generator=generator).prev_sample
    return sample


def diffusion_policy_sample(
    scheduler: Any, policy: Policy, known: Tensor, mask: Tensor, seen: Tensor, steps: int, seed: int, **options: Any
) -> Tensor:
    """What is known of the trajectory is put back before each evaluation, and at the end."""
    generator = torch.Generator().manual_seed(seed)
    trajectory = torch.randn(known.shape, dtype=known.dtype, device=known.device, generator=generator)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        trajectory[mask] = known[mask]
        output = policy(trajectory, t, global_cond=seen)
        trajectory = scheduler.step(output, t, trajectory, generator=generator, **options).prev_sample
    trajectory[mask] = known[mask]
    return trajectory


def train(library: Any, train_steps: int, config: dict[str, Any], rounds: int = 8) -> tuple[list[float], Policy]:
    """The losses of a few steps of training, and what was trained."""
    torch.manual_seed(0)
    policy, scheduler = Policy(), scheduler_of(library, train_steps, config)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    losses = []
    for _ in range(rounds):
        actions, seen = torch.rand(8, HORIZON, ACTIONS) * 2 - 1, torch.randn(8, SEEN)
        noise = torch.randn(actions.shape, device=actions.device)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(actions),)).long()
        noisy = scheduler.add_noise(actions, noise, timesteps)
        output = policy(noisy, timesteps, global_cond=seen)
        kind = scheduler.config.prediction_type
        if kind == "epsilon":
            target = noise
        elif kind == "sample":
            target = actions
        else:
            target = scheduler.get_velocity(actions, noise, timesteps)
        loss = F.mse_loss(output, target, reduction="none").flatten(1).mean(1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, policy.eval()


# --- with only the import changed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("train_steps", [100, 1000])
@pytest.mark.parametrize("name", CONFIGS)
def test_training(name: str, train_steps: int) -> None:
    (ours, mine), (theirs, other) = (train(library, train_steps, CONFIGS[name]) for library in (ddim, diffusers))
    assert ours == pytest.approx(theirs, abs=1e-5)
    for first, second in zip(mine.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


@pytest.mark.parametrize("train_steps", [100, 1000])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_control_ticks(name: str, train_steps: int) -> None:
    """Several ticks with one scheduler, and with another number of steps in between."""
    torch.manual_seed(0)
    policy, seen = Policy().eval(), torch.randn(3, SEEN)
    schedulers = [scheduler_of(library, train_steps, CONFIGS[name]) for library in (ddim, diffusers)]
    for tick, steps in enumerate([10, 10, 4, 10, 16]):
        ours, theirs = (lerobot_sample(scheduler, policy, seen, steps, tick) for scheduler in schedulers)
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)
    assert schedulers[0].num_inference_steps == schedulers[1].num_inference_steps == 16
    assert schedulers[0].timesteps.tolist() == schedulers[1].timesteps.tolist()


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_inpainted_trajectories(name: str, eta: float) -> None:
    torch.manual_seed(0)
    policy, seen = Policy().eval(), torch.randn(2, SEEN)
    known, mask = torch.rand(2, HORIZON, ACTIONS) * 2 - 1, torch.zeros(2, HORIZON, ACTIONS, dtype=torch.bool)
    mask[:, :2] = True
    ours, theirs = (
        diffusion_policy_sample(
            scheduler_of(library, 100, CONFIGS[name]), policy, known, mask, seen, steps=10, seed=1, eta=eta
        )
        for library in (ddim, diffusers)
    )
    assert torch.equal(ours[mask], known[mask])
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)
    assert (ours - known)[~mask].abs().max() > 0.1


# --- compiled --------------------------------------------------------------------------------------------------------


# Compiling takes seconds, and the others only repeat it.
COMPILED = ["diffusion_policy", *(pytest.param(name, marks=pytest.mark.slow) for name in ("x0", "v"))]


@pytest.fixture
def recompiling_is_an_error() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


def by_scheduler(scheduler: Any, policy: Policy) -> Callable[[Tensor, Tensor], Tensor]:
    """A whole tick, with its `set_timesteps`, as LeRobot's policy has it; the plan is made before it is compiled."""
    scheduler.set_timesteps(10)

    def tick(x: Tensor, seen: Tensor) -> Tensor:
        scheduler.set_timesteps(10)
        for t in scheduler.timesteps:
            x = scheduler.step(policy(x, t, seen), t, x).prev_sample
        return x

    return tick


def by_plan(scheduler: Any, policy: Policy) -> Callable[[Tensor, Tensor], Tensor]:
    """The same by a plan: its timesteps are numbers, and those of the steps are constants of the compiled program."""
    plan = scheduler.plan(10)

    def tick(x: Tensor, seen: Tensor) -> Tensor:
        for t in plan.timesteps:
            x = plan.step(policy(x, t, seen), t, x).prev_sample
        return x

    return tick


@pytest.mark.parametrize("way", [by_scheduler, by_plan])
@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.usefixtures("recompiling_is_an_error")
@torch.no_grad()
@pytest.mark.thin(fast=["diffusion_policy-by_scheduler"])
def test_a_compiled_tick_is_one_graph(name: str, way: Callable[..., Any]) -> None:
    """No graph break, and nothing is compiled again at later ticks."""
    scheduler, policy, counter = scheduler_of(ddim, 100, CONFIGS[name]), Policy().eval(), CompileCounter()
    tick = way(scheduler, policy)
    compiled = torch.compile(tick, backend=counter, fullgraph=True)
    for _ in range(4):
        x, seen = torch.randn(1, HORIZON, ACTIONS), torch.randn(1, SEEN)
        torch.testing.assert_close(compiled(x, seen), tick(x, seen), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.usefixtures("recompiling_is_an_error")
@torch.no_grad()
def test_a_compiled_step_is_one_graph_for_all_steps_and_ticks(name: str) -> None:
    """The network and the scheduler's step together, in a loop that is not compiled."""
    scheduler, policy, counter = scheduler_of(ddim, 100, CONFIGS[name]), Policy().eval(), CompileCounter()

    def step(x: Tensor, t: Tensor, seen: Tensor) -> Tensor:
        return scheduler.step(policy(x, t, seen), t, x).prev_sample

    scheduler.set_timesteps(10)
    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for _ in range(3):
        x = expected = torch.randn(1, HORIZON, ACTIONS)
        seen = torch.randn(1, SEEN)
        scheduler.set_timesteps(10)
        for t in scheduler.timesteps:
            x, expected = compiled(x, t, seen), step(expected, t, seen)
        torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.slow  # it compiles to machine code
@pytest.mark.parametrize("way", [by_scheduler, by_plan])
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.usefixtures("recompiling_is_an_error")
@torch.no_grad()
def test_a_tick_in_machine_code_agrees(way: Callable[..., Any]) -> None:
    tick = way(scheduler_of(ddim, 100, CONFIGS["diffusion_policy"]), Policy().eval())
    compiled = torch.compile(tick, fullgraph=True)
    for _ in range(2):
        x, seen = torch.randn(1, HORIZON, ACTIONS), torch.randn(1, SEEN)
        torch.testing.assert_close(compiled(x, seen), tick(x, seen), atol=1e-5, rtol=1e-5)


# --- docs/robots.md -------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs/robots.md"


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@torch.no_grad()
def test_the_code_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = diffusers.DDIMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    policy = SimpleNamespace(diffusion=SimpleNamespace(noise_scheduler=theirs, num_inference_steps=100))
    names: dict[str, Any] = {"policy": policy, "network": Policy().eval()}
    compiled = torch.compile

    def interpreted(model: Any = None, **options: Any) -> Any:
        """Without machine code, whose making takes long."""
        return compiled(model, **{**options, "backend": "eager"})

    monkeypatch.setattr(torch, "compile", interpreted)
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(block, names)
    ours = policy.diffusion.noise_scheduler
    assert type(ours) is type(names["noise_scheduler"]) is ddim.DDIMScheduler
    assert ours.config.beta_schedule == "squaredcos_cap_v2"
    start, seen = torch.randn(1, HORIZON, ACTIONS), torch.randn(1, SEEN)
    actions = names["act"](start, seen)
    theirs.set_timesteps(10)
    expected = start
    for t in theirs.timesteps:
        expected = theirs.step(names["network"](expected, t, seen), t, expected).prev_sample
    torch.testing.assert_close(actions, expected, atol=1e-4, rtol=1e-4)
    again = names["replan"](actions, 8, seen)
    assert again.shape == actions.shape
    assert again.isfinite().all()


# --- time ------------------------------------------------------------------------------------------------------------

TICK = 10  # steps of a tick


def ticks(library: Any, train_steps: int, is_first: bool) -> Callable[[], None]:
    """`set_timesteps` and ten steps, of a scheduler that was just made, or of one that has made them before."""
    config = CONFIGS["diffusion_policy"]
    sample, output = torch.randn(1, HORIZON, ACTIONS), torch.randn(1, HORIZON, ACTIONS)
    kept = scheduler_of(library, train_steps, config)
    fresh = [scheduler_of(library, train_steps, config) for _ in range(64)] if is_first else []

    def tick() -> None:
        scheduler = fresh.pop() if is_first else kept
        x = sample
        scheduler.set_timesteps(TICK)
        for t in scheduler.timesteps:
            x = scheduler.step(output, t, x).prev_sample

    return tick


def time_ratio(train_steps: int, is_first: bool, rounds: int = 31) -> tuple[float, float, float]:
    """The median of our time over diffusers', each pair of ticks after another; and both medians in microseconds."""
    ours, theirs = (ticks(library, train_steps, is_first) for library in (ddim, diffusers))
    pairs = []
    with torch.inference_mode():
        for tick in (ours, theirs):  # what is imported and allocated at the first call of all
            for _ in range(5):
                tick()
        for _ in range(rounds):
            times = []
            for tick in (ours, theirs):
                start = time.thread_time()  # which other programs have no part in
                tick()
                times.append(time.thread_time() - start)
            pairs.append(times)
    own, other = (statistics.median(column) * 1e6 for column in zip(*pairs, strict=True))
    return statistics.median(mine / their for mine, their in pairs), own, other


@pytest.mark.parametrize("is_first", [True, False], ids=["first call", "later calls"])
@pytest.mark.parametrize("train_steps", [100, 1000])
def test_a_tick_is_faster_than_with_diffusers(train_steps: int, is_first: bool) -> None:
    """It takes a quarter to six tenths of the time; the bound leaves room for a machine that is busy."""
    ratio, own, other = time_ratio(train_steps, is_first)
    assert ratio < 1, f"{own:.0f} µs against {other:.0f} µs"
