"""Who may draw into a folder: one at a time, or one for each shard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ddim.checkpoint.locks import lock
from ddim.errors import CheckpointError, ConfigError

__all__ = ["locked"]


@contextlib.contextmanager
def locked(out: Path, shard: tuple[int, int] | None) -> Iterator[None]:
    """A context in which nobody else draws the same rows into a folder. The system gives it free when a process ends.

    Where the file system has no locks it is not held. Nothing is lost by that: all processes write the same bytes.

    Args:
        shard: (i, n), beside which the other shards may be drawn; None for all rows.

    Raises:
        ConfigError: another process draws into it.
        CheckpointError: the folder cannot be written.
    """
    folder = out / ".job"
    wanted = [("lock", shard is None)]
    if shard is not None:
        wanted.append((f"lock-{shard[0]}-of-{shard[1]}", True))
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, alone in wanted:
                if not lock(stack.enter_context((folder / name).open("a")), alone):
                    raise ConfigError(f"--out {out} is being drawn into by another `ddim generate`: wait until it ends")
        except OSError as error:
            raise CheckpointError(f"{folder} was not written: {error.strerror or error}") from error
        yield
