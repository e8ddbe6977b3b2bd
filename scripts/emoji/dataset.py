"""Draw three open emoji sets, 64x64 with captions, into data/emoji.parquet.

    pip install "ddim[data]"                # resvg-py draws, pyarrow writes
    python scripts/emoji/dataset.py   # half a minute; needs npm the first time

The drawings come as SVG from pinned npm packages, the words from Unicode CLDR. The same versions of the packages, of
resvg-py, zlib and pyarrow give the same bytes; data/README.md says what the columns hold.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import re
import struct
import subprocess
import tarfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).parent.parent.parent
SIZE = 64
HELD_OUT = 0.05
MAX_CAPTIONS = 5

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
TONE_CODES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
COMPONENT_CODES = TONE_CODES | {"1f9b0", "1f9b1", "1f9b2", "1f9b3"}  # tones and hair: parts, no pictures of their own
GENDERS = {"2640": "woman", "2642": "man"}
FLUENT_TONE = re.compile(r"^(.+?)-(medium-light|medium-dark|light|medium|dark)$")
NEEDS_ARTICLE = re.compile(
    r"united |european union|.*netherlands|philippines|bahamas|gambia|maldives|seychelles|comoros|isle of|"
    r"dominican republic|central african republic|.* (islands|territory|territories)$"
)


@dataclass(frozen=True)
class Package:
    """An npm package at one version, with the sha512 that npm reports for its archive."""

    name: str
    version: str
    sha512: str

    @property
    def archive(self) -> str:
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


@dataclass(frozen=True)
class Style:
    name: str
    package: Package
    license: str
    author: str
    tones: bool  # whether skin tone variants are drawn too


NOTO = Package(
    "@iconify-json/noto",
    "1.2.9",
    "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
)
FLUENT = Package(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
)
TWEMOJI = Package(
    "@iconify-json/twemoji",
    "1.2.5",
    "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
)
CLDR = Package(
    "cldr-annotations-full",
    "48.2.0",
    "DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
)
STYLES = (  # in the order in which their names are preferred for a caption
    Style("noto", NOTO, license="Apache-2.0", author="Google", tones=False),
    Style("fluent", FLUENT, license="MIT", author="Microsoft", tones=True),
    Style("twemoji", TWEMOJI, license="CC-BY-4.0", author="Twitter and contributors", tones=False),
)


# ---------------------------------------------------------------------------------------------------------- packages


def fetch(package: Package, cache: Path) -> Path:
    """The package's archive in `cache`, fetched by `npm pack` unless it is there already; its sha512 is checked."""
    path = cache / package.archive
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"]
        subprocess.run(command, cwd=cache, check=True, stdout=subprocess.DEVNULL)
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise SystemExit(f"{path} has sha512 {found}, not the pinned {package.sha512}: delete it and try again")
    return path


def read_json(archive: Path, *names: str) -> list[Any]:
    with tarfile.open(archive) as tar:
        files = [tar.extractfile(f"package/{name}") for name in names]
        return [json.load(file) for file in files if file is not None]


# ------------------------------------------------------------------------------------------------------------- words


def plain(text: str) -> str:
    """Lower-case ASCII words with one space between: what a small tokenizer sees most of.

    >>> plain("Japanese “here” button"), plain("piñata"), plain("kiss: woman, man")
    ('japanese "here" button', 'pinata', 'kiss woman man')
    """
    text = text.translate(str.maketrans("“”‘’–—", "\"\"''--"))
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return " ".join(re.sub(r"[,:;()]", " ", text).split())


def is_flag(concept: str) -> bool:
    """Whether the code points spell a region: two regional indicators, or a black flag with tags."""
    codes = concept.split("-")
    return all("1f1e6" <= code <= "1f1ff" for code in codes) or (codes[0] == "1f3f4" and codes[-1] == "e007f")


def natural(name: str) -> str:
    """The order people say it in, for the names that put the person first.

    >>> natural("man blond hair"), natural("woman curly haired"), natural("person bald")
    ('man with blond hair', 'curly haired woman', 'bald person')
    """
    name = re.sub(r"^(person|man|woman) (beard|\w+ hair)$", r"\1 with \2", name)
    return re.sub(r"^(person|man|woman) (bald|deaf|\w+ haired)$", r"\2 \1", name)


