"""TIFF files, and EXIF, which is one: their directory of tags, read within bounds."""

from __future__ import annotations

import io
import struct
from collections.abc import Collection
from typing import IO, NamedTuple

from ddim.images.spans import BrokenError, Found, Part, at, length_of

STARTS = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}  # the last two are of BigTIFF

_ENTRIES = 4096  # of a directory
_VALUES = 1 << 20  # bytes of all values that are read of a directory
_STRIPS = 65_536

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8}  # bytes, by a value's type
_LETTERS = {1: "B", 3: "H", 4: "I", 16: "Q"}

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES = 256, 257, 258, 259, 262, 274, 277
_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 273, 279, 322, 323, 324, 325
# What else says how to read the pixels: the order of bits, rows of a strip, planes, predictor, palette, further
# channels, kinds of numbers, JPEG's tables, and how YCbCr is sampled and where its black and white are.
_OTHERS = (266, 278, 284, 317, 320, 338, 339, 347, 530, 531, 532)
# None, CCITT's, LZW, JPEG, Deflate and its older number, PackBits. Others can hold gigabytes in bytes, or are not read.
_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32946, 32773)


class Value(NamedTuple):
    """A tag's value as it is in the file: its type, how many there are, and their bytes."""

    kind: int
    many: int
    raw: bytes


def orientation(exif: bytes) -> int:
    """EXIF's number for how a picture is turned, 1 to 8; 1, which is upright, if it says none."""
    try:
        order, tags = _directory(io.BytesIO(exif), (_ORIENTATION,))
        (turned,) = _numbers(tags[_ORIENTATION], order)
    except (BrokenError, KeyError, ValueError):
        return 1
    return turned if 1 <= turned <= 8 else 1


def find_page(file: IO[bytes], whole: bool) -> Found:
    """The first page of a TIFF, as a TIFF of this page alone."""
    wanted = (_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, *_OTHERS)
    placed = (_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS)
    order, tags = _directory(file, wanted + placed)

    def numbers(tag: int, *otherwise: int) -> tuple[int, ...]:
        return _numbers(tags[tag], order) if tag in tags else otherwise

    try:
        (width,), (height,), (compression,) = numbers(_WIDTH), numbers(_HEIGHT), numbers(_COMPRESSION, 1)
        (turned,), (samples,), (photometric,) = numbers(_ORIENTATION, 1), numbers(_SAMPLES, 1), numbers(_PHOTOMETRIC, 0)
        sides = (*numbers(_TILE_WIDTH), *numbers(_TILE_HEIGHT))
    except ValueError as error:
        raise BrokenError("its header is none") from error
    if compression not in _COMPRESSIONS:
        raise BrokenError(f"TIFF's compression {compression} is not read: save it with LZW, Deflate or none")
    if sides and (len(sides) != 2 or not all(sides) or sides[0] * sides[1] > max(4 * width * height, 1 << 20)):
        raise BrokenError(f"its tiles are absurd: {sides}")
    where, lengths = (_TILE_OFFSETS, _TILE_COUNTS) if sides else (_STRIP_OFFSETS, _STRIP_COUNTS)
    end = file.seek(0, io.SEEK_END)
    offsets = numbers(where)
    counts = numbers(lengths) or (tuple(end - offset for offset in offsets) if len(offsets) == 1 else ())
    if not 0 < len(offsets) == len(counts) <= _STRIPS:
        raise BrokenError("it does not say where its pixels are")
    strips: list[Part] = []
    for offset, count in zip(offsets, counts, strict=True):
        if offset + count > end or count < 0:
            raise BrokenError("it is cut off")
        strips.append((offset, offset + count))
    bits = numbers(_BITS, 1) or (1,)
    row = (width * (sum(bits) if len(bits) > 1 else bits[0] * samples) + 7) // 8
    if compression == 1 and photometric != 6 and row * height > length_of(strips):
        raise BrokenError(f"its {end} bytes cannot hold {width}x{height} pixels")
    kept = {tag: value for tag, value in tags.items() if tag not in (_ORIENTATION, where, lengths)}
    parts = [*_head(order, kept, (where, lengths), counts), *strips]
    return Found("TIFF", (width, height), parts, 1.0 if compression == 1 else 3.0, turned if 1 <= turned <= 8 else 1)


