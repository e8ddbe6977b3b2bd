"""`ddim completion`: what makes a shell complete the commands and their options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

Shell = Literal["bash", "zsh", "fish"]


@dataclass(frozen=True)
class CompletionSettings:
    """Print a script by which a shell completes the commands and their options when the Tab key is pressed.

    In bash and zsh it is used by `source <(ddim completion bash)`, in ~/.bashrc or ~/.zshrc for good; in fish by
    `ddim completion fish | source`. It needs a python3 on the PATH.

        ddim completion bash
    """

    shell: tyro.conf.Positional[Shell]
    """The shell that the script is for: bash, zsh or fish."""


def run_completion(settings: CompletionSettings) -> None:
    from ddim.cli import every_command

    tyro.cli(every_command(), prog="ddim", args=["--tyro-print-completion", settings.shell])
