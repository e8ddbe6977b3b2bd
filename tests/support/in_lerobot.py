"""LeRobot's own diffusion policy with a scheduler of ours in the place of diffusers': a program of its own.

    PYTHONPATH=FOLDER python tests/support/in_lerobot.py    # FOLDER has lerobot and einops, without what they require

LeRobot requires many packages that a policy does not use: its data sets, its configuration by command lines,
torchvision's pictures. They are stood in for by empty classes; the policy, its network and its loops are LeRobot's.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

import diffusers
import torch
import transformers  # noqa: F401  (which would ask for torchvision if it were imported after it seems to be there)
from torch import Tensor

import ddim

_ABSENT = ("torchvision", "draccus", "lerobot.datasets", "lerobot.processor", "lerobot.configs.train", "lerobot.optim")


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds for each name in `_ABSENT` a module that has an empty class of every name."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        wanted = any(f"{name}.".startswith(f"{absent}.") for absent in _ABSENT)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = _empty_class  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _empty_class(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"register_subclass": classmethod(lambda cls, name: lambda kind: kind)})


@functools.cache
def lerobot() -> tuple[Any, Any, Any]:
    """LeRobot's modules of the policy, of its configuration and of its types."""
    sys.meta_path.insert(0, _Absent())
    package = types.ModuleType("lerobot.policies")  # whose own file imports all policies there are
    package.__path__ = [f"{importlib.import_module('lerobot').__path__[0]}/policies"]
    sys.modules["lerobot.policies"] = package
    names = ("policies.diffusion.modeling_diffusion", "policies.diffusion.configuration_diffusion", "configs.types")
    modeling, configuration, kinds = (importlib.import_module(f"lerobot.{name}") for name in names)
    return modeling, configuration, kinds


def policy(**options: Any) -> Any:
    """A small DiffusionPolicy of a robot with three numbers of state, in a world of two, with seven actions."""
    modeling, configuration, kinds = lerobot()
    feature, kind = kinds.PolicyFeature, kinds.FeatureType
    torch.manual_seed(0)
    config = configuration.DiffusionConfig(
        noise_scheduler_type="DDIM",
        num_inference_steps=10,
        down_dims=(16, 32),
        n_groups=4,
        diffusion_step_embed_dim=16,
        device="cpu",
        input_features={
            "observation.state": feature(kind.STATE, (3,)),
            "observation.environment_state": feature(kind.ENV, (2,)),
        },
        output_features={"action": feature(kind.ACTION, (7,))},
        **options,
    )
    return modeling.DiffusionPolicy(config)


def with_ours(policy: Any) -> Any:
    """The lines of docs/robots.md."""
    theirs = policy.diffusion.noise_scheduler
    policy.diffusion.noise_scheduler = ddim.DDIMScheduler.from_config(theirs.config)
    assert isinstance(policy.diffusion.noise_scheduler, diffusers.DDIMScheduler)
    return policy


def losses(policy: Any, rounds: int = 6) -> list[float]:
    """Those of some steps of training."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    found = []
    for _ in range(rounds):
        batch = {
            "observation.state": torch.randn(8, 2, 3),
            "observation.environment_state": torch.randn(8, 2, 2),
            "action": torch.rand(8, 16, 7) * 2 - 1,
            "action_is_pad": torch.zeros(8, 16, dtype=torch.bool),
        }
        loss, _ = policy.forward(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def actions(policy: Any, ticks: int = 20) -> Tensor:
    """What the robot is told to do in so many ticks; every eighth one draws a new trajectory."""
    torch.manual_seed(2)
    policy.eval()
    policy.reset()
    observations = (
        {"observation.state": torch.randn(1, 3), "observation.environment_state": torch.randn(1, 2)}
        for _ in range(ticks)
    )
    return torch.stack([policy.select_action(each) for each in observations])


def main() -> None:
    for options in (
        {},
        {"prediction_type": "sample"},
        {"num_train_timesteps": 1000, "beta_schedule": "linear", "clip_sample_range": 2.0},
        {"clip_sample": False, "do_mask_loss_for_padding": True},
    ):
        ours, theirs = with_ours(policy(**options)), policy(**options)
        assert type(ours.diffusion.noise_scheduler) is ddim.DDIMScheduler
        assert type(theirs.diffusion.noise_scheduler) is diffusers.DDIMScheduler
        torch.testing.assert_close(torch.tensor(losses(ours)), torch.tensor(losses(theirs)), atol=1e-5, rtol=0)
        theirs.load_state_dict(ours.state_dict())  # which Adam has moved apart in the last digits
        done, expected = actions(ours), actions(theirs)
        torch.testing.assert_close(done, expected, atol=1e-4, rtol=1e-4)
        assert expected.std() > 0.1
        print("the same:", options or "as LeRobot has it", f"{(done - expected).abs().max():.0e}")


if __name__ == "__main__":
    main()
