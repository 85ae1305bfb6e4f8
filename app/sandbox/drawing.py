"""How is a picture drawn?"""

import colorsys
import hashlib
import io
import random
import struct
import textwrap
import zlib
from collections.abc import Iterator
from typing import Final

from PIL import Image, ImageDraw, ImageFont

_SIGNATURE: Final = "sandbox picture, drawn locally"
_LINES_MAX: Final = 9
_BOMB_SIDE: Final = 30_000


def draw(size: tuple[int, int], image_format: str, *, prompt: str, seed: str) -> bytes:
    """A picture of that size in pixels with the prompt written on it, as PNG, JPEG or WebP.

    Its colours come from the prompt, its shapes from the seed: the same two give the same bytes. Takes CPU, so it
    belongs into a thread. Any text is safe; what the font lacks is drawn as boxes.
    """
    image = _scene(size, prompt, seed)
    _write(image, " ".join(prompt.split()))
    return _encode(image, image_format)


def draw_blank(size: tuple[int, int], image_format: str) -> bytes:
    """The cheapest valid picture of that size: one colour, two kilobytes or so as PNG."""
    return _encode(Image.new("1" if image_format == "png" else "L", size, 1), image_format)


def sign(blank: bytes, image_format: str, prompt: str) -> bytes:
    """A blank with the prompt in its comment, so that two orders' pictures can be told apart at no cost.

    WebP has no comment that is as easily put in, and stays as it is.
    """
    comment = prompt.encode()
    if image_format == "png":
        # After the signature and the header, 33 bytes; iTXt is the text chunk that takes UTF-8.
        return blank[:33] + _chunk(b"iTXt", b"Description\0\0\0\0\0" + comment) + blank[33:]
    if image_format == "jpeg":
        # The comment segment, right after the start of the image.
        return blank[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment + blank[2:]
    return blank


def draw_bomb() -> bytes:
    """A valid PNG of 30,000 x 30,000 pixels in about a hundred kilobytes."""
    # Pillow would hold every pixel in memory as a byte, 900 MB, so the file is put together by hand, one bit a pixel.
    row = bytes(1 + _BOMB_SIDE // 8)
    squeeze = zlib.compressobj(9)
    rows = b"".join([*(squeeze.compress(row) for _ in range(_BOMB_SIDE)), squeeze.flush()])
    header = struct.pack(">IIBBBBB", _BOMB_SIDE, _BOMB_SIDE, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _encode(image: Image.Image, image_format: str) -> bytes:
    file = io.BytesIO()
    match image_format:
        case "png":
            image.save(file, "PNG", compress_level=1)
        case "jpeg":
            image.save(file, "JPEG", quality=88)
        case "webp":
            image.save(file, "WEBP", quality=80, method=0)
        case _:
            raise ValueError(f"no such picture format: {image_format}")
    return file.getvalue()


def _scene(size: tuple[int, int], prompt: str, seed: str) -> Image.Image:
    width, height = size
    hue = hashlib.sha256(prompt.encode()).digest()[0] / 256
    dice = random.Random(seed)  # noqa: S311 - it places circles
    # Painted at half the size and enlarged: a quarter of the work, and soft edges for nothing.
    half = (max(1, width // 2), max(1, height // 2))
    corners = Image.new("RGB", (2, 2))
    corners.putdata([_colour(hue + shift, 0.55, light) for shift, light in _corner_shades(dice)])
    scene = corners.resize(half, Image.Resampling.BICUBIC)
    brush = ImageDraw.Draw(scene, "RGBA")
    reach = min(half)
    for _ in range(9):
        x, y = dice.randrange(half[0]), dice.randrange(half[1])
        radius = dice.uniform(0.06, 0.34) * reach
        colour = _colour(hue + dice.uniform(-0.12, 0.12), 0.6, dice.uniform(0.55, 0.98))
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*colour, 70))
    horizon = half[1] * dice.uniform(0.62, 0.72)
    for step, shade in enumerate((0.34, 0.26, 0.18)):
        top = horizon + step * half[1] * 0.09
        ridge = [(x, top - dice.uniform(0.0, 0.13) * reach) for x in range(0, half[0] + reach, max(1, reach // 4))]
        brush.polygon([(0, half[1]), *ridge, (half[0], half[1])], fill=(*_colour(hue + 0.06, 0.5, shade), 190))
    return scene.resize(size, Image.Resampling.BILINEAR)


def _corner_shades(dice: random.Random) -> Iterator[tuple[float, float]]:
    for light in (0.78, 0.62, 0.55, 0.4):
        yield dice.uniform(-0.14, 0.14), light


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return int(red * 255), int(green * 255), int(blue * 255)


def _write(image: Image.Image, prompt: str) -> None:
    brush = ImageDraw.Draw(image)
    reach = min(image.size)
    margin = reach * 0.07
    font = ImageFont.load_default(size=max(10, reach / (16 if len(prompt) < 120 else 26)))
    shadow = max(1, reach // 400)
    text = _wrapped(prompt, font, image.width - 2 * margin)
    for offset, colour in ((shadow, (0, 0, 0)), (0, (255, 255, 255))):
        place = (margin + offset, margin + offset)
        brush.multiline_text(place, text, font=font, fill=colour, spacing=reach * 0.015)
    small = ImageFont.load_default(size=max(9, reach / 44))
    brush.text((margin, image.height - margin / 2), _SIGNATURE, font=small, fill=(255, 255, 255), anchor="ls")


def _wrapped(prompt: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    if not prompt:
        return ""
    # By the prompt's own average, with room to spare: scripts differ a lot in how wide a letter is.
    letter_width = max(1.0, font.getlength(prompt) / len(prompt))
    line_length = max(1, int(0.92 * width / letter_width))
    return "\n".join(textwrap.wrap(prompt, line_length, max_lines=_LINES_MAX, placeholder=" …"[:line_length]))
