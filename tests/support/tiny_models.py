"""Tiny models in folders, which every test can ask for by these names: `tests/conftest.py` hands them on."""

from __future__ import annotations

import pytest
import torch
from tiny import save_tiny
from tiny_sd import tiny_reference


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A class-conditional pipeline of three classes and a null class; grey, 8x8."""
    torch.manual_seed(0)
    return save_tiny(tmp_path_factory.mktemp("classes"), num_class_embeds=4)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A text-to-image pipeline that predicts v."""
    folder = tmp_path_factory.mktemp("sd")
    tiny_reference(folder, 1, prediction_type="v_prediction")
    return str(folder)
