"""What a run of `ddim evaluate` keeps in its folder, so that it can be killed at any time and go on.

    settings.json                            what the run is; another run is refused
    reference.safetensors                    the data's features
    cells/eta-0_steps-10_seed-0/00003.safetensors   the features of a batch, while its cell is being drawn
    cells/eta-0_steps-10_seed-0.safetensors  the features of all of a cell's samples
    cells/eta-0_steps-10_seed-0.json         what was measured: written last, so a cell that has it is finished

Each file is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddim.checkpoint import fingerprint
from ddim.checkpoint.files import read_json, read_metadata, read_tensors, save_tensors, write_json
from ddim.errors import CheckpointError, ConfigError
from ddim.process import Eta
from ddim.sampling import Pipeline


@dataclass(frozen=True)
class Cell:
    """One entry of the table: so many steps, one eta, one seed."""

    eta: Eta
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """
        >>> Cell(0.0, 10, 3).name, Cell("sigma_hat", 10, 3).name
        ('eta-0_steps-10_seed-3', 'eta-sigma_hat_steps-10_seed-3')
        """
        eta = self.eta if isinstance(self.eta, str) else f"{self.eta:g}"
        return f"eta-{eta}_steps-{self.steps}_seed-{self.seed}"


@dataclass(frozen=True)
class Batch:
    """The features of a batch of pictures, and what drawing them took.

    Attributes:
        features: (n, d).
        seconds: the time that passed.
        cpu_seconds: the time that the processors spent, all threads together.
    """

    features: Tensor
    seconds: float
    cpu_seconds: float


class Folder:
    """The folder in which a run keeps what it has drawn and measured.

    Args:
        path: the folder, which is made if it is not there.
        settings: all that the figures depend on, as JSON can hold it.

    Raises:
        ConfigError: the folder is of a run with other settings; lists them.
        CheckpointError: it cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        file = self.path / "settings.json"
        wanted = json.loads(json.dumps(settings))
        if file.exists():
            found = read_json(file)
            names = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
            if names:
                told = "; ".join(f"{name} was {found.get(name)!r}, is {wanted.get(name)!r}" for name in names)
                raise ConfigError(f"{self.path} has figures under other settings ({told}): give another --out")
        elif (self.path / "cells").exists():
            raise ConfigError(f"{self.path} has figures but no settings.json: give another --out")
        else:
            write_json(file, wanted)

    # --- the data ----------------------------------------------------------------------------------------------------

    @property
    def _reference(self) -> Path:
        return self.path / "reference.safetensors"

    def load_reference(self) -> Tensor | None:
        """The data's features, (m, d), if they were kept."""
        return read_tensors(self._reference)["features"] if self._reference.exists() else None

    def save_reference(self, features: Tensor) -> None:
        save_tensors(self._reference, {"features": features})
        shutil.rmtree(self.path / "reference", ignore_errors=True)

    def load_reference_part(self, number: int) -> Tensor | None:
        """The features of a part of the data, if they were kept by `save_reference_part`."""
        file = self._reference_part(number)
        return read_tensors(file)["features"] if file.exists() else None

    def save_reference_part(self, number: int, features: Tensor) -> None:
        save_tensors(self._reference_part(number), {"features": features})

    def _reference_part(self, number: int) -> Path:
        return self.path / "reference" / f"{number:05d}.safetensors"

    # --- cells -------------------------------------------------------------------------------------------------------

    def _batches(self, cell: Cell) -> Path:
        return self.path / "cells" / cell.name

    def _batch(self, cell: Cell, number: int) -> Path:
        return self._batches(cell) / f"{number:05d}.safetensors"

    def _file(self, cell: Cell, suffix: str) -> Path:
        return self.path / "cells" / f"{cell.name}{suffix}"

    def figures(self, cell: Cell) -> dict[str, Any] | None:
        """What was measured of a cell; None if it is not finished."""
        file = self._file(cell, ".json")
        return read_json(file) if file.exists() else None

    def all_figures(self) -> list[dict[str, Any]]:
        """The figures of every finished cell in the folder, also of earlier runs over other steps and etas."""
        found = [read_json(file) for file in sorted((self.path / "cells").glob("*.json"))]
        return sorted(found, key=lambda each: (isinstance(each["eta"], str), each["eta"], each["steps"], each["seed"]))

    def load_whole(self, cell: Cell) -> Batch | None:
        """All that was drawn of a cell, if it is in one file already."""
        whole = self._file(cell, ".safetensors")
        return _load(whole) if whole.exists() else None

    def load_batches(self, cell: Cell) -> dict[int, Batch]:
        """What was drawn of a cell that is not finished, by the numbers of the batches."""
        return {int(file.stem): _load(file) for file in self._batches(cell).glob("[0-9]*.safetensors")}

    def save_batch(self, cell: Cell, number: int, batch: Batch) -> None:
        _save(self._batch(cell, number), batch)

    def load_features(self, cell: Cell) -> Tensor:
        """The features of all samples of a finished cell, (n, d)."""
        return _load(self._file(cell, ".safetensors")).features

    def has_batch(self, cell: Cell, number: int) -> bool:
        """Whether a batch of a cell is there already."""
        return self._file(cell, ".safetensors").exists() or self._batch(cell, number).exists()

    def finish(self, cell: Cell, batch: Batch, figures: Mapping[str, Any]) -> None:
        """Keep a cell's features in one file, and its figures."""
        _save(self._file(cell, ".safetensors"), batch)
        write_json(self._file(cell, ".json"), figures)
        shutil.rmtree(self._batches(cell), ignore_errors=True)


def joined(batches: list[Batch]) -> Batch:
    """Several batches as one."""
    return Batch(
        torch.cat([batch.features for batch in batches]),
        sum(batch.seconds for batch in batches),
        sum(batch.cpu_seconds for batch in batches),
    )


def _save(path: Path, batch: Batch) -> None:
    metadata = {"seconds": repr(batch.seconds), "cpu_seconds": repr(batch.cpu_seconds)}
    save_tensors(path, {"features": batch.features}, metadata)


def _load(path: Path) -> Batch:
    tensors = read_tensors(path)
    about = read_metadata(path)
    try:
        return Batch(tensors["features"], float(about["seconds"]), float(about["cpu_seconds"]))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is no batch of an evaluation: {error}") from error


def digest(pipe: Pipeline) -> str:
    """A hash of a pipeline's networks and scheduler, by which a run knows another model under the same name."""
    networks = sorted(name for name, part in pipe.components.items() if isinstance(part, nn.Module))
    told = []
    for name in networks:
        network = pipe.components[name]
        config = {key: value for key, value in getattr(network, "config", {}).items() if not key.startswith("_")}
        types = sorted({str(tensor.dtype) for tensor in network.state_dict().values()})
        told.append((name, repr((fingerprint(network), sorted(config.items()), types))))
    told.append(("scheduler", pipe.components["scheduler"].to_json_string()))
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]