def key_names(key: str, concept: str) -> list[str]:
    """The names that an icon's key spells; a region's flag is given the preposition people use.

    >>> key_names("flag-japan", "1f1ef-1f1f5"), key_names("flag-in-hole", "26f3")
    (['flag of japan', 'japan flag'], ['flag in hole'])
    """
    name = natural(plain(key.replace("-", " ")))
    if is_flag(concept) and name.startswith("flag "):
        region = name.removeprefix("flag ")
        article = "the " if NEEDS_ARTICLE.match(region) else ""
        return [f"flag of {article}{region}", f"{region} flag"]
    return [name]


def with_tone(name: str, tone: str) -> str:
    """
    >>> with_tone("waving hand", "medium-dark"), with_tone("man with beard", "light")
    ('waving hand with medium dark skin tone', 'man with beard and light skin tone')
    """
    if not tone:
        return name
    return f"{name} {'and' if ' with ' in name else 'with'} {tone.replace('-', ' ')} skin tone"


def unique(words: Iterable[str]) -> list[str]:
    """In the order given; "eight oclock" is no news after "eight o'clock"."""
    first: dict[str, str] = {}
    for word in words:
        first.setdefault(word.replace("'", ""), word)
    return [word for word in first.values() if word]


def concept_of(codes: str) -> str:
    """Code points as chars.json writes them, without what changes only a tone or asks for colour.

    >>> concept_of("1f44b-1f3fd"), concept_of("2764-fe0f")
    ('1f44b', '2764')
    """
    return "-".join(code for code in codes.split("-") if code not in TONE_CODES and code != "fe0f")


def is_held_out(concept: str) -> bool:
    """Decided by the concept alone, so that no style or tone of a held-out emoji is trained on."""
    return int(hashlib.sha256(concept.encode()).hexdigest()[:16], 16) < HELD_OUT * 16**16


class Annotations:
    """CLDR's English names and keywords, by concept."""

    def __init__(self, annotations: dict[str, dict[str, list[str]]]) -> None:
        self.by_concept = {
            concept_of("-".join(f"{ord(char):x}" for char in text)): entry for text, entry in annotations.items()
        }

    def name(self, concept: str) -> str:
        return natural(plain(" ".join(self.by_concept.get(concept, {}).get("tts", []))))

    def mangled(self, concept: str) -> str:
        """The name as some keys spell it, accented letters lost: no caption."""
        return plain(re.sub(r"[À-ſ]", "", " ".join(self.by_concept.get(concept, {}).get("tts", []))))

    def keywords(self, concept: str) -> list[str]:
        """CLDR derives a woman running from the person running and does not list her: she has the person's keywords."""
        codes = concept.split("-")
        if concept in self.by_concept or len(codes) < 3 or codes[1] != "200d" or codes[2] not in GENDERS:
            return unique(plain(word) for word in self.by_concept.get(concept, {}).get("default", []))
        return unique([GENDERS[codes[2]], *(word for word in self.keywords(codes[0]) if word not in GENDERS.values())])


# ------------------------------------------------------------------------------------------------------------- icons


@dataclass
class Icon:
    style: Style
    key: str
    svg: str
    category: str
    concept: str
    tone: str = ""
    aliases: list[str] = field(default_factory=list)


def to_svg(icon: dict[str, Any], defaults: dict[str, Any]) -> str:
    """The icon in a square of SIZE pixels: what is not square is centred, its proportions kept."""
    left, top = (icon.get(side, defaults.get(side, 0)) for side in ("left", "top"))
    width, height = (icon.get(side, defaults.get(side, 16)) for side in ("width", "height"))
    body = icon["body"]
    if icon.get("hFlip"):
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{SIZE}" '
        f'height="{SIZE}" viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def draw(svg: str) -> Image.Image:
    """RGBA, straight alpha; the colour under what is wholly transparent is zero, so that equal drawings are equal."""
    drawn: Image.Image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))))
    drawn = drawn.convert("RGBA")
    clear = Image.new("RGBA", drawn.size)
    return Image.composite(drawn, clear, drawn.getchannel("A").point(lambda alpha: 255 if alpha else 0))


