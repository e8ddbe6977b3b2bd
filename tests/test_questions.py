"""The thirty questions of docs/questions.md are answered within two clicks of the first page, and links lead there."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

DOCS = Path(__file__).parent.parent / "docs"
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?!\w+:)([^)\s]*)\)")
# The beginning of each question, and what the section speaks of to which its first link leads.
SPEAKS_OF = {
    "What is `eta`": r"\\eta = 0\$ it is DDIM",
    "Why does DDIM begin at 981": "`leading`.*`trailing`",
    "Can I give my own timesteps": r"timesteps=\[",
    "Where does a step lead": r"plan\.previous_timesteps",
    "Why does a run with 1,000 steps fail": "IndexError",
    "Why are diffusers' DDIM pictures worse": r"`DDIMScheduler\(\)` without arguments",
    "Why does DDIM leave noise in pictures of Stable Diffusion XL": "set_alpha_to_one=True",
    "Why are there artefacts": "clip_sample=True",
    "Which timesteps does `strength` choose": "the last 30 of the 50",
    "How do I get from DDPM to DDIM": "DDIM is trained as DDPM is",
    "How do I get picture 3 of a batch again": "one picture of many again",
    "Which seed reproduces each": "a list of generators",
    "Why do ComfyUI and the web UI differ": "on the GPU",
    "Is ComfyUI's `ddim` the same as `euler`": "with `ddim_uniform`",
    "Why does `ddim_uniform` make 31 steps": "31 for 30",
    "What is clip skip": "clip_skip=1",
    "Why is my picture black": "NaN.*bfloat16",
    "Zero terminal SNR makes everything black": "was not trained so",
    "Does kohya's training support": "--rescale-betas-zero-snr",
    "Why are kohya's samples by DDIM bad": "clip_sample=True",
    "How do I weigh the loss by min-SNR": "--snr-gamma 5",
    "Why does inpainting change": r"Image\.composite",
    "Why is Stable Diffusion XL bad at low": "512x512",
    "How do I invert a picture with": "DDIMInverseScheduler",
    "Why does my inversion not come back": "does not come back",
    "How do I show a preview": "Show the .*predicted x0",
    "How do I steer by CLIP's gradient": "gradient",
    "Can I interpolate between two pictures": "--images one.png two.png",
    "How long does a picture take": "20 guided steps",
    "How do I load a `.safetensors` file": "give `tokenizer=`",
}


class Question(NamedTuple):
    """A row of the page.

    Attributes:
        links: to other pages of docs/, the first one to the answer.
        thread: where it was asked.
    """

    text: str
    thread: str
    links: list[str]


def questions() -> list[Question]:
    rows = re.findall(
        r"^\| (.+) \(\[.*?\]\((https://.+?)\)\) \| .+ More: (.+) \|$", read("questions.md"), flags=re.MULTILINE
    )
    return [Question(text, thread, LINK.findall(links)) for text, thread, links in rows]


@cache
def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def anchor(heading: str) -> str:
    """What a heading is called in addresses, on GitHub and in the site.

    >>> anchor('"DDIM" and `ddim_uniform`')
    'ddim-and-ddim_uniform'
    """
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def section(link: str) -> str:
    """What somebody reads who follows a link: a section with those below it, or a whole page.

    Raises:
        AssertionError: there is none of this name.
    """
    page, _, name = link.partition("#")
    lines = re.sub(
        r"^```.*?^```", lambda code: code[0].replace("\n#", "\n "), read(page), flags=re.DOTALL | re.MULTILINE
    )
    if not name:
        return lines
    headings = [(len(found[1]), found) for found in re.finditer(r"^(#+) (.+)$", lines, flags=re.MULTILINE)]
    for index, (level, found) in enumerate(headings):
        if anchor(found[2]) == name:
            ends = (later.start() for other, later in headings[index + 1 :] if other <= level)
            return lines[found.start() : next(ends, len(lines))]
    raise AssertionError(f"docs/{page} has no heading that is called {name}")


def clicks() -> dict[str, int]:
    """How many links it takes from the first page to each page that can be reached by links in texts."""
    found, now = {"index.md": 0}, ["index.md"]
    while now:
        reached = []
        for page in now:
            for link in LINK.findall(read(page)):
                target = (DOCS / page).parent / link.partition("#")[0]
                if target.suffix == ".md" and target.is_file() and target.resolve().is_relative_to(DOCS.resolve()):
                    name = target.resolve().relative_to(DOCS.resolve()).as_posix()
                    if name not in found:
                        found[name] = found[page] + 1
                        reached.append(name)
        now = reached
    return found


def test_there_are_thirty_and_each_was_asked_somewhere() -> None:
    asked = questions()
    assert len({question.text for question in asked}) == len(asked) == 30 == len(SPEAKS_OF)
    assert all(re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/issues/\d+", question.thread) for question in asked)
    assert len({question.thread for question in asked}) == 30


@pytest.mark.parametrize("question", questions(), ids=lambda question: question.thread.rpartition(".com/")[2])
def test_an_answer_is_two_clicks_away_and_speaks_of_the_matter(question: Question) -> None:
    (words,) = [words for begins, words in SPEAKS_OF.items() if question.text.startswith(begins)]
    assert clicks()["questions.md"] == 1  # so that what this page leads to is two clicks away
    assert question.links
    assert re.search(words, section(question.links[0]), flags=re.DOTALL), f"{question.links[0]} says nothing of {words}"
    for link in question.links[1:]:
        assert section(link)


def test_every_page_is_two_clicks_from_the_first() -> None:
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    reached = clicks()
    assert {page: reached.get(page) for page in pages if reached.get(page, 3) > 2} == {}


@pytest.mark.parametrize("page", sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")))
def test_links_to_headings_lead_there(page: str) -> None:
    """`make docs` holds it too, minutes later."""
    for link in LINK.findall(read(page)):
        path, _, name = link.partition("#")
        target = (DOCS / page).parent / path if path else DOCS / page
        if name and target.suffix == ".md" and "{include}" not in target.read_text(encoding="utf-8"):
            assert section(f"{os.path.relpath(target, DOCS)}#{name}")


def test_a_section_that_is_not_there_is_found() -> None:
    with pytest.raises(AssertionError, match="no heading"):
        section("questions.md#colours")
    assert section("questions.md#seeds").startswith("## Seeds\n")
    assert "## Doing more" not in section("questions.md#seeds")


# --- words ------------------------------------------------------------------------------------------------------------

TERMS = {
    "U-Net": r"U-Nets?\b",
    "latents": r"\b[Ll]atents\b",
    "guidance": r"\b[Gg]uidance\b",
    "SNR": r"\bSNR\b",
    "eta": r"\beta\b|η",
    "LoRA": r"LoRAs?\b",
    "student": r"\b[Ss]tudent\b",
    "autoencoder": r"\b[Aa]utoencoder\b",
}


def unlinked(page: str) -> list[str]:
    """The terms whose first mention in the text of a page is not in a link to what explains them."""

    def blank(found: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", found[0])

    text = read(page)
    prose = re.sub(r"^```.*?^```|^#[^\n]*$|`[^`\n]*`|\]\([^)]*\)", blank, text, flags=re.DOTALL | re.MULTILINE)
    links = [found.span() for found in re.finditer(r"\[[^\]]*\](?=\()", text)]
    first = {term: re.search(pattern, prose) for term, pattern in TERMS.items()}
    return [term for term, found in first.items() if found and not any(a <= found.start() < b for a, b in links)]


@pytest.mark.parametrize("page", sorted(path.name for path in (DOCS / "tasks").glob("*.md")))
def test_a_term_is_linked_where_a_page_first_uses_it(page: str) -> None:
    """Of the pages by task, which are read one by one; docs/words.md has a heading for each term."""
    assert unlinked(f"tasks/{page}") == []


def test_words_has_the_terms() -> None:
    headings = {line.removeprefix("## ") for line in read("words.md").splitlines() if line.startswith("## ")}
    assert {term.lower() for term in TERMS} <= {heading.lower() for heading in headings}
    assert sorted(headings, key=str.casefold) == [
        line.removeprefix("## ") for line in read("words.md").splitlines() if line.startswith("## ")
    ]