def _directory(file: IO[bytes], wanted: Collection[int]) -> tuple[str, dict[int, Value]]:
    """The order of bytes, "<" or ">", and the tags that are wanted of the first directory."""
    start = at(file, 0, 8)
    order = STARTS.get(start[:4])
    if order is None:
        raise BrokenError("its header is none")
    is_big = start[2:4] in (b"+\0", b"\0+")
    word, number, head, step = ("Q", "Q", 16, 20) if is_big else ("I", "H", 8, 12)
    inline = struct.calcsize(word)
    (place,) = struct.unpack(order + word, at(file, head - inline, inline))
    (count,) = struct.unpack(order + number, at(file, place, struct.calcsize(number)))
    if count > _ENTRIES:
        raise BrokenError(f"its directory has more than {_ENTRIES} entries")
    raw = at(file, place + struct.calcsize(number), count * step)
    tags: dict[int, Value] = {}
    left = _VALUES
    for index in range(count):
        entry = raw[index * step : (index + 1) * step]
        tag, kind, many = struct.unpack(order + "HH" + word, entry[:-inline])
        if tag not in wanted or kind not in _SIZES or tag in tags:
            continue
        length = many * _SIZES[kind]
        left -= length
        if left < 0:
            raise BrokenError("its directory is too large")
        value = entry[-inline:][:length]
        if length > inline:
            (there,) = struct.unpack(order + word, entry[-inline:])
            value = at(file, there, length)
        tags[tag] = Value(kind, many, value)
    return order, tags


def _numbers(value: Value, order: str) -> tuple[int, ...]:
    """Whole numbers."""
    if value.kind not in _LETTERS:
        raise BrokenError("its header is none")
    return struct.unpack(f"{order}{value.many}{_LETTERS[value.kind]}", value.raw)


def _head(order: str, tags: dict[int, Value], places: tuple[int, int], counts: tuple[int, ...]) -> list[Part]:
    """The header and directory of a TIFF whose strips follow at once; `places` are the tags that say where."""
    tags = {tag: _narrow(value, order) for tag, value in tags.items()}
    many = len(counts)
    tags[places[1]] = Value(4, many, struct.pack(f"{order}{many}I", *counts))
    fixed = 8 + 2 + 12 * (len(tags) + 1) + 4
    extra = sum(len(value.raw) + len(value.raw) % 2 for value in tags.values() if len(value.raw) > 4)
    first = fixed + extra + (4 * many if many > 1 else 0)
    offsets = [first]
    for count in counts[:-1]:
        offsets.append(offsets[-1] + count)
    tags[places[0]] = Value(4, many, struct.pack(f"{order}{many}I", *offsets))
    directory, values = struct.pack(order + "H", len(tags)), b""
    for tag, (kind, count, raw) in sorted(tags.items()):
        directory += struct.pack(order + "HHI", tag, kind, count)
        if len(raw) > 4:
            directory += struct.pack(order + "I", fixed + len(values))
            values += raw + b"\0" * (len(raw) % 2)
        else:
            directory += raw.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return [mark + struct.pack(order + "I", 8) + directory + b"\0" * 4 + values]


def _narrow(value: Value, order: str) -> Value:
    """A value of 64 bits, which only BigTIFF has, in 32."""
    if value.kind != 16:
        return value
    numbers = _numbers(value, order)
    if any(number >= 1 << 32 for number in numbers):
        raise BrokenError("its header is none")
    return Value(4, value.many, struct.pack(f"{order}{value.many}I", *numbers))
