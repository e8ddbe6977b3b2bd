"""A term is linked to its place in docs/words.md where a page first uses it, unless the page says itself what it is."""

from __future__ import annotations

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx

# Term -> how it is written, and the page that is about it.
TERMS = {
    "autoencoder": (r"[Aa]utoencoders?", ""),
    "controlnet": (r"ControlNets?", "controlnet"),
    "denoiser": (r"[Dd]enoisers?", "tasks/own-loop"),
    "eta": (r"η|eta", "evening"),
    "frechet-distance": (r"Fréchet distances?", "tasks/evaluation"),
    "guidance": (r"[Gg]uidance", ""),
    "inversion": (r"[Ii]nversion", "inversion"),
    "latents": (r"[Ll]atents", ""),
    "lora": (r"LoRAs?", "lora"),
    "noise-schedule": (r"noise schedules?", "evening"),
    "order": (r"second order", "few-steps"),
    "predicted-x0": (r"predicted x0", "tasks/previews"),
    "prediction-type": (r"[εv]-prediction|prediction types?", ""),
    "scheduler": (r"schedulers?", "diffusers"),
    "spacing": (r"spacings?", "tasks/timesteps"),
    "student": (r"[Ss]tudents?", "distillation"),
    "terminal-snr": (r"[Zz]ero terminal SNR|terminal SNR|zero SNR", "tasks/zero-terminal-snr"),
    "snr": (r"SNR", "tasks/zero-terminal-snr"),
    "u-net": (r"U-Nets?", ""),
}
PATTERNS = {term: re.compile(rf"(?<![\w-])(?:{written})(?![\w-])") for term, (written, _) in TERMS.items()}
# Where a link would be in the way, or is one already.
NOT_IN = (nodes.reference, nodes.title, nodes.literal, nodes.thead, nodes.caption, nodes.FixedTextElement)
# Pages that have no running text, or that say what the words mean.
NOT_ON = ("words", "changelog", "reference/")


def texts(tree: nodes.Node) -> Iterator[nodes.Text]:
    """The running text of a page, piece by piece."""
    for paragraph in tree.findall(nodes.paragraph):
        for text in paragraph.findall(nodes.Text):
            above = text.parent
            while above is not None and not isinstance(above, NOT_IN):
                above = above.parent
            if above is None:
                yield text


def link(tree: nodes.document, page: str, uri: str) -> None:
    """Link the terms of a page, which is called `page`, to the page that explains them, which is at `uri`.

    >>> from docutils.core import publish_doctree
    >>> tree = publish_doctree("Guidance\\n========\\n\\nBy guidance, ``SNR`` and zero SNR; guidance.")
    >>> link(tree, "a/page", "../words.html")
    >>> [(found.astext(), found["refuri"]) for found in tree.findall(nodes.reference)]
    [('guidance', '../words.html#guidance'), ('zero SNR', '../words.html#terminal-snr')]
    """
    linked = {reference.get("refuri", "").partition("words.html#")[2] for reference in tree.findall(nodes.reference)}
    wanted = {term for term, (_, home) in TERMS.items() if home != page} - linked
    for text in list(texts(tree)):
        found = [(match, term) for term in wanted if (match := PATTERNS[term].search(text.astext()))]
        if found:
            made: list[nodes.Node] = []
            place = 0
            for match, term in sorted(found, key=lambda each: (each[0].start(), -each[0].end())):
                if match.start() >= place:  # and not a part of a longer term
                    made.append(nodes.Text(text[place : match.start()]))
                    made.append(nodes.reference("", match[0], internal=True, refuri=f"{uri}#{term}", classes=["word"]))
                    place = match.end()
                    wanted.discard(term)
            text.parent.replace(text, [*made, nodes.Text(text[place:])])


def resolved(app: Sphinx, tree: nodes.document, page: str) -> None:
    if app.builder.name == "html" and not page.startswith(NOT_ON):
        link(tree, page, app.builder.get_relative_uri(page, "words"))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", resolved)
    return {"parallel_read_safe": True}
