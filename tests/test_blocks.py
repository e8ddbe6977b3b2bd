"""Every block of code in docs/ runs, or says why not and what runs the like; README.md's are in test_readme.py.

Python blocks run in an empty folder, in one namespace a page; where a page speaks of a model or a file of the reader's
own, a stand-in of that name lies there. So do commands that draw, look and measure, with small numbers in place of
theirs; those that train, serve and install are parsed. tests/scripts/test_notebooks.py runs the three notebooks.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import tyro
from PIL import Image

from ddim import DiffusionPipeline
from ddim.checkpoint import save_tensors
from ddim.checkpoint.hub import BUNDLED
from ddim.cli import COMMANDS, load, main
from ddim.lora import add_lora, lora_state, save_lora

ROOT = Path(__file__).parent.parent
NOTEBOOKS = {"evening", "few-steps", "inversion"}


class Block(NamedTuple):
    """A piece of a page between fences."""

    page: str
    line: int
    language: str
    text: str


def blocks() -> Iterator[Block]:
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page = path.read_text(encoding="utf-8")
        for found in re.finditer(r"^```(\S*)\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE):
            name = path.relative_to(ROOT / "docs").with_suffix("").as_posix()
            yield Block(name, page[: found.start()].count("\n") + 2, found[1], found[2])


BLOCKS = list(blocks())
PYTHON = [block for block in BLOCKS if block.language == "python" and block.page not in NOTEBOOKS]
SHELL = [block for block in BLOCKS if block.language in ("", "sh", "bash")]

# What does not run here: (page, the first line of the block) -> why, the test that runs the like, and a word of it.
ELSEWHERE = {
    ("controlnet", "from ddim import ControlNetModel, StableDiffusionPipeline"): (
        "it needs Stable Diffusion and a ControlNet",
        "tests/pipelines/test_controlled.py",
        "controlnet_conditioning_scale",
    ),
    (
        "controlnet",
        'net = ControlNetModel.from_single_file("control_v11p_sd15_canny_fp16.safetensors", dtype=torch.float16)',
    ): (
        "it needs a ControlNet",
        "tests/checkpoint/test_control_layout.py",
        "from_single_file",
    ),
    ("sdxl", "from ddim import DiffusionPipeline, StableDiffusionXLImg2ImgPipeline"): (
        "it needs Stable Diffusion XL",
        "tests/pipelines/test_xl.py",
        "StableDiffusionXL",
    ),
    ("sdxl", "refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained("): (
        "it needs Stable Diffusion XL and its refiner",
        "tests/pipelines/test_xl.py",
        "denoising_start",
    ),
    ("sdxl", "pipe.scheduler = DDIMScheduler.from_config("): (
        "it needs Stable Diffusion XL",
        "tests/pipelines/test_xl.py",
        "guidance_rescale",
    ),
    ("robots", "import ddim"): ("it needs a policy of LeRobot's", "tests/test_robot_loops.py", "plan"),
    ("robots", "from diffusers.schedulers.scheduling_ddim import DDIMScheduler"): (
        "it is the line that the next block replaces",
        "tests/test_robot_loops.py",
        "DDIMScheduler",
    ),
    ("robots", "import torch"): ("it compiles, with a policy of LeRobot's", "tests/test_robot_loops.py", "fullgraph"),
    ("robots", "def replan(last, done, seen, start=4):"): (
        "it needs a policy of LeRobot's",
        "tests/test_robot_loops.py",
        "timesteps",
    ),
    ("scale", "import webdataset"): ("it reads what a long command wrote", "tests/jobs/test_output.py", "webdataset"),
    ("serving", "import base64"): ("it needs a server that runs", "tests/serving/test_api.py", "stream=True"),
    ("single-file", "from ddim.pipelines import DiffusionPipeline"): (
        "it needs a checkpoint of gigabytes",
        "tests/pipelines/test_single_file.py",
        "from_single_file",
    ),
    ("single-file", "from ddim import AutoencoderTiny, DiffusionPipeline"): (
        "it needs the hub",
        "tests/models/test_tiny_vae.py",
        "from_pretrained",
    ),
    ("training", "from ddim.training import train"): (
        "it trains for hours",
        "tests/training/test_text_to_image.py",
        "TextToImageSettings",
    ),
}
# Blocks in other languages, which nothing here reads.
FOREIGN = {"js", "nginx", "ini", "dockerfile"}


def own_model(name: str, bundled: str) -> None:
    shutil.copytree(BUNDLED / bundled, name)


def a_pipeline() -> dict[str, Any]:
    pipe = DiffusionPipeline.from_pretrained("emoji-fast")
    pipe.set_progress_bar_config(disable=True)
    return {"pipe": pipe, "torch": torch, "DiffusionPipeline": DiffusionPipeline}


def for_lora() -> dict[str, Any]:
    names = a_pipeline()
    pipe = DiffusionPipeline.from_pretrained("emoji")
    add_lora(pipe.unet, rank=2, alpha=2)
    for out, name in (("one", "style"), ("some/repository", "person")):
        save_lora(out, {"unet": lora_state(pipe.unet)}, rank=2, alpha=2)
        (weights,) = Path(out).glob("*.safetensors")
        weights.rename(f"{name}.safetensors" if out == "one" else weights.with_name(f"{name}.safetensors"))
    return names


def for_prompts() -> dict[str, Any]:
    names = a_pipeline()
    width = names["pipe"].text_encoder.config.hidden_size
    Path("sd-concepts-library/cat-toy").mkdir(parents=True)
    vector = torch.randn(1, width)
    save_tensors("sd-concepts-library/cat-toy/learned_embeds.safetensors", {"<cat-toy>": vector[0]})
    save_tensors("EasyNegative.safetensors", {"emb_params": vector})
    return names


def for_training() -> dict[str, Any]:
    names = for_lora()
    Path("runs/style").mkdir(parents=True)
    Path("style.safetensors").rename("runs/style/pytorch_lora_weights.safetensors")
    return names


def for_tasks() -> dict[str, Any]:
    own_model("my-sd-folder", "emoji")
    config = Path("my-sd-folder/scheduler/scheduler_config.json")
    config.write_text(
        json.dumps({**json.loads(config.read_text(encoding="utf-8")), "recommended_steps": 4}), encoding="utf-8"
    )
    pictures("photo", "mask")
    return {}


def pictures(*names: str) -> None:
    """A red square of each name, and a mask of its middle if that is the name."""
    for name in names:
        picture = Image.new("L" if name == "mask" else "RGB", (64, 64), "black" if name == "mask" else "red")
        if name == "mask":
            picture.paste(255, (16, 16, 48, 48))
        picture.save(f"{name}.png")


SCENES: dict[str, Callable[[], dict[str, Any]]] = {
    "backends": a_pipeline,
    "diffusers": lambda: own_model("my-ddpm-folder", "digits") or {},
    "lora": for_lora,
    "pictures": lambda: own_model("my-model", "emoji") or a_pipeline(),
    "prompts": for_prompts,
    "training": for_training,
    **{block.page: for_tasks for block in PYTHON if block.page.startswith("tasks/")},
}
SLOW = {"backends"}  # compiles a network for OpenVINO, twice


def first(block: Block) -> str:
    return block.text.partition("\n")[0]


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else []) for page in sorted({b.page for b in PYTHON})],
)
def test_the_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = [block for block in PYTHON if block.page == page and (page, first(block)) not in ELSEWHERE]
    if not here:
        return  # all of it runs elsewhere, as the next test holds
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # nothing here is to ask the hub
    names = SCENES.get(page, dict)()
    for block in here:
        exec(compile("\n" * (block.line - 1) + block.text, f"docs/{page}.md", "exec"), names)


def test_what_does_not_run_here_is_there_and_runs_elsewhere() -> None:
    shown = {(block.page, first(block)): block for block in PYTHON}
    for block, (why, test, word) in ELSEWHERE.items():
        assert block in shown, f"docs/{block[0]}.md has no such block any more: {block[1]}"
        assert why
        compile(shown[block].text, block[0], "exec")
        assert word in (ROOT / test).read_text(encoding="utf-8"), f"{test} has nothing of {word}"
    assert set(SCENES) <= {block.page for block in PYTHON}


def test_every_block_is_of_a_kind_that_is_looked_at() -> None:
    known = {"", "sh", "bash", "python", "json", "text", "{toctree}", "{include}", *FOREIGN}
    assert {block.language for block in BLOCKS} <= known


# --- commands ---------------------------------------------------------------------------------------------------------

PROGRAMS = {  # that are not ours
    "accelerate", "cd", "curl", "diff", "docker", "for", "git", "printf", "ray", "tensorboard", "torchrun", "twine"
}  # fmt: skip
EXTRAS = re.compile(r"^([a-z]+) = \[", flags=re.MULTILINE)


def lines(block: Block) -> list[str]:
    """A block's commands, without the lines that only say what a command prints."""
    whole = block.text.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in whole):
        return [line[2:] for line in whole if line.startswith("$ ")]
    return [line for line in whole if line.strip() and not line.startswith("#")]


