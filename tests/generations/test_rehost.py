"""Which bytes are taken for a picture?"""

import hashlib
import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image

from app.generations.picture import NotAPicture, inspect

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


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


HEADER = struct.pack(">IIBBBBB", 100, 100, 8, 2, 0, 0, 0)


def _png(
    *, before: bytes = b"", pixels: bytes | None = None, after: bytes = b"", first: bytes = _chunk(b"IHDR", HEADER)
) -> bytes:
    """A PNG of 100 rows, with chunks beside its pixels."""
    noise = zlib.compress(b"".join(b"\0" + hashlib.sha256(bytes([row])).digest() * 10 for row in range(100)))
    pixels = _chunk(b"IDAT", noise) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + first + before + pixels + after + _chunk(b"IEND", b"")


WHOLE_PNGS = {
    "plain": _png(),
    "with text": _png(before=_chunk(b"tEXt", b"a\0b"), after=_chunk(b"tEXt", b"c\0d")),
    "one chunk of a megabyte": _png(pixels=_chunk(b"IDAT", zlib.compress(bytes(30_100), 0) + bytes(1_000_000))),
    "one chunk of just a piece": _png(pixels=_chunk(b"IDAT", zlib.compress(bytes(30_100), 0) + bytes(231_997))),
    "pixels in many chunks": _png(pixels=_chunk(b"IDAT", zlib.compress(bytes(30_100), 0)) + _chunk(b"IDAT", b"") * 9),
    "with something behind it": _png() + b"something",
}


@pytest.mark.parametrize("body", WHOLE_PNGS.values(), ids=WHOLE_PNGS)
def test_a_whole_png_is_taken_and_its_digest_is_that_of_all_its_bytes(body: bytes) -> None:
    picture = inspect(body, pixels_max=PIXELS_MAX)

    assert (picture.width, picture.height) == (100, 100)
    assert picture.sha256 == hashlib.sha256(body).digest()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_the_digest_of_other_pictures_is_that_of_all_their_bytes(kind: str) -> None:
    body = _picture(kind)

    assert inspect(body, pixels_max=PIXELS_MAX).sha256 == hashlib.sha256(body).digest()


def test_a_png_with_any_one_byte_changed_is_refused() -> None:
    body = _png(after=_chunk(b"tEXt", b"c\0d"))
    taken = []
    for position in range(len(body)):
        spoiled = body[:position] + bytes([body[position] ^ 0x10]) + body[position + 1 :]
        try:
            inspect(spoiled, pixels_max=PIXELS_MAX)
        except NotAPicture:
            continue
        taken.append(position)

    assert taken == []


def test_a_png_cut_anywhere_is_refused() -> None:
    body = _png(after=_chunk(b"tEXt", b"c\0d"))

    for length in range(len(body)):
        with pytest.raises(NotAPicture):
            inspect(body[:length], pixels_max=PIXELS_MAX)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_png_of_every_kind_of_colour_is_taken_with_its_size(mode: str) -> None:
    written = BytesIO()
    Image.new(mode, (30, 20)).save(written, "PNG")

    picture = inspect(written.getvalue(), pixels_max=PIXELS_MAX)

    assert (picture.width, picture.height, picture.content_type) == (30, 20, "image/png")


@pytest.mark.parametrize(
    "first",
    [
        b"",
        _chunk(b"tEXt", b"a\0b" + HEADER),
        _chunk(b"IHDR", HEADER + b"\0"),
        *(
            _chunk(b"IHDR", struct.pack(">IIBBBBB", *told))
            for told in (
                (0, 100, 8, 2, 0, 0, 0),
                (100, 0, 8, 2, 0, 0, 0),
                (100, 100, 4, 2, 0, 0, 0),
                (100, 100, 8, 5, 0, 0, 0),
                (100, 100, 8, 2, 1, 0, 0),
                (100, 100, 8, 2, 0, 1, 0),
                (100, 100, 8, 2, 0, 0, 2),
            )
        ),
    ],
)
def test_a_png_whose_header_no_png_has_is_refused(first: bytes) -> None:
    with pytest.raises(NotAPicture, match="header"):
        inspect(_png(first=first), pixels_max=PIXELS_MAX)


@pytest.mark.parametrize(
    "chunk",
    [_chunk(b"IHDR", HEADER), _chunk(b"IHDR", struct.pack(">II", 60_000, 60_000) + HEADER[8:]), _chunk(b"te\0t", b"")],
)
def test_a_png_with_a_chunk_that_no_png_has_is_refused(chunk: bytes) -> None:
    with pytest.raises(NotAPicture, match="chunk"):
        inspect(_png(before=chunk), pixels_max=PIXELS_MAX)


def test_a_jpeg_with_another_picture_behind_it_is_a_jpeg() -> None:
    written = BytesIO()
    first, second = (Image.effect_noise((30, 20), 50).convert("RGB") for _ in range(2))
    first.save(written, "MPO", save_all=True, append_images=[second])

    picture = inspect(written.getvalue(), pixels_max=PIXELS_MAX)

    assert (picture.width, picture.height, picture.content_type, picture.extension) == (30, 20, "image/jpeg", "jpg")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_what_was_refused_is_looked_at_no_longer_while_its_error_lives(kind: str) -> None:
    memory = bytearray(_picture(kind)[:-20])
    with pytest.raises(NotAPicture) as refused, memoryview(memory) as lent:
        inspect(lent, pixels_max=PIXELS_MAX)

    # It raises BufferError while anybody looks at it.
    memory.append(0)
    assert refused.value


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_in_lent_memory_is_read_as_any_other(kind: str) -> None:
    body = _picture(kind)

    assert inspect(memoryview(bytearray(body)), pixels_max=PIXELS_MAX).sha256 == hashlib.sha256(body).digest()


@pytest.mark.parametrize("pixels", [b"", _chunk(b"tEXt", b"a\0b")])
def test_a_png_without_pixels_is_refused(pixels: bytes) -> None:
    with pytest.raises(NotAPicture):
        inspect(_png(pixels=pixels), pixels_max=PIXELS_MAX)
