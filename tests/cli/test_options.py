"""The commands' options: their choices are those that there are, and their help can be understood.

What may be chosen is spelt out beside the options, so that `--help` needs no torch.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterable
from typing import Any, get_args, get_type_hints

import pytest
import torch

from ddim.backends import BACKENDS
from ddim.cli import COMMANDS, edit, interpolate, invert, load, options
from ddim.cli.help import options as help_options
from ddim.interpolation import BETWEEN, INVERSIONS
from ddim.inversion import METHODS
from ddim.process import PREDICTIONS, SIGMA_HAT
from ddim.schedule import BETA_SCHEDULES, SPACINGS
from ddim.training import settings
from ddim.training.trainer import learning_rate_factor


def hint(kind: type, field: str) -> Any:
    return get_type_hints(kind)[field]


@pytest.mark.parametrize(
    ("choices", "table"),
    [
        (options.ChosenSpacing, (*SPACINGS, "optimized")),
        (settings.Spacing, (*SPACINGS, "optimized")),
        (settings.PredictionType, PREDICTIONS),
        (settings.BetaSchedule, BETA_SCHEDULES),
        (get_args(options.AnyEta)[1], (SIGMA_HAT,)),
        (get_args(options.Backend)[0], (*BACKENDS, "auto")),
        (invert.Inversion, METHODS),
        (hint(edit.EditSettings, "method"), ("cycle", *METHODS)),
        (hint(interpolate.InterpolateSettings, "method"), INVERSIONS),
        (hint(interpolate.InterpolateSettings, "between_texts"), BETWEEN),
    ],
)
def test_the_choices_are_those_of_the_table(choices: Any, table: Iterable[str]) -> None:
    assert sorted(get_args(choices)) == sorted(table)


def test_precisions_are_types_of_torch() -> None:
    assert all(getattr(torch, name).is_floating_point for name in get_args(options.Precision))


def test_every_learning_rate_schedule_has_a_factor() -> None:
    for name in get_args(settings.Schedule):
        run = settings.PixelSettings(output_dir="", lr_scheduler=name, lr_warmup_steps=0)
        assert 0 <= learning_rate_factor(run, 5, 10) <= 1


@pytest.mark.parametrize("words", COMMANDS)
def test_the_help_of_every_option_is_in_whole_sentences(words: str) -> None:
    told = [option.text for option in help_options(words, load(COMMANDS[words].settings))]
    assert len(told) == sum(field.init for field in dataclasses.fields(load(COMMANDS[words].settings)))
    for text in told:
        assert text[:1].isupper(), text
        assert text.endswith("."), text
        assert len(text.split()) > 3, text
        assert not text.startswith(("Of ", "As ", "At ", "In ")), text


@pytest.mark.parametrize("words", COMMANDS)
def test_no_help_is_broken_in_the_middle(words: str) -> None:
    """What stands under a field is shown with the source's line breaks: longer help goes into `tyro.conf.arg`."""
    for kind in load(COMMANDS[words].settings).__mro__[:-1]:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(tree, ast.ClassDef)
        for node in tree.body[1:]:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                assert "\n" not in str(node.value.value), node.value.value
