"""Are these bytes a whole picture, and which?"""

import hashlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass, field

from PIL import Image as Pillow
from PIL import UnidentifiedImageError
from zlib_ng import zlib_ng

from app.storage.base import Body

# What upstream may send, by Pillow's name. SVG and HTML can run scripts in a browser; GIF and TIFF nobody asked for.
_KINDS = {"PNG": ("image/png", "png"), "JPEG": ("image/jpeg", "jpg"), "WEBP": ("image/webp", "webp")}
EXTENSIONS = tuple(extension for _, extension in _KINDS.values())

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Stays in the processor's cache between the two looks at it. With less, threads change places more often.
_PIECE_BYTES = 256 * 1024


class NotAPicture(Exception):
    """These bytes are no whole PNG, JPEG or WebP of an allowed size; the text says what is wrong."""


@dataclass(frozen=True)
class Picture:
    """Bytes that were found to be a whole picture of a known kind and size."""

    body: Body = field(repr=False)
    content_type: str
    extension: str
    width: int
    height: int
    # Here, where a thread has the bytes in hand anyway: storage signs with it, and the row keeps it.
    sha256: bytes = field(repr=False)


def inspect(body: Body, *, pixels_max: int) -> Picture:
    """Return what picture these bytes are. Raises NotAPicture; never decodes more pixels than `pixels_max`."""
    try:
        # Of a PNG, Pillow looks at what stands before its pixels; given all, it would be given a copy of all.
        digest, head = _read_png(body) if body.startswith(_PNG_SIGNATURE) else (b"", body)
        with warnings.catch_warnings():
            # Pillow warns of large pictures before our own cap can speak; the cap is what counts.
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)
            opened = Pillow.open(io.BytesIO(head), formats=list(_KINDS))
        width, height = opened.size
        if width * height > pixels_max:
            raise NotAPicture(f"{width}x{height} is more than {pixels_max} pixels")
        kind = opened.format
        assert kind is not None
        if kind != "PNG":
            # Neither of the others has checksums, so they are decoded.
            opened.load()
            digest = hashlib.sha256(body).digest()
    except (UnidentifiedImageError, Pillow.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise NotAPicture(f"not a whole PNG, JPEG or WebP ({type(error).__name__})") from error
    except (struct.error, zlib.error, IndexError, OverflowError) as error:
        raise NotAPicture(f"a broken picture ({type(error).__name__})") from error
    content_type, extension = _KINDS[kind]
    return Picture(body, content_type, extension, width, height, digest)


def _read_png(body: Body) -> tuple[bytes, Body]:
    """Return the SHA-256 of a PNG whose every chunk is whole and fits its checksum, and what stands before its pixels.
    Raises NotAPicture.

    As Pillow's verify(), which decodes nothing either, but begins with the pixels, leaves out the last chunk's checksum
    and copies each chunk. Both looks at the bytes are taken together, so that they come from memory once; zlib-ng's
    checksum takes a quarter of the time of zlib's.
    """
    view, digest, hashed = memoryview(body), hashlib.sha256(), 0
    start, kind, pixels_at = len(_PNG_SIGNATURE), b"", None
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", view, start)
        # The checksum is of the kind and what follows it.
        end = start + 8 + length
        if end > len(view):
            raise NotAPicture("a PNG that was cut")
        if struct.unpack_from(">I", view, end)[0] != zlib_ng.crc32(view[start + 4 : end]):
            raise NotAPicture("a PNG that does not fit its checksums")
        if kind == b"IDAT" and pixels_at is None:
            pixels_at = start + 8
        start = end + 4
        if start - hashed >= _PIECE_BYTES:
            digest.update(view[hashed:start])
            hashed = start
    if pixels_at is None:
        raise NotAPicture("a PNG without pixels")
    digest.update(view[hashed:])
    return digest.digest(), body[:pixels_at]