def to_png(image: Image.Image) -> bytes:
    """One filter for all rows, the best of three: flat drawings take a third less than with Pillow's choice by row."""
    pixels = np.asarray(image)
    left = np.pad(pixels, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    above = np.pad(pixels, ((1, 0), (0, 0), (0, 0)))[:-1]
    filtered = (
        pixels,
        pixels - left,
        pixels - above,
    )  # PNG's filters 0, 1 and 2, modulo 256; a row starts with its own
    rows = (np.insert(each.reshape(len(each), -1), 0, kind, axis=1) for kind, each in enumerate(filtered))
    data = min((zlib.compress(each.tobytes(), 9) for each in rows), key=len)
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 6, 0, 0, 0)  # 8 bits, RGBA
    png = b"\x89PNG\r\n\x1a\n"
    for kind, chunk in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")):
        png += struct.pack(">I", len(chunk)) + kind + chunk + struct.pack(">I", zlib.crc32(kind + chunk))
    return png


def split_tone(key: str, codes: dict[str, str], known: Iterable[str]) -> tuple[str, str]:
    """(base key, tone) of a Fluent key; what only ends like a tone (police-car-light) is all name.

    >>> codes = {"ear": "1f442", "ear-dark": "1f442-1f3ff", "police-car": "1f693", "police-car-light": "1f6a8"}
    >>> split_tone("ear-dark", codes, codes), split_tone("police-car-light", codes, codes)
    (('ear', 'dark'), ('police-car-light', ''))
    """
    match = FLUENT_TONE.match(key)
    toned = key not in codes or TONE_CODES & set(codes[key].split("-"))
    return (match[1], match[2]) if match and match[1] in known and toned else (key, "")


def read_icons(style: Style, cache: Path, concepts: dict[str, str], left_out: Counter[str]) -> Iterator[Icon]:
    """The icons of a style that are wanted, by key. `concepts` (key -> concept) learns this style's keys."""
    icons, chars, metadata = read_json(fetch(style.package, cache), "icons.json", "chars.json", "metadata.json")
    codes = {key: code for code, key in chars.items()}
    categories = {key: name for name, keys in metadata["categories"].items() for key in keys}
    known: dict[str, dict[str, Any]] = dict(icons["icons"])
    aliases: dict[str, list[str]] = {}
    for key, alias in icons.get("aliases", {}).items():
        if key.startswith("flag-for-"):  # a name nobody says
            continue
        if set(alias) - {"parent"}:  # turned or mirrored: a drawing of its own
            known[key] = {**icons["icons"][alias["parent"]], **alias}
        else:
            aliases.setdefault(alias["parent"], []).append(key)
    for key, code in codes.items():
        concepts.setdefault(key, concept_of(code))

    for key, icon in sorted(known.items()):
        code = set(codes.get(key, "").split("-"))
        base, tone = split_tone(key, codes, known) if style.tones else (key, "")
        if icon.get("hidden"):
            left_out["hidden"] += 1
        elif code and code <= COMPONENT_CODES:
            left_out["component"] += 1
        elif not style.tones and (code & TONE_CODES or "skin-tone" in key):
            left_out["skin tone"] += 1
        else:
            concept = concept_of(codes[base]) if base in codes else concepts.get(base, base)
            category = categories.get(key) or categories.get(icon.get("parent", ""), "")
            yield Icon(style, key, to_svg(icon, icons), category, concept, tone, aliases.get(key, []))


def names_by_concept(icons: list[Icon], cldr: Annotations) -> dict[str, list[str]]:
    """CLDR's name first, then what the styles' keys say, then their aliases: all styles share one list.

    A further name that another concept has too ("up button") says too little and is left out.
    """
    names = {icon.concept: [cldr.name(icon.concept)] for icon in icons}
    plainly = [icon for icon in icons if not icon.tone]
    for icon, keys in [(icon, [icon.key]) for icon in plainly] + [(icon, icon.aliases) for icon in plainly]:
        spelled = [name for key in keys for name in key_names(key, icon.concept)]
        canonical, mangled = names[icon.concept][0], cldr.mangled(icon.concept)
        names[icon.concept] += [name for name in spelled if name != mangled or mangled == canonical]
    names = {concept: unique(found) for concept, found in names.items()}
    shared = Counter(name for found in names.values() for name in found)
    return {
        concept: [first, *(name for name in others if shared[name] == 1)][:MAX_CAPTIONS]
        for concept, (first, *others) in names.items()
    }


