"""diffusers' own tests, with classes of this package in place of diffusers': the table in docs/diffusers.md.

    git clone https://github.com/huggingface/diffusers ../diffusers
    pip install parameterized requests-mock        # what its tests need besides
    python scripts/diffusers_tests.py ../diffusers            # all four kinds; resumable; about an hour on two cores
    python scripts/diffusers_tests.py ../diffusers schedulers # one kind: a minute

Nothing in the checkout is changed, and what is tested is the diffusers that is installed. Each file of tests runs
twice, in a process of its own and without a network: once as it is, and once with `diffusers.DDIMScheduler` and others
being ours while the test modules are imported, so that these get our classes and diffusers' own code keeps its own. A
tiny tokenizer that most tests of pipelines load from the hub is made on the spot, for both.

`runs/diffusers-tests` keeps what each run found, and what is there is not run again; with `--again` the tests of our
classes are, for after a change.

A test counts as

    passed                    it passes with diffusers' classes and with ours
    fails with diffusers too  on this machine, without a network or an accelerator; ours cannot be judged by it
    not meant                 it passes with theirs alone, for a reason that `NOT_MEANT` gives
    wrong                     it passes with theirs alone, and there is no reason for it
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddim.checkpoint.files import read_json, write_json, write_text

HERE = Path(__file__).parent.parent
REPLACE, REPORT = "DDIM_TESTS_REPLACE", "DDIM_TESTS_REPORT"  # environment variables of a run, for the part below

TOKENIZER = "hf-internal-testing/tiny-random-clip"


class Kind(NamedTuple):
    """Tests of one kind, and whose classes they are run with."""

    title: str
    replaced: tuple[str, ...]  # names in diffusers, and the same names here
    files: tuple[str, ...]  # below the checkout's tests


SCHEDULERS = ("DDIMScheduler", "DDIMInverseScheduler")
NETWORKS = ("UNet2DModel", "UNet2DConditionModel", "AutoencoderKL")
PIPELINES = (
    "DDIMPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
)
TEXT_TO_IMAGE = "pipelines/stable_diffusion/test_stable_diffusion"
KINDS = {
    "schedulers": Kind(
        "tests of schedulers, with ours",
        SCHEDULERS,
        ("schedulers/test_scheduler_ddim.py", "schedulers/test_scheduler_ddim_inverse.py"),
    ),
    "within": Kind(
        "tests of diffusers' pipelines, with our scheduler in them",
        SCHEDULERS,
        (
            "pipelines/ddim/test_ddim.py",
            f"{TEXT_TO_IMAGE}.py",
            f"{TEXT_TO_IMAGE}_img2img.py",
            f"{TEXT_TO_IMAGE}_inpaint.py",
            f"{TEXT_TO_IMAGE}_instruction_pix2pix.py",
            "pipelines/stable_diffusion_2/test_stable_diffusion.py",
            "pipelines/stable_diffusion_2/test_stable_diffusion_v_pred.py",
            "pipelines/controlnet/test_controlnet.py",
            "pipelines/animatediff/test_animatediff.py",
            "pipelines/dit/test_dit.py",
        ),
    ),
    "pipelines": Kind(
        "tests of pipelines, with ours, made of our networks and scheduler",
        (*SCHEDULERS, *NETWORKS, *PIPELINES),
        (
            "pipelines/ddim/test_ddim.py",
            f"{TEXT_TO_IMAGE}.py",
            f"{TEXT_TO_IMAGE}_img2img.py",
            f"{TEXT_TO_IMAGE}_inpaint.py",
        ),
    ),
    "models": Kind(
        "tests of networks, with ours",
        NETWORKS,
        (
            "models/unets/test_models_unet_2d.py",
            "models/unets/test_models_unet_2d_condition.py",
            "models/autoencoders/test_models_autoencoder_kl.py",
        ),
    ),
}

# Why a test that passes with diffusers' classes is not meant to pass with ours: for tests whose
# `kind/file::class::test` matches the expression.
NOT_MEANT: dict[str, str] = {
    r"^schedulers/.*::test_betas$": "betas above 1, of which no noise schedule can be made, are refused",
    r"^schedulers/.*::test_trained_betas$": "trained_betas of another number than num_train_timesteps are refused",
    r"^schedulers/.*::test_from_pretrained$": "the config also has the settings that are ours alone, and says that "
    "they are at their defaults, so that diffusers' from_config leaves them out without a warning",
    r"^models/.*::TestNCSNppModel": "NCSN++ is trained on noise of exploding variance, which no DDIM scheduler "
    "samples, and a ConfigError says so",
    r"^models/.*::TestUNet2DConditionLoRA::": "a network is no PeftAdapterMixin: adapters are loaded into pipelines "
    "and merged into the weights",
    r"^models/.*::TestUNet2DConditionIPAdapter::": "IP-Adapters are not loaded; attention processors of that kind can "
    "be set by hand",
    r"::test_custom_diffusion_save_load$": "files of attention processors are neither written nor read",
    r"::test_asymmetrical_unet$": "no model of Stable Diffusion 1 or 2 has other depths on the way up than on the way "
    "down; the setting is refused by name",
    r"^models/.*::test_from_save_pretrained_variant$": "a folder that has files of one variant alone is loaded without "
    "asking for it, and a warning says so, where diffusers raises an error",
    r"^pipelines/.*IPAdapter::": "IP-Adapters are not loaded",
    r"^pipelines/.*::test_stable_diffusion_(inpaint_)?(lcm|pndm)": "the numbers are those of another sampler, and "
    "every scheduler becomes DDIM here",
    r"^pipelines/.*::test_stable_diffusion_ays$": "DDIM has no sigmas, and a ValueError says so",
    r"^pipelines/.*::test_stable_diffusion_long_prompt$": "wants a line of diffusers' logger, in whose place "
    "there is a UserWarning",
    r"^pipelines/.*::test_save_load_local$": "wants the lines that diffusers' logger prints while it loads",
    r"^pipelines/.*::test_loading_with_incorrect_variants_raises_error$": "the same error is raised in other words: it "
    "lists all files that were looked for",
    r"^pipelines/.*::DDIMPipelineFastTests::test_inference$": "the numbers are of a network whose random weights were "
    "drawn in diffusers' order; with the same weights they are the same",
    r"::TestAutoencoderKL::test_gradient_checkpointing_is_applied$": "layers are computed again, and not whole blocks, "
    "which takes less memory; the gradients are the same",
}

Found = dict[str, tuple[str, str]]  # a test -> how it ended, and the last line of what it said


# --- within pytest: `-p diffusers_tests` loads this file as a plugin --------------------------------------------------

_found: Found = {}
if REPORT in os.environ:  # before the checkout's conftest.py, which would have its own diffusers be imported
    import diffusers
    import transformers
    from diffusers.utils import source_code_parsing_utils


def pytest_configure() -> None:
    """Two helpers of the tests of pipelines that are mended for all runs.

    A tiny tokenizer of the hub is made here instead, as otherwise most of these tests need a network. And the helper
    that reads in diffusers' source which names a pipeline's `encode_prompt` returns does so for our classes, too.
    """
    sys.path.insert(0, str(HERE / "tests" / "support"))
    from tiny_clip import write_tokenizer

    own = transformers.CLIPTokenizer.from_pretrained

    def from_pretrained(name: Any, *args: Any, **options: Any) -> Any:
        if name != TOKENIZER:
            return own(name, *args, **options)
        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer(Path(folder))
            return own(folder)

    def room(visitor: Any, cls: type) -> Any:
        return "pipelines" if cls.__module__.startswith("ddim.") else own_room(visitor, cls)

    transformers.CLIPTokenizer.from_pretrained = from_pretrained
    visitor = source_code_parsing_utils.ReturnNameVisitor
    own_room = visitor._determine_parent_module
    visitor._determine_parent_module = room


def pytest_make_collect_report(collector: Any) -> None:
    """Our classes stand in diffusers as long as a test module is imported."""
    import pytest

    names = os.environ.get(REPLACE, "").split()
    if not names or not isinstance(collector, pytest.Module):
        return
    import ddim

    kept = {name: getattr(diffusers, name) for name in names}
    for name in names:
        setattr(diffusers, name, getattr(ddim, name))
    try:
        _ = collector.obj  # imports the module
    finally:
        for name, own in kept.items():
            setattr(diffusers, name, own)


def pytest_runtest_logreport(report: Any) -> None:
    """Keep how each test ended: in its setup, when it was called, or when it was taken down."""
    ended = {"passed": "passed", "skipped": "skipped"}.get(report.outcome, "failed")
    before = _found.get(report.nodeid, ("", ""))
    if report.when != "call" and ended == "passed":
        return
    if before[0] != "failed":
        crash = getattr(report.longrepr, "reprcrash", None)
        said = str(report.longrepr) if crash is None else crash.message
        _found[report.nodeid] = ended, "" if ended == "passed" else " ".join(said.split())[:300]


def pytest_sessionfinish() -> None:
    if REPORT in os.environ and _found:
        write_json(os.environ[REPORT], {name: list(value) for name, value in _found.items()})


# --- running ----------------------------------------------------------------------------------------------------------


def run_file(checkout: Path, file: str, names: Sequence[str], report: Path, options: Sequence[str]) -> Found:
    """How the tests of a file end, with diffusers' classes of these names or, where there are names, with ours."""
    if not report.exists():
        path = [HERE / "src", HERE / "scripts", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = {
            **os.environ,
            REPLACE: " ".join(names),
            REPORT: str(report.resolve()),
            "PYTHONPATH": os.pathsep.join(str(Path(folder).resolve()) for folder in path),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        command = [sys.executable, "-m", "pytest", "-p", "diffusers_tests", "-p", "no:cacheprovider", "-q", "--tb=line"]
        done = subprocess.run(
            [*command, *options, f"tests/{file}"],
            cwd=checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if not report.exists():
            raise SystemExit(f"no test of {file} was run:\n{done.stdout[-3000:]}")
    return {name.removeprefix("tests/"): (ended, said) for name, (ended, said) in read_json(report).items()}


def reason(test: str) -> str:
    """Why it is not meant that a test passes; "" if there is none."""
    return next((why for pattern, why in NOT_MEANT.items() if re.search(pattern, test)), "")


def judge(kind: str, theirs: Found, ours: Found) -> Iterator[tuple[str, str, str]]:
    """For each test that is not skipped with diffusers: its name, how it counts, and why."""
    for test, (ended, _) in theirs.items():
        if ended == "skipped":
            continue
        mine, said = ours.get(test, ("failed", "the test is not there with our classes"))
        if ended != "passed":
            yield test, "fails with diffusers too", ""
        elif mine == "passed":
            yield test, "passed", ""
        elif why := reason(f"{kind}/{test}"):
            yield test, "not meant", why
        else:
            yield test, "wrong", said


# --- what it says -----------------------------------------------------------------------------------------------------

COUNTED = ("passed", "fails with diffusers too", "not meant", "wrong")


def as_markdown(judged: dict[tuple[str, str], list[tuple[str, str, str]]]) -> str:
    """The table, what is not meant and why, and what is wrong."""
    lines = [f"| tests | {' | '.join(COUNTED)} |", "|---" * (1 + len(COUNTED)) + "|"]
    for kind in dict.fromkeys(kind for kind, _ in judged):
        total: Counter[str] = Counter()
        rows = []
        for (own, file), tests in judged.items():
            if own == kind:
                counts = Counter(how for _, how, _ in tests)
                total += counts
                rows.append(f"| `{file.removesuffix('.py')}` | {' | '.join(str(counts[how]) for how in COUNTED)} |")
        lines += [f"| **{KINDS[kind].title}** | {' | '.join(f'**{total[how]}**' for how in COUNTED)} |", *rows]
    for how, title in (("not meant", "Not meant"), ("wrong", "Wrong")):
        found: dict[str, list[str]] = {}
        for tests in judged.values():
            for test, mine, why in tests:
                if mine == how:
                    found.setdefault(why, []).append(test.partition("::")[2])
        if found:
            lines += ["", f"{title}:", ""]
            lines += [f"- {why}: {', '.join(shortened(tests))}" for why, tests in found.items()]
    return "\n".join(lines) + "\n"


def shortened(tests: Sequence[str]) -> list[str]:
    """The names of tests as code; of more than three of a class, the class and their number."""
    classes: dict[str, list[str]] = {}
    for test in tests:
        classes.setdefault(test.partition("::")[0], []).append(f"`{test.replace('::', '.')}`")
    return [
        text for name, own in classes.items() for text in (own if len(own) <= 3 else [f"`{name}` ({len(own)} tests)"])
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="of diffusers, with its tests")
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; all unless told")
    parser.add_argument("--out", type=Path, default=HERE / "runs" / "diffusers-tests", help="where results are kept")
    parser.add_argument("--again", action="store_true", help="run the tests with our classes anew")
    parser.add_argument("--pytest", default="", help="further options of pytest, such as '-k inference'")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.kinds) - set(KINDS))
    if unknown or not (options.checkout / "tests").is_dir():
        parser.error(f"unknown kinds: {', '.join(unknown)}" if unknown else f"{options.checkout} has no tests")
    judged = {}
    chosen = [(kind, file) for kind in options.kinds or KINDS for file in KINDS[kind].files]
    for number, (kind, file) in enumerate(chosen, 1):
        found = {}
        for whose, names in (("theirs", ()), ("ours", KINDS[kind].replaced)):
            folder = options.out / ("theirs" if whose == "theirs" else kind)
            report = folder / f"{file.removesuffix('.py').replace('/', '.')}.json"
            if options.again and whose == "ours":
                report.unlink(missing_ok=True)
            print(f"[{number}/{len(chosen)}] {kind}: {file}, {whose}", file=sys.stderr, flush=True)
            report.parent.mkdir(parents=True, exist_ok=True)
            found[whose] = run_file(options.checkout.resolve(), file, names, report, options.pytest.split())
        judged[kind, file] = list(judge(kind, found["theirs"], found["ours"]))
        counts = Counter(how for _, how, _ in judged[kind, file])
        print("    " + ", ".join(f"{how}: {counts[how]}" for how in COUNTED), file=sys.stderr, flush=True)
    text = as_markdown(judged)
    write_text(options.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
