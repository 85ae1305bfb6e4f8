"""Which bytes are taken for a picture?"""

import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image

from app.generations.rehost import NotAPicture, inspect

PIXELS_MAX = 64_000_000


def _picture(kind: str, *, size: tuple[int, int] = (64, 32)) -> bytes:
    target = BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(target, kind)
    return target.getvalue()


@pytest.mark.parametrize(
    ("kind", "content_type", "extension"),
    [("PNG", "image/png", "png"), ("JPEG", "image/jpeg", "jpg"), ("WEBP", "image/webp", "webp")],
)
def test_png_jpeg_and_webp_are_told_by_their_bytes(kind: str, content_type: str, extension: str) -> None:
    picture = inspect(_picture(kind), pixels_max=PIXELS_MAX)

    assert (picture.content_type, picture.extension) == (content_type, extension)
    assert (picture.width, picture.height) == (64, 32)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP"])
def test_other_kinds_are_refused(kind: str) -> None:
    with pytest.raises(NotAPicture):
        inspect(_picture(kind), pixels_max=PIXELS_MAX)


@pytest.mark.parametrize(
    "body", [b"", b"<html></html>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_picture_is_refused(body: bytes) -> None:
    with pytest.raises(NotAPicture):
        inspect(body, pixels_max=PIXELS_MAX)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_picture_that_was_cut_is_refused(kind: str, share: float) -> None:
    whole = _picture(kind, size=(256, 256))

    with pytest.raises(NotAPicture):
        inspect(whole[: int(len(whole) * share)], pixels_max=PIXELS_MAX)


def test_a_small_file_with_very_many_pixels_is_refused_without_decoding_it() -> None:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))

    with pytest.raises(NotAPicture):
        inspect(b"\x89PNG\r\n\x1a\n" + chunk + _picture("PNG")[33:], pixels_max=PIXELS_MAX)


def test_a_picture_over_the_pixel_limit_is_refused() -> None:
    with pytest.raises(NotAPicture, match="pixels"):
        inspect(_picture("PNG"), pixels_max=64 * 32 - 1)
