"""Our scheduler inside LeRobot's own diffusion policy: training, and the actions of a robot.

The checks are in `tests/support/in_lerobot.py`. LeRobot 0.4.4 is fetched by pip, without the packages that it requires.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.mark.slow  # it fetches packages, and imports diffusers and transformers in a process of its own
def test_in_lerobot(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path)]
    fetched = subprocess.run([*pip, "lerobot==0.4.4", "einops==0.8.2"], capture_output=True, text=True, check=False)
    if fetched.returncode:
        pytest.skip(f"the registry did not give lerobot: {fetched.stderr[-300:]}")
    for wheel in tmp_path.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).parent / "support/in_lerobot.py")],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path]), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("the same:") == 4
