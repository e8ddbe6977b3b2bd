"""What a picture's file holds, found out before anything in it is decoded.

A file may come from anyone. So it is not given to Pillow as it is: its outer layer is read here, by which the format,
the size and the place of the first picture are known, and Pillow is given a file that has this picture and nothing
else. Texts, profiles, thumbnails, further frames and pages, in which small files can hide gigabytes, are left out, and
sizes that the file cannot hold are refused before memory is spent on them.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import IO

from ddim.images import tiff
from ddim.images.spans import BrokenError, Found, Part, at, length_of

MAX_PIECES = 65_536  # chunks or segments of a file; a PNG of 89 megapixels in chunks of 8 KiB has fewer

_SMALL = 65_536  # bytes of EXIF or XMP that are looked at for the picture's orientation
_BLOCK = 1 << 20

_PNG = b"\x89PNG\r\n\x1a\n"
_DEFLATE = 1032  # how many bytes one byte of a PNG's data can become at most
_CODE = 512  # how many pixels one byte of a JPEG's data can stand for: one bit for each block of 8x8

# How many times as much memory as a PNG's pixel Pillow's decoders take for one of these at their peak. It was measured.
_CANVASES = 3.5  # WebP and AVIF: the frame, the canvas, the canvas before it, and a copy
_COEFFICIENTS = 3.0  # a JPEG of several scans: all coefficients are kept until the last one
_IN_PYTHON = 16.0  # a run-length coded BMP, which Pillow decodes byte by byte; here it is time that counts

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # of a JPEG: neither a stuffed zero nor a restart
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")


def find_picture(file: IO[bytes], whole: bool = True) -> Found:
    """The first picture of a file.

    Args:
        file: an open file that can be sought in.
        whole: look through to the end of the picture's data. False reads a JPEG's header alone.

    Raises:
        BrokenError: it is none of the formats that are read, cut off, damaged, or claims what it cannot hold.
    """
    start = file.read(32)
    for is_format, find in _FORMATS:
        if is_format(start):
            found = find(file, whole)
            width, height = found.size
            if width < 1 or height < 1:
                raise BrokenError(f"it says that it has {width}x{height} pixels")
            if length_of(found.parts) > 16 * width * height + _BLOCK and found.format != "AVIF":
                raise BrokenError(f"it has far more data than {width}x{height} pixels can need")
            return found
    raise BrokenError("it is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF, the formats that are read")


# --- PNG --------------------------------------------------------------------------------------------------------------


def png_chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where its data begins, how long that is) of each chunk of a PNG up to its end.

    Raises:
        BrokenError: the file is cut off, or has too many chunks.
    """
    end, place = file.seek(0, io.SEEK_END), len(_PNG)
    for _ in range(MAX_PIECES):
        length, kind = struct.unpack(">I4s", at(file, place, 8))
        if place + 12 + length > end:
            raise BrokenError("it is cut off")
        yield kind, place + 8, length
        if kind == b"IEND":
            return
        place += 12 + length
    raise BrokenError(f"it has more than {MAX_PIECES} chunks")


