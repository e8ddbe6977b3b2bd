"""How large an installation is: what the packages take on the disk that ddim and each of its extras need.

    python scripts/figures/sizes.py            # prints it
    python scripts/figures/sizes.py --write    # docs/sizes.json, which README.md and docs/tasks/install.md quote

It is counted in the environment that it runs in, where all extras have to be installed (`make test` does that): for
each package its own files, as its list of them has them, in whole blocks of the disk. An extra's size is that of what
it adds to what ddim alone needs.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ddim.checkpoint.files import write_json

FIGURES = Path(__file__).parent.parent.parent / "docs" / "sizes.json"
EXTRAS = ("fast", "plot", "video", "serve", "scale", "studio", "train", "all")


def packages(name: str, extras: Iterable[str] = ()) -> set[str]:
    """All that a package needs with some of its extras, and itself.

    Raises:
        SystemExit: one of them is not installed.
    """
    found: set[str] = set()
    asked: set[tuple[str, frozenset[str]]] = set()
    open_ends = [(name, frozenset(extras))]
    while open_ends:
        name, wanted = asking = open_ends.pop()
        if asking in asked:
            continue
        asked.add(asking)
        found.add(canonicalize_name(name))
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            raise SystemExit(f"{name} is not installed; `make test` installs everything") from None
        for need in map(Requirement, needs):
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in wanted | {""}):
                open_ends.append((need.name, frozenset(need.extras)))
    return found


def on_disk(name: str) -> int:
    """The bytes of a package's files, in whole blocks."""
    total = 0
    for file in distribution(name).files or ():
        path = Path(str(file.locate()))
        if path.is_file():
            found = path.stat()
            total += getattr(found, "st_blocks", 0) * 512 or found.st_size
    return total


def sizes() -> dict[str, Any]:
    alone = packages("ddim") - {"ddim"}
    added = {extra: packages("ddim", [extra]) - {"ddim"} - alone for extra in EXTRAS}
    return {
        "alone": sum(map(on_disk, alone)),
        "adds": {extra: sum(map(on_disk, names)) for extra, names in added.items()},
        "versions": {
            "python": platform.python_version(),
            "machine": f"{platform.system()}, {platform.machine()}",
            "torch": distribution("torch").version,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/sizes.json")
    options = parser.parse_args()
    found = sizes()
    for name, size in {"ddim alone": found["alone"], **found["adds"]}.items():
        print(f"{name:12} {size / 1e9:.2f} GB")
    if options.write:
        write_json(FIGURES, found)


if __name__ == "__main__":
    main()
