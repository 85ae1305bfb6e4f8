"""Which pictures does the bench's upstream give?"""

import io
import random

from PIL import Image

# By name: the side in pixels, and how many bits of each byte are noise. PNG can't press noise, so that a picture of
# 1000 x 1000 has 3 MB, or little more than half of that where half of the bits are always 0.
_PICTURES = {"1kb": (17, 8), "1500kb": (918, 4), "3mb": (1000, 8)}
NAMES = tuple(_PICTURES)


def make_picture(name: str) -> bytes:
    """Return a whole PNG of about the size that `name` says; the same bytes each time."""
    side, noise_bits = _PICTURES[name]
    noise = random.Random(name).randbytes(side * side * 3)
    mask = bytes(value & (2**noise_bits - 1) for value in range(256))
    written = io.BytesIO()
    Image.frombytes("RGB", (side, side), noise.translate(mask)).save(written, "PNG", compress_level=6)
    return written.getvalue()
