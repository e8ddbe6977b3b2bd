"""Where a checkpoint that is one file lies: on this machine, or on the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ddim.checkpoint.hub import Repository
from ddim.errors import CheckpointError


def locate(path: str | os.PathLike[str], options: dict[str, Any]) -> Path:
    """The file, fetched from the hub if it is there.

    Raises:
        CheckpointError: it is not there, or a pickle.
        TypeError: options that are not of the hub.
    """
    name = os.fspath(path)
    if Path(name).suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise CheckpointError(
            f"{name} is a pickle, which can run code when it is read, so it is not: get the .safetensors file of the "
            "same model, or convert it where you trust it"
        )
    url = re.fullmatch(
        r"(?:https://)?(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/(?:blob|resolve)/([^/]+)/([^?]+)(?:\?.*)?", name
    )
    if url is not None:
        options = {"revision": url[2], **options}
    repository = Repository.open(url[1] if url else name, options)
    if options:
        raise TypeError(f"from_single_file has no argument {', '.join(sorted(options))}")
    if url is not None:
        found = repository.find(url[3])
        if found is None:
            raise CheckpointError(f"{url[1]} has no file {url[3]}")
        return found
    if "://" in name:
        raise CheckpointError(f"{name} is no file of the hub: download it, and give its path")
    if os.path.isdir(name):
        raise CheckpointError(f"{name} is a folder: from_pretrained loads those")
    return Path(name)
