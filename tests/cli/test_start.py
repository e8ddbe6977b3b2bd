"""What `ddim sample` imports: what it does not need would be waited for at every start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tiny import save_tiny

CODE = """
import sys
from ddim.cli import main
assert main(["sample", "--model", sys.argv[1], "--steps", "2", "--out", "x.png"]) == 0
print(*sys.modules)
"""


def test_a_png_needs_neither_the_other_formats_nor_evaluation(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    run = [sys.executable, "-c", CODE, model]
    found = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True, env=dict(os.environ)).stdout
    modules = set(found.split())
    assert {"torch", "ddim.pipelines.pixels", "PIL.PngImagePlugin"} <= modules
    assert not {"PIL.PdfImagePlugin", "ddim.evaluation", "ddim.backends.openvino", "ddim.training"} & modules