def is_shown_output(block: Block) -> bool:
    """Whether it is what a program prints, a list of files or JSON, and nothing that somebody types."""
    typed = tuple(f"{program} " for program in (*PROGRAMS, "$", "ddim", "python", "make", "pip", "source"))
    return not any(line.startswith((*typed, "scripts/")) for line in block.text.splitlines()) and all(
        re.match(r"(ddim: |training: |\{)|\S+( \S+)* {2,}\S|so\b| ", line) for line in block.text.splitlines()
    )


def check(line: str) -> None:
    """A command is one that there is, and its options are."""
    if line.startswith("source <("):  # what the shell runs to know what it is to read
        line = line.removeprefix("source <(").removesuffix(")")
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if "ddim" in words and (words[0] == "ddim" or words[words.index("ddim") - 1] == "-m"):
        given = words[words.index("ddim") + 1 :]
        if "…" in given:  # the other options, as in the line above it
            given = [*(word for word in given if word != "…"), "--output-dir", "out", "--train-data-dir", "pictures"]
        name = next(name for name in (" ".join(given[:2]), given[0]) if name in COMMANDS)
        if name.split() != given:  # else a list of commands names it alone
            tyro.cli(load(COMMANDS[name].settings), args=given[len(name.split()) :])
    elif words[:2] == ["python", "-c"]:
        compile(words[2], line, "exec")
    elif words[:3] == ["python", "-m", "venv"]:
        assert len(words) == 4
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[0].startswith("scripts/"):
        assert os.access(ROOT / words[0], os.X_OK)
    elif words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    elif words[:2] == ["pip", "install"]:
        extras = set(EXTRAS.findall((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
        assert set(re.findall(r"\w+", " ".join(re.findall(r"\[(.*?)\]", line)))) <= extras
    else:
        assert words[0] in PROGRAMS, f"{words[0]} is no program that is known here"


@pytest.mark.parametrize("block", SHELL, ids=lambda block: f"{block.page}:{block.line}")
def test_a_command_can_be_parsed(block: Block) -> None:
    if not is_shown_output(block):
        for line in lines(block):
            for command in line.split(" && "):
                check(command.removeprefix("/tmp/fresh/bin/"))


# What is run, with these numbers where it has others. The rest trains, searches, serves or installs: for minutes, or
# until it is stopped. What it shows is run by scripts/newcomer or by the tests of that command.
QUICK = {"sample", "interpolate", "invert", "edit", "info", "evaluate", "generate"} | {
    f"plot {what}" for what in ("schedule", "trajectory", "tradeoff")
}
MANY = {"interpolate", "invert", "edit", "generate"}  # that make many steps unless told
SMALL = {"--steps": "4", "--frames": "2", "--samples": "8", "--batch": "2"}
# A word of a command that is not run -> what it needs, a test that runs the like, and a word of that.
NOT_HERE = {
    "FOLDER": ("Stable Diffusion and ControlNets", "tests/cli/test_controlling.py", "--controlnet"),
    "stabilityai/": ("Stable Diffusion XL", "tests/cli/test_xl.py", "--refiner"),
    "v2-1_768": ("a checkpoint of gigabytes", "tests/cli/test_single_files.py", "--tokenizer"),
    "noobaiXL": ("a checkpoint of gigabytes", "tests/cli/test_single_files.py", "--model"),
    "./sdxl": ("Stable Diffusion XL and the hub", "tests/pipelines/test_autoencoders.py", "vae"),
    "inception": ("Inception's weights", "tests/evaluation/test_features.py", "inception"),
    "/shared/": ("several machines", "tests/jobs/test_output.py", "shard"),
    "--workers": ("Ray, which takes seconds to start", "tests/jobs/test_cluster.py", "workers"),
    "ink.pt": ("a file of PyTorch's", "tests/cli/test_new_words.py", "--textual-inversion"),
    "runs/lora": ("adapters", "tests/cli/test_adapters.py", "--lora"),
}


class Typed(NamedTuple):
    """A command of a page."""

    page: str
    line: int
    words: list[str]

    @property
    def name(self) -> str:
        return next((name for name in (" ".join(self.words[1:3]), *self.words[1:2]) if name in COMMANDS), "")

    def why_not(self) -> str | None:
        """What it needs, as `NOT_HERE` has it; None if it can be run."""
        return next((word for word in NOT_HERE if any(word in given for given in self.words)), None)


def typed() -> Iterator[Typed]:
    for block in SHELL:
        if not is_shown_output(block):
            for line in lines(block):
                words = shlex.split(line, comments=True)
                if words[0] in ("ddim", "printf") and "…" not in words:
                    yield Typed(block.page, block.line, words)


TYPED = [command for command in typed() if command.page != "tasks/commands"]  # which scripts/newcomer runs as it stands
RUN = [c for c in TYPED if c.why_not() is None and (c.name in QUICK or "printf" in c.words)]
SLOW_COMMANDS = {"interpolation", "scale", "tasks/evaluation", "tasks/editing"}  # more than a second or two each


def small(words: list[str]) -> list[str]:
    """A command with small numbers.

    >>> small("sample --steps 10 50 --out x".split())
    ['sample', '--steps', '4', '--out', 'x']
    """
    found: list[str] = []
    for word in words:
        number = bool(found) and word.isdecimal()
        option = next((earlier for earlier in reversed(found) if earlier.startswith("--")), None)
        if number and option in SMALL:
            if found[-1] == option:
                found.append(SMALL[option])
        else:
            found.append(word)
    if found[0] in MANY and "--steps" not in found:
        found += ["--steps", SMALL["--steps"]]
    return found


def stand_ins() -> None:
    """What the commands of the pages read of the reader's own."""
    for name, bundled in {
        "my-sd-folder": "emoji", "my-model": "emoji", "runs/fast": "emoji-fast", "runs/mine": "emoji",
        "runs/emoji-fast": "emoji-fast", "runs/digits": "digits-fast", "runs/cats": "digits-fast",
    }.items():  # fmt: skip
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to(BUNDLED / bundled, target_is_directory=True)
    pictures("photo", "mask", "cat", "dog", "colours")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page in SLOW_COMMANDS else [])
        for page in sorted({command.page for command in RUN})
    ],
)
def test_the_commands_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    stand_ins()
    Path("docs").mkdir()
    for command in RUN:
        if command.page == page:
            if command.words[0] == "printf":
                text, _, path = command.words[1:]
                Path(path).write_text(text.replace("\\n", "\n"), encoding="utf-8")
                continue
            status = main(small(command.words[1:]))
            assert status == 0, f"docs/{page}.md:{command.line}: {shlex.join(command.words)}"


def test_what_commands_need_that_do_not_run_is_said() -> None:
    for word, (need, test, tested) in NOT_HERE.items():
        assert any(command.why_not() == word for command in TYPED), f"no command has {word} any more"
        assert need
        assert tested in (ROOT / test).read_text(encoding="utf-8"), f"{test} has nothing of {tested}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "json"], ids=lambda block: block.page)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("line", ["ddim sample --colour red", "ddim dance", "make tea", "python scripts/tea.py", "tea"])
def test_a_command_that_is_not_there_is_found(line: str) -> None:
    with pytest.raises((AssertionError, StopIteration, SystemExit)):
        check(line)
