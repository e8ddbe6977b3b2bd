"""Our schedulers inside diffusers' pipelines, under the newest diffusers and under the oldest that runs here.

The checks are in `tests/support/in_diffusers.py`. The newest diffusers is the one that is installed. The oldest ones
are fetched by pip: 0.35.2, since those before it ask transformers 5 for what it no longer has; and 0.29.0 where
transformers cannot be imported, since those before it ask huggingface_hub for `cached_download`, which is gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import in_diffusers
import pytest
from fresh import python

CHECKS = dict(in_diffusers.checks())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "check_saved_without_us" else []) for name in CHECKS],
)
@pytest.mark.filterwarnings("ignore")  # diffusers', of its own future
def test_in_diffusers(name: str, tmp_path: Path) -> None:
    CHECKS[name](tmp_path)


def test_nothing_of_it_is_imported_and_nothing_differs_without() -> None:
    code = """
import sys
sys.modules["diffusers"] = None
import ddim
scheduler = ddim.DDIMScheduler()
scheduler.set_timesteps(5)
print("diffusers" in [name for name, module in sys.modules.items() if module is not None])
print(scheduler.__class__ is ddim.DDIMScheduler, scheduler.__module__.startswith("ddim."))
print(scheduler.compatibles == [ddim.DDIMScheduler], type(scheduler.__class__()) is ddim.DDIMScheduler)
"""
    assert python(code).split() == ["False", "True", "True", "True", "True"]


# The fast test beside it is test_in_diffusers.
@pytest.mark.slow
def test_a_scheduler_that_was_there_before_diffusers() -> None:
    code = """
import ddim
scheduler = ddim.DDIMScheduler()
before = scheduler.__class__
import diffusers
print(before is ddim.DDIMScheduler, isinstance(scheduler, diffusers.DDIMScheduler), scheduler.__module__)
"""
    assert python(code).split() == ["True", "True", "diffusers.schedulers.scheduling_ddim"]


@pytest.mark.slow
@pytest.mark.parametrize(("version", "options"), [("0.35.2", []), ("0.29.0", ["--no-text"])])
def test_in_the_oldest_diffusers(version: str, options: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    fetched = subprocess.run([*pip, f"diffusers=={version}"], capture_output=True, text=True, check=False, timeout=600)
    if fetched.returncode:
        pytest.skip(f"the registry did not give diffusers {version}: {fetched.stderr[-300:]}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", in_diffusers.__file__, *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ran = [line.removeprefix("right: ") for line in done.stdout.splitlines() if line.startswith("right: ")]
    assert done.stdout.strip().endswith(f"diffusers {version}")
    wanted: list[str] = [name for name in CHECKS if not (options and name in in_diffusers.NEEDS_TEXT)]
    assert ran == wanted
    assert len(ran) >= 7
