"""Pictures that are broken, or meant to break whoever reads them, each made by code; for tests of hostile pictures."""

from __future__ import annotations

import functools
import io
import os
import socket
import struct
import zlib
from pathlib import Path
from typing import Any

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GOOD = Image.linear_gradient("L").resize((24, 16)).convert("RGB")  # what a picture shows that is only poisoned


def saved(kind: str, image: Image.Image = GOOD, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# --- PNG --------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes = b"", check: int | None = None) -> bytes:
    check = zlib.crc32(kind + data) if check is None else check
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def header(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


DATA = zlib.compress(b"".join(b"\0" + GOOD.crop((0, y, 24, y + 1)).tobytes() for y in range(16)))


def png(*more: bytes, head: bytes = header(24, 16), data: bytes = chunk(b"IDAT", DATA), after: bytes = b"") -> bytes:
    return SIGNATURE + head + b"".join(more) + data + after + chunk(b"IEND")


@functools.cache
def bomb() -> bytes:
    return zlib.compress(bytes(100_000_000), 1)


def exif_bomb(entries: int, length: int) -> bytes:
    """A directory of many tags, each of which claims the whole of the file for its value."""
    body = b"".join(struct.pack("<HHII", tag + 1, 7, length, 8) for tag in range(entries))
    return (b"II*\0" + struct.pack("<IH", 8, entries) + body + b"\0\0\0\0").ljust(length + 8, b"x")


# --- JPEG -------------------------------------------------------------------------------------------------------------


def segment(kind: int, data: bytes) -> bytes:
    return bytes((0xFF, kind)) + struct.pack(">H", len(data) + 2) + data


def jpeg(*more: bytes, **options: Any) -> bytes:
    """A good JPEG with further segments at its beginning."""
    whole = saved("JPEG", **options)
    return whole[:2] + b"".join(more) + whole[2:]


def resized(whole: bytes, width: int, height: int, kind: bytes) -> bytes:
    """A JPEG that claims another size."""
    place = whole.index(kind) + 5
    return whole[:place] + struct.pack(">HH", height, width) + whole[place + 4 :]


def many_scans(count: int, side: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each time all of it is drawn."""
    whole = saved("JPEG", Image.new("RGB", (side, side), "red"), progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * count + whole[-2:]


# --- others -----------------------------------------------------------------------------------------------------------


def gif(*, screen: tuple[int, int] = (24, 16), before: bytes = b"", frames: int = 1, more: bytes = b"") -> bytes:
    whole = saved("GIF", GOOD.convert("P"))
    place = whole.index(b"\x2c", 13 + 3 * 2 ** ((whole[10] & 7) + 1))
    frame = whole[place:-1]
    return whole[:6] + struct.pack("<HH", *screen) + whole[10:place] + before + frame * frames + more + b";"


def riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff_chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def canvas(width: int, height: int, flags: int = 0) -> bytes:
    return riff_chunk(
        b"VP8X", bytes([flags, 0, 0, 0]) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    )


def webp_chunk() -> bytes:
    return saved("WEBP", lossless=True)[12:]


def frame() -> bytes:
    place = bytes(6) + struct.pack("<I", 23)[:3] + struct.pack("<I", 15)[:3] + bytes(4)
    return riff_chunk(b"ANMF", place + webp_chunk())


def bmp(width: int, height: int, *, bits: int = 24, coding: int = 0, colours: int = 0, data: bytes = b"") -> bytes:
    offset = 54 + 4 * min(colours, 256)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, coding, 0, 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + head + bytes(offset - 54) + data


def tiff(tags: dict[int, tuple[int, int, int]], data: bytes = b"", following: int = 0) -> bytes:
    """A TIFF of one directory: tag -> (type, count, value or offset). The data follows; a strip at 0 is put there."""
    if tags.get(273) == (4, 1, 0):
        tags = {**tags, 273: (4, 1, 8 + 2 + 12 * len(tags) + 4)}
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", following) + data


def plain_tags(width: int, height: int, **changed: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
    """The tags of a grey picture of one strip, some of them changed; `tag_258=…`."""
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1),
            278: (4, 1, height), 273: (4, 1, 0), 279: (4, 1, 24 * 16)}  # fmt: skip
    return tags | {int(name[4:]): value for name, value in changed.items()}


def box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data) + 8) + kind + data


# --- all --------------------------------------------------------------------------------------------------------------


@functools.cache
def poisoned() -> dict[str, bytes]:
    """Pictures that show `GOOD`, or nearly, and hide something that is not to be looked at."""
    return {
        "text bomb.png": png(chunk(b"zTXt", b"Comment\0\0" + bomb())),
        "international text bomb.png": png(chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb())),
        "profile bomb.png": png(chunk(b"iCCP", b"sRGB\0\0" + bomb())),
        "text bomb behind.png": png(after=chunk(b"zTXt", b"Comment\0\0" + bomb()) * 20),
        "50,000 texts.png": png(chunk(b"tEXt", b"a\0b") * 50_000),
        "exif bomb.png": png(chunk(b"eXIf", exif_bomb(4000, 2_000_000))),
        "exif claims 2 GiB.png": png(
            chunk(b"eXIf", exif_bomb(4000, 60_000).replace(b"\x60\xea\0\0", b"\xff\xff\xff\x7f"))
        ),
        "a million frames.png": png(
            chunk(b"acTL", struct.pack(">II", 1_000_000, 0)), after=chunk(b"fcTL", bytes(26)) * 9000
        ),
        "wrong frames.png": png(chunk(b"acTL", b""), after=chunk(b"fdAT", b"")),
        "50,000 pieces.png": png(
            data=b"".join(chunk(b"IDAT", DATA[k : k + 1]) for k in range(len(DATA))) + chunk(b"IDAT") * 50_000
        ),
        "rubbish behind.png": png() + os.urandom(100_000),
        "xmp says 9.png": png(chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<tiff:Orientation="9"/>')),
        "exif bomb.jpg": jpeg(segment(0xE1, b"Exif\0\0" + exif_bomb(4000, 60_000)), quality=95),
        "99 exif bombs.jpg": jpeg(segment(0xE1, b"Exif\0\0" + exif_bomb(4000, 60_000)) * 99, quality=95),
        "index of pictures.jpg": jpeg(segment(0xE2, b"MPF\0" + exif_bomb(4000, 60_000)), quality=95),
        "99 profiles.jpg": jpeg(segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000)) * 99, quality=95),
        "60,000 comments.jpg": jpeg(segment(0xFE, b"") * 60_000, quality=95),
        "photoshop.jpg": jpeg(segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 10_000), quality=95),
        "exif points at itself.jpg": jpeg(
            segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0"), quality=95
        ),
        "a million frames.gif": gif(frames=20_000),
        "comment of 5 MB.gif": gif(before=b"!\xfe" + (b"\xff" + bytes(255)) * 20_000 + b"\0"),
        "50,000 extensions.gif": gif(before=b"!\xf9\4\0\0\0\0\0" * 50_000),
        "20,000 frames.webp": riff(canvas(24, 16, 2), riff_chunk(b"ANIM", bytes(6)), frame() * 20_000),
        "exif of 5 MB.webp": riff(canvas(24, 16, 8), webp_chunk(), riff_chunk(b"EXIF", exif_bomb(4000, 5_000_000))),
        "profile of 5 MB.webp": riff(canvas(24, 16, 32), riff_chunk(b"ICCP", bytes(5_000_000)), webp_chunk()),
        "its next page is itself.tif": tiff(
            plain_tags(
                24,
                16,
            ),
            GOOD.convert("L").tobytes(),
            8,
        ),
        "its parts are itself.tif": tiff(
            plain_tags(24, 16, tag_330=(4, 1, 8), tag_34665=(4, 1, 8), tag_34853=(4, 1, 8)), GOOD.convert("L").tobytes()
        ),
        "absurd notes.tif": tiff(
            plain_tags(24, 16, tag_37724=(7, 0xFFFFFFF0, 8), tag_700=(1, 0x7FFFFFFF, 8)), GOOD.convert("L").tobytes()
        ),
    }


@functools.cache
def broken() -> dict[str, bytes]:
    """What is no picture, or one that is not to be decoded."""
    whole, progressive, webp, avif = jpeg(), jpeg(progressive=True), saved("WEBP"), saved("AVIF")
    wide = tiff(plain_tags(24, 16))
    return {
        # sizes
        "13,000 x 13,000.png": saved("PNG", Image.new("1", (13_000, 13_000))),
        "89,000,000 x 1.png": png(
            head=header(89_000_000, 1, colour=0), data=chunk(b"IDAT", zlib.compress(bytes(89_000_001), 1))
        ),
        "1 x 89,000,000.png": png(head=header(1, 89_000_000, colour=0)),
        "2147483647 x 2147483647.png": png(head=header(2**31 - 1, 2**31 - 1)),
        "4294967295 x 1.png": png(head=header(2**32 - 1, 1)),
        "0 x 16.png": png(head=header(0, 16)),
        "claims 9,000 x 9,000.png": png(head=header(9000, 9000)),
        "65,500 x 65,500.jpg": resized(whole, 65_500, 65_500, b"\xff\xc0"),
        "9,000 x 9,000.jpg": resized(whole, 9000, 9000, b"\xff\xc0"),
        "8,000 x 8,000 progressive.jpg": resized(
            jpeg(segment(0xFE, bytes(60_000)) * 9, progressive=True), 8000, 8000, b"\xff\xc2"
        ),
        "0 x 0.jpg": resized(whole, 0, 0, b"\xff\xc0"),
        "height to come.jpg": resized(whole, 24, 0, b"\xff\xc0"),
        "65,535 x 65,535.gif": gif(screen=(65_535, 65_535)),
        "0 x 0.gif": b"GIF89a\0\0\0\0\0\0\0,\0\0\0\0\0\0\0\0\0\2\0;",
        "16,383 x 16,383.webp": riff(riff_chunk(b"VP8L", b"\x2f" + struct.pack("<I", 16382 | 16382 << 14) + bytes(64))),
        "16,777,216 x 16,777,216.webp": riff(canvas(1 << 24, 1 << 24), webp_chunk()),
        "16,777,216 x 2 animated.webp": riff(canvas(1 << 24, 2, 2), riff_chunk(b"ANIM", bytes(6)), frame()),
        "30,000 x 2,900.bmp": bmp(30_000, 2900, data=bytes(100)),
        "-2147483648 x -2147483648.bmp": bmp(-(2**31), -(2**31), data=bytes(100)),
        "8,000 x 8,000 run-length.bmp": bmp(8000, 8000, bits=8, coding=1, colours=256, data=b"\xff\1" * 250_000),
        "90,000 x 90,000.tif": tiff(plain_tags(90_000, 90_000), bytes(2000)),
        "9,000 x 9,000.tif": tiff(plain_tags(9000, 9000), bytes(2000)),
        "9,000 x 9,000 of zeros.tif": tiff(
            plain_tags(9000, 9000, tag_259=(3, 1, 8), tag_279=(4, 1, 90_000)), zlib.compress(bytes(81_000_000))
        ),
        "avif of 60,000.avif": avif.replace(
            b"ispe\0\0\0\0\0\0\0\x18\0\0\0\x10", b"ispe\0\0\0\0\0\0\xea\x60\0\0\xea\x60"
        ),
        # cut off
        **{
            f"cut.{kind.lower()}": saved(kind)[: len(saved(kind)) * 2 // 3]
            for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF")
        },
        "half a header.png": png()[:20],
        "signature.png": SIGNATURE,
        "without an end.png": png()[:-12],
        "without an end.jpg": whole[:-2],
        "two bytes.jpg": b"\xff\xd8\xff",
        "cut chunk.webp": webp[:30],
        "half a directory.tif": wide[:60],
        # damage
        "wrong check sum.png": png(data=chunk(b"IDAT", DATA, check=7)),
        "wrong check sum of the header.png": png(head=header(24, 16)[:-4] + bytes(4)),
        "no deflate.png": png(data=chunk(b"IDAT", b"rubbish" * 9)),
        "too little deflate.png": png(data=chunk(b"IDAT", zlib.compress(bytes(60)))),
        "no data.png": png(data=b""),
        "70,000 chunks.png": png(chunk(b"tEXt") * 70_000),
        "70,000 empty pieces.png": png(data=chunk(b"IDAT") * 70_000),
        "two headers.png": png(header(9, 9)),
        "text before header.png": SIGNATURE + chunk(b"tEXt", b"a\0b") + png()[8:],
        "chunk of 4 GiB.png": SIGNATURE + header(24, 16) + b"\xff\xff\xff\xffIDAT" + DATA,
        "chunk of 2 GiB.png": SIGNATURE + header(24, 16) + b"\x7f\xff\xff\xffzTXt" + DATA,
        "palette of 60 KB.png": png(chunk(b"PLTE", bytes(60_000)), head=header(24, 16, colour=3)),
        "depth 3.png": png(head=header(24, 16, depth=3)),
        "kind 9.png": png(head=header(24, 16, colour=9)),
        "interlace 7.png": png(head=header(24, 16, interlace=7), data=chunk(b"IDAT", zlib.compress(b"\7" * 30))),
        "2 MB for a thumbnail.png": png(data=chunk(b"IDAT", os.urandom(2_000_000))),
        "1,200 scans.jpg": many_scans(1200, 64),
        "900 scans.jpg": many_scans(900, 1600),
        "two headers.jpg": whole[:2] + whole[whole.index(b"\xff\xc0") :][:19] + whole[2:],
        "no picture.jpg": b"\xff\xd8" + segment(0xFE, b"nothing") + b"\xff\xd9",
        "no header.jpg": whole.replace(b"\xff\xc0", b"\xff\xfe"),
        "12 bits.jpg": whole.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
        "70,000 comments.jpg": jpeg(segment(0xFE, b"") * 70_000),
        "progressive without tables.jpg": progressive.replace(b"\xff\xc4", b"\xff\xfe"),
        "no colours.jpg": whole.replace(b"\xff\xc0\0\x11\x08\0\x10\0\x18\3", b"\xff\xc0\0\x11\x08\0\x10\0\x18\0"),
        "rubbish.gif": gif()[:-200] + b"\xff" * 190,
        "no frame.gif": b"GIF89a\x18\0\x10\0\0\0\0;",
        "rubbish.webp": riff(riff_chunk(b"VP8 ", b"\0\0\0\x9d\x01\x2a\x18\0\x10\0" + bytes(50))),
        "70,000 chunks.webp": riff(canvas(24, 16), riff_chunk(b"XXXX", b"") * 70_000),
        "chunk of 4 GiB.webp": riff(canvas(24, 16), b"VP8L\xff\xff\xff\xff"),
        "rubbish.bmp": bmp(24, 16, bits=7, data=bytes(2000)),
        "palette of 4 GiB.bmp": bmp(24, 16, bits=8, colours=2**32 - 1, data=bytes(2000)),
        "65,535 tags.tif": b"II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65_535),
        "tags without a file.tif": b"II*\0\x08\0\0\0\xff\x0f",
        "tags of 6 MB.tif": tiff(plain_tags(24, 16, tag_320=(3, 3_000_000, 8)), bytes(6_000_000)),
        "tiles of 60,000.tif": tiff(
            plain_tags(
                24, 16, tag_322=(4, 1, 60_000), tag_323=(4, 1, 60_000), tag_324=(4, 1, 200), tag_325=(4, 1, 384)
            ),
            bytes(2000),
        ),
        "two billion strips.tif": tiff(plain_tags(24, 16, tag_273=(4, 2**31, 8), tag_279=(4, 2**31, 8)), bytes(2000)),
        "no strips.tif": tiff({k: v for k, v in plain_tags(24, 16).items() if k not in (273, 279)}, bytes(2000)),
        "strips elsewhere.tif": tiff(plain_tags(24, 16, tag_273=(4, 1, 2**31)), bytes(2000)),
        "LZMA.tif": tiff(plain_tags(24, 16, tag_259=(3, 1, 34925)), bytes(2000)),
        "Zstandard.tif": tiff(plain_tags(24, 16, tag_259=(3, 1, 50000)), bytes(2000)),
        "compression 77.tif": tiff(plain_tags(24, 16, tag_259=(3, 1, 77)), bytes(2000)),
        "width of text.tif": tiff(plain_tags(24, 16, tag_256=(2, 4, 0x30303031)), bytes(2000)),
        "65,535 samples.tif": tiff(plain_tags(24, 16, tag_277=(3, 1, 65_535)), bytes(2000)),
        "bits of 65,535.tif": tiff(plain_tags(24, 16, tag_258=(3, 1, 65_535)), bytes(2000)),
        "rubbish.tif": tiff(plain_tags(24, 16, tag_259=(3, 1, 8)), b"\xff" * 2000),
        "rubbish.avif": avif[:40] + b"\xff" * 400,
        "no picture.avif": box(b"ftyp", b"avif\0\0\0\0avif") + box(b"mdat", bytes(100)),
        "description of 2 MiB.avif": box(b"ftyp", b"avif\0\0\0\0avif") + box(b"meta", bytes(2 << 20)),
        "box of 2^64.avif": box(b"ftyp", b"avif\0\0\0\0avif") + b"\0\0\0\1meta" + b"\xff" * 8,
        # other formats, of which the first ones start programs or open other files
        "postscript.eps": saved("EPS"),
        "postscript.png": saved("EPS"),
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file\n",
        "document.pdf": saved("PDF"),
        "metafile.wmf": b"\xd7\xcd\xc6\x9a\0\0" + bytes(100),
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/x.png"/></svg>',
        **{
            f"other.{kind.lower()}": saved(kind)
            for kind in ("PCX", "PPM", "TGA", "ICO", "JPEG2000", "SGI", "ICNS", "DDS")
        },
        "photoshop.psd": b"8BPS\0\1" + bytes(100),
        "film.mpeg": b"\0\0\1\xb3" + bytes(100),
        "catalogue.mcidas": b"\0\0\0\0\0\0\0\4" + bytes(300),
        "fits.fits": b"SIMPLE  =                    T".ljust(2880),
        "nothing.png": b"",
        "text.png": b"a cat",
    }


def nothings(folder: Path) -> list[str]:
    """Paths that lead to no ordinary file."""
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "dangling.png").symlink_to(folder / "none.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(folder / "socket.png"))
    names = ("pipe.png", "folder.png", "loop.png", "dangling.png", "zero.png", "socket.png", "missing.png")
    return [*(str(folder / name) for name in names), "/dev/null", "a\0b.png", "x" * 5000 + ".png", ""]