def _find_png(file: IO[bytes], whole: bool) -> Found:
    described: list[bytes] = []
    data: list[tuple[int, int]] = []
    header, total, check, turned = b"", 0, zlib.crc32(b"IDAT"), 1
    for kind, start, length in png_chunks(file):
        if not header and kind != b"IHDR":
            raise BrokenError("it does not begin with its header")
        if kind in (b"IHDR", b"PLTE", b"tRNS"):
            if length > 1024 or (kind == b"IHDR" and (header or length != 13)):
                raise BrokenError(f"its {kind.decode()} chunk is none")
            chunk = at(file, start - 8, length + 12)
            if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
                raise BrokenError("it is damaged: a check sum is wrong")
            header = header or chunk[8:-4]
            described.append(chunk)
        elif kind == b"IDAT":
            check = _check_data(file, start, length, check)
            data.append((start, start + length))
            total += length
        elif kind == b"eXIf":
            turned = tiff.orientation(at(file, start, min(length, _SMALL)))
        elif kind == b"iTXt" and length > 22 and at(file, start, 20) == b"XML:com.adobe.xmp\0\0\0":
            turned = _xmp_orientation(at(file, start, min(length, _SMALL)), turned)
    width, height, depth, colour = struct.unpack(">IIBB", header[:10])
    row = (width * depth * {2: 3, 4: 2, 6: 4}.get(colour, 1) + 7) // 8 + 1
    if total * _DEFLATE + 1024 < row * height:
        raise BrokenError(f"its {total} bytes of data cannot hold {width}x{height} pixels")
    parts: list[Part] = [_PNG, *described, struct.pack(">I4s", total, b"IDAT"), *data]
    parts.append(struct.pack(">II4sI", check, 0, b"IEND", zlib.crc32(b"IEND")))
    return Found("PNG", (width, height), parts, orientation=turned)


def _check_data(file: IO[bytes], start: int, length: int, running: int) -> int:
    """The check sum over all data so far, of which `running` is that before this chunk."""
    own, left = zlib.crc32(b"IDAT"), length
    file.seek(start)
    while left:
        block = file.read(min(left, _BLOCK))
        if not block:
            raise BrokenError("it is cut off")
        own, running, left = zlib.crc32(block, own), zlib.crc32(block, running), left - len(block)
    if own != int.from_bytes(at(file, start + length, 4), "big"):
        raise BrokenError("it is damaged: a check sum is wrong")
    return running


def _xmp_orientation(xmp: bytes, otherwise: int) -> int:
    """EXIF's number for how a picture is turned, from a text that Adobe's programs write; EXIF itself goes before."""
    match = None if otherwise != 1 else _XMP_ORIENTATION.search(xmp)
    return otherwise if match is None else int(match[1])


# --- JPEG -------------------------------------------------------------------------------------------------------------


def _find_jpeg(file: IO[bytes], whole: bool) -> Found:
    end = file.seek(0, io.SEEK_END)
    parts: list[Part] = [b"\xff\xd8"]
    size, place, scans, turned, heavy = (0, 0), 2, 0, 1, False
    components = data = 0
    for _ in range(MAX_PIECES):
        place = _next_marker(file, place)
        kind = at(file, place + 1, 1)[0]
        if scans:  # what lies before is a scan's data
            parts.append((data, place))
        if kind == 0xD9:
            break
        if kind in (0x01, 0xD8):
            place += 2
            data = place
            continue
        length = int.from_bytes(at(file, place + 2, 2), "big")
        if length < 2 or place + 2 + length > end:
            raise BrokenError("it is cut off")
        segment = (place, place + 2 + length)
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            if size != (0, 0):
                raise BrokenError("it has two headers")
            height, width, components = struct.unpack(">HHB", at(file, place + 5, 5))
            size, heavy = (width, height), kind in (0xC2, 0xC6, 0xCA, 0xCE) or kind > 0xC8
            parts.append(segment)
        elif kind == 0xDA:
            if size == (0, 0):
                raise BrokenError("it has no header")
            scans += 1
            heavy = heavy or at(file, place + 4, 1)[0] < components
            parts.append(segment)
            if not whole:
                break
        elif kind in (0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE):  # tables, restarts, and what Adobe and JFIF say of colours
            parts.append(segment)
        elif kind == 0xE1:
            body = at(file, place + 4, length - 2)
            if body.startswith(b"Exif\0\0"):
                turned = tiff.orientation(body[6:])
            elif body.startswith(b"http://ns.adobe.com/xap/"):
                turned = _xmp_orientation(body, turned)
        place = data = segment[1]
    else:
        raise BrokenError(f"it has more than {MAX_PIECES} segments")
    if not scans:
        raise BrokenError("it has no picture")
    pixels = size[0] * size[1]
    if pixels > _CODE * end:
        raise BrokenError(f"its {end} bytes cannot hold {size[0]}x{size[1]} pixels")
    if scans > 1000 or scans * pixels > 2_000_000_000:
        raise BrokenError(f"it is drawn over {scans} times, which would take minutes")
    return Found("JPEG", size, [*parts, b"\xff\xd9"], _COEFFICIENTS if heavy else 1.0, turned)


