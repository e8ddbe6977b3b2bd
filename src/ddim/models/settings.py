"""What the networks check of the settings in their configs: names that stand for something, and lists that must fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from ddim.errors import ConfigError

T = TypeVar("T")


def look_up(setting: str, name: str, known: Mapping[str, T]) -> T:
    """What a config means by a name: `known[name]`.

    Args:
        setting: what the name is the value of, such as "activation"; begins the error.
        name: what the config says.
        known: every name that may stand there, and what it means.

    Raises:
        ConfigError: the name is not known; the message lists those that are.
    """
    if name not in known:
        raise ConfigError(f"unknown {setting} {name!r:.100}; known are {', '.join(sorted(known))}")
    return known[name]


def check_levels(groups: int, **settings: Sequence[object]) -> None:
    """Check the settings that have one entry for each resolution of a network.

    Args:
        groups: `norm_num_groups`, into which each group norm divides its channels.
        settings: the lists by their names in the config; `block_out_channels` must be among them.

    Raises:
        ConfigError: `groups` is no positive whole number, the lists differ in length, or a number of channels is no
            positive multiple of `groups`.
    """
    if not isinstance(groups, int) or groups < 1:
        raise ConfigError(
            f"norm_num_groups must be a whole number of 1 or more, not {groups!r:.50}: networks without it "
            "(NCSN++, which no DDIM scheduler draws with) are not implemented"
        )
    if len({len(values) for values in settings.values()}) != 1:
        lengths = ", ".join(f"{name} has {len(values)}" for name, values in settings.items())
        raise ConfigError(f"these must have one entry for each resolution: {lengths}")
    for channels in settings["block_out_channels"]:
        if not isinstance(channels, int) or channels < 1 or channels % groups:
            raise ConfigError(f"block_out_channels must be multiples of norm_num_groups={groups}, not {channels}")