def drop_repeats(
    drawn: list[tuple[Icon, Image.Image]], left_out: dict[str, Counter[str]]
) -> Iterator[tuple[Icon, bytes]]:
    """Without blank drawings and, within a style, those pixel for pixel like one with a shorter key."""
    seen: set[tuple[str, bytes]] = set()
    kept = []
    for icon, image in sorted(drawn, key=lambda pair: (pair[0].style.name, len(pair[0].key), pair[0].key)):
        pixels = (icon.style.name, image.tobytes())
        if image.getchannel("A").getextrema()[1] == 0:
            left_out[icon.style.name]["blank"] += 1
        elif pixels in seen:
            left_out[icon.style.name]["repeat"] += 1
        else:
            seen.add(pixels)
            kept.append((icon, to_png(image)))
    yield from sorted(kept, key=lambda pair: (pair[0].style.name, pair[0].key))


# ------------------------------------------------------------------------------------------------------------- table


STRINGS = ("captions", "keywords")
STRING = ("style", "concept", "category", "split", "license", "author", "icon")


def schema() -> pa.Schema:
    """With the metadata by which `datasets` knows that `image` is to be decoded."""
    value = {"dtype": "string", "_type": "Value"}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features |= {name: {"feature": value, "_type": "Sequence"} for name in STRINGS} | dict.fromkeys(STRING, value)
    columns = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    columns += [(name, pa.list_(pa.string())) for name in STRINGS] + [(name, pa.string()) for name in STRING]
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def to_row(icon: Icon, png: bytes, names: list[str], cldr: Annotations) -> dict[str, Any]:
    words = [word for word in names[0].split() if word not in {"and", "in", "of", "the", "with"}]
    return {
        "image": {"bytes": png, "path": f"{icon.style.name}/{icon.key}.png"},
        "captions": [with_tone(name, icon.tone) for name in names],
        "keywords": cldr.keywords(icon.concept) or unique(words),
        "style": icon.style.name,
        "concept": icon.concept,
        "category": icon.category,
        "split": "held-out" if is_held_out(icon.concept) else "train",
        "license": icon.style.license,
        "author": icon.style.author,
        "icon": icon.key,
    }


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Written beside its place and renamed, so that nobody reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        table = pa.Table.from_pylist(rows, schema=schema())
        pq.write_table(table, partial, compression="zstd", compression_level=19, row_group_size=1000)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def build(cache: Path) -> tuple[list[dict[str, Any]], dict[str, Counter[str]]]:
    """The rows by style and icon, and how many icons of each style were left out, by reason."""
    concepts: dict[str, str] = {}
    left_out: dict[str, Counter[str]] = {style.name: Counter() for style in STYLES}
    icons = [icon for style in STYLES for icon in read_icons(style, cache, concepts, left_out[style.name])]
    (annotations,) = read_json(fetch(CLDR, cache), "annotations/en/annotations.json")
    cldr = Annotations(annotations["annotations"]["annotations"])
    names = names_by_concept(icons, cldr)
    drawn = [(icon, draw(icon.svg)) for icon in tqdm(icons, desc="drawing", unit="icon")]
    rows = [to_row(icon, png, names[icon.concept], cldr) for icon, png in drop_repeats(drawn, left_out)]
    return rows, left_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=HERE / "data" / "emoji.parquet", help="the file to write (default: %(default)s)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=HERE / "runs" / "emoji-packages",
        help="where the npm archives are kept, 12 MB: once there, no network is used (default: %(default)s)",
    )
    arguments = parser.parse_args()
    rows, left_out = build(arguments.cache)
    write(rows, arguments.output)

    counts = Counter((row["style"], row["split"]) for row in rows)
    for style in STYLES:
        train, held_out = counts[style.name, "train"], counts[style.name, "held-out"]
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out[style.name].items()))
        print(f"{style.name:8} {train:5} train {held_out:4} held-out   (left out: {why})")
    concepts = len({row["concept"] for row in rows})
    print(
        f"{len(rows)} images of {concepts} concepts, {arguments.output.stat().st_size / 1e6:.1f} MB: {arguments.output}"
    )


if __name__ == "__main__":
    main()