def _next_marker(file: IO[bytes], place: int) -> int:
    """Where the next marker is that is no part of a scan's data."""
    wanted = 256
    while True:
        file.seek(place)
        block = file.read(wanted)
        if len(block) < 2:
            raise BrokenError("it is cut off")
        found = _MARKER.search(block)
        if found:
            return place + found.start()
        place += len(block) - 1
        wanted = min(8 * wanted, _BLOCK)


# --- GIF --------------------------------------------------------------------------------------------------------------


def _find_gif(file: IO[bytes], whole: bool) -> Found:
    head = at(file, 0, 13)
    width, height, flags = struct.unpack("<HHB", head[6:11])
    place = 13 + _colours(flags)
    parts: list[Part] = [(0, place)]
    control: list[Part] = []
    for _ in range(MAX_PIECES):
        kind = at(file, place, 1)
        if kind == b"!":
            if at(file, place + 1, 2) == b"\xf9\x04":
                control = [(place, place + 8)]
            place = _past_blocks(file, place + 2)
        elif kind == b",":
            left, top, across, down, flags = struct.unpack("<HHHHB", at(file, place + 1, 9))
            end = _past_blocks(file, place + 11 + _colours(flags))
            size = (max(width, left + across), max(height, top + down))
            return Found("GIF", size, [*parts, *control, (place, end), b";"])
        elif kind == b";":
            break
        else:
            place += 1
    raise BrokenError("it has no picture")


def _colours(flags: int) -> int:
    """How many bytes the table of colours has that these flags announce."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _past_blocks(file: IO[bytes], place: int) -> int:
    """Where a chain of blocks ends, each of which begins with its length and the last of which has none."""
    file.seek(place)
    for _ in range(64 * MAX_PIECES):
        length = file.read(1)
        if not length:
            raise BrokenError("it is cut off")
        if length == b"\0":
            return file.tell()
        file.seek(length[0], io.SEEK_CUR)
    raise BrokenError("it has too many blocks")


# --- WebP -------------------------------------------------------------------------------------------------------------


def _riff_chunks(file: IO[bytes], place: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where the chunk begins, where it ends with its padding)."""
    for _ in range(MAX_PIECES):
        if place + 8 > end:
            return
        kind, length = struct.unpack("<4sI", at(file, place, 8))
        if place + 8 + length > end:
            raise BrokenError("it is cut off")
        following = min(place + 8 + length + length % 2, end)
        yield kind, place, following
        place = following
    raise BrokenError(f"it has more than {MAX_PIECES} chunks")


def _find_webp(file: IO[bytes], whole: bool) -> Found:
    end = file.seek(0, io.SEEK_END)
    claimed = int.from_bytes(at(file, 4, 4), "little") + 8
    if claimed > end:
        raise BrokenError("it is cut off")
    size: tuple[int, int] | None = None
    parts: list[Part] = []
    turned, drawn = 1, False
    for kind, start, stop in _riff_chunks(file, 12, claimed):
        if kind == b"VP8X" and size is None:
            chunk = at(file, start, 18)
            size = (int.from_bytes(chunk[12:15], "little") + 1, int.from_bytes(chunk[15:18], "little") + 1)
            parts.append(chunk[:8] + bytes([chunk[8] & 0b1101_0011]) + chunk[9:])  # without profile, EXIF and XMP
        elif kind in (b"VP8 ", b"VP8L", b"ANMF") and not drawn:
            drawn = True
            size = size or _webp_size(kind, at(file, start + 8, 10 if kind == b"VP8 " else 5))
            parts.append((start, stop))
        elif kind in (b"ALPH", b"ANIM") and not drawn:
            parts.append((start, stop))
        elif kind == b"EXIF":
            body = at(file, start + 8, min(stop - start - 8, _SMALL))
            turned = tiff.orientation(body.removeprefix(b"Exif\0\0"))
        elif kind == b"XMP ":
            turned = _xmp_orientation(at(file, start + 8, min(stop - start - 8, _SMALL)), turned)
    if size is None or not drawn:
        raise BrokenError("it has no picture")
    head = struct.pack("<4sI4s", b"RIFF", length_of(parts) + 4, b"WEBP")
    return Found("WEBP", size, [head, *parts], _CANVASES, turned)


