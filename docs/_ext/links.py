"""When the site is made: every link inside it leads to what is there, and nothing comes from another host.

What is wrong is a warning, and so an error of `make docs`. Links to other hosts are listed in build/docs/links.txt, and
not followed: nothing here needs the network.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
# What a browser fetches by itself, and by which attribute it is named.
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}


class Page(HTMLParser):
    """The names in a page that a link may lead to, and the links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.names |= {given[name] for name in ("id", "name") if name in given}
        if tag in FETCHED and FETCHED[tag] in given:
            self.fetched.add(given[FETCHED[tag]])
        elif tag == "a" and "href" in given:
            self.links.add(given["href"])


def faults(site: Path) -> tuple[list[str], set[str]]:
    """What is wrong with the pages of a folder, and all links that lead out of it.

    >>> from tempfile import mkdtemp
    >>> site = Path(mkdtemp())
    >>> _ = (site / "a.html").write_text('<p id="x"><a href="b.html#y"></a><a href="#x"></a><img src="https://c/d.png">')
    >>> _ = (site / "b.html").write_text('<a href="a.html"></a><a href="gone.html"></a><a href="https://c/"></a>')
    >>> wrong, out = faults(site)
    >>> wrong
    ['a.html: b.html has no #y', 'a.html: https://c/d.png comes from another host', 'b.html: gone.html is not there']
    >>> out
    {'https://c/'}
    """
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    wrong, out = [], set()
    for path, page in pages.items():
        where = path.relative_to(site).as_posix()
        for link in sorted(page.fetched | page.links):
            parts = urlsplit(link)
            if parts.scheme in ("data", "mailto", "javascript"):
                continue
            if parts.scheme or parts.netloc:
                out.add(link)
                if link in page.fetched:
                    wrong.append(f"{where}: {link} comes from another host")
                    out.discard(link)
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if site.resolve() not in target.resolve().parents:
                continue  # the list of versions, which lies beside them all
            if not target.exists():
                wrong.append(f"{where}: {parts.path} is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].names:
                wrong.append(f"{where}: {parts.path} has no #{parts.fragment}")
    return wrong, out


def check(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.name != "html":
        return
    site = Path(app.outdir).resolve()
    wrong, out = faults(site)
    for fault in wrong:
        LOGGER.warning(fault, type="links")
    (site.parent / "links.txt").write_text("\n".join(sorted(out)) + "\n", encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", check)
    return {"parallel_read_safe": True}
