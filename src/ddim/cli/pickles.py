"""Files that are pickles, which are not read: what to do with them instead."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ddim.errors import CheckpointError

ENDINGS = (".ckpt", ".pt", ".pth", ".bin")


def refuse_pickle(path: str) -> None:
    """Raise a CheckpointError if a model's or an adapter's file is a pickle; it says how to convert it safely."""
    if Path(path).suffix.lower() in ENDINGS and not os.path.isdir(path):
        raise CheckpointError(
            f"{path} is a pickle, which can run code when it is read, so it is not: get the .safetensors file of the "
            f"same weights, or convert it by this, which reads tensors and runs nothing: {converting(path)}"
        )


def converting(path: str) -> str:
    """A command that makes a `.safetensors` file of a pickle of tensors; PyTorch refuses all else that is in it."""
    code = (
        "import sys, torch, safetensors.torch as s; "
        "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); d = d.get('state_dict', d); "
        "s.save_file({k: v.clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}, sys.argv[2])"
    )
    return f'python -c "{code}" {_quoted(path)} {_quoted(str(Path(path).with_suffix(".safetensors")))}'


def _quoted(path: str) -> str:
    return f'"{path}"' if re.search(r"[^\w./:\\-]", path) else path
