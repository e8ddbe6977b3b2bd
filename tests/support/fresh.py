"""Code in a process of its own, to see what it imports and what it costs."""

from __future__ import annotations

import os
import subprocess
import sys


def python(code: str) -> str:
    """What the code prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run_file(file: str, *arguments: str, timeout: int = 300) -> str:
    """What a test's file prints as a program; it finds the helpers beside the tests, as here."""
    done = subprocess.run(
        [sys.executable, file, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