def _webp_size(kind: bytes, start: bytes) -> tuple[int, int]:
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", start[6:10])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and start[0] == 0x2F:
        bits = int.from_bytes(start[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise BrokenError("its header is none")


# --- BMP --------------------------------------------------------------------------------------------------------------


def _find_bmp(file: IO[bytes], whole: bool) -> Found:
    end = file.seek(0, io.SEEK_END)
    head = at(file, 0, 26).ljust(26)
    offset, kind = struct.unpack("<II", head[10:18])
    if kind == 12:
        width, height, _, bits = struct.unpack("<HHHH", head[18:26])
        coding = 0
    else:
        width, height, _, bits, coding = struct.unpack("<iiHHI", at(file, 18, 16))
    height = abs(height)
    if coding not in (1, 2) and (width * bits + 31) // 32 * 4 * height > end - offset:
        raise BrokenError(f"its {end} bytes cannot hold {width}x{height} pixels")
    return Found("BMP", (width, height), [(0, end)], _IN_PYTHON if coding in (1, 2) else 1.0)


# --- AVIF -------------------------------------------------------------------------------------------------------------


def _find_avif(file: IO[bytes], whole: bool) -> Found:
    """The size is what the largest picture in the file says of itself."""
    end = file.seek(0, io.SEEK_END)
    parts: list[Part] = []
    sizes = []
    place = 0
    for _ in range(64):
        if place + 8 > end:
            break
        length, kind = struct.unpack(">I4s", at(file, place, 8))
        if length == 1:
            length = int.from_bytes(at(file, place + 8, 8), "big")
        length = length or end - place
        if length < 8 or place + length > end:
            raise BrokenError("it is cut off")
        if kind in (b"meta", b"moov"):
            if length > _BLOCK:
                raise BrokenError("what it says of itself is over 1 MiB")
            box = at(file, place, length)
            sizes += [
                struct.unpack(">II", box[m.end() + 4 : m.end() + 12]) for m in re.finditer(b"\0\0\0\x14ispe", box)
            ]
            parts.append(box.replace(b"Exif", b"skip"))  # so that nothing reads what may lie in there
        else:
            parts.append((place, place + length))
        place += length
    if not sizes:
        raise BrokenError("it has no picture")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    if end > 16 * width * height + _BLOCK:
        raise BrokenError(f"it has far more data than {width}x{height} pixels can need")
    return Found("AVIF", (width, height), parts, _CANVASES)


_FORMATS: list[tuple[Callable[[bytes], bool], Callable[[IO[bytes], bool], Found]]] = [
    (lambda start: start.startswith(_PNG), _find_png),
    (lambda start: start.startswith(b"\xff\xd8\xff"), _find_jpeg),
    (lambda start: start[:4] == b"RIFF" and start[8:12] == b"WEBP", _find_webp),
    (lambda start: start[:6] in (b"GIF87a", b"GIF89a"), _find_gif),
    (lambda start: start[:2] == b"BM", _find_bmp),
    (lambda start: start[:4] in tiff.STARTS, tiff.find_page),
    (lambda start: start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis", b"mif1", b"msf1"), _find_avif),
]
