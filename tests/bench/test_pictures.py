"""Are the bench's pictures what they are called, and pictures that are kept?"""

import pytest

from app.generations.picture import inspect
from bench.pictures import NAMES, make_picture

BYTES = {"1kb": 1_000, "1500kb": 1_500_000, "3mb": 3_000_000}


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_a_whole_png_of_about_its_size_and_the_same_each_time(name: str) -> None:
    body = make_picture(name)

    assert inspect(body, pixels_max=64_000_000).content_type == "image/png"
    assert len(body) == pytest.approx(BYTES[name], rel=0.06)
    assert make_picture(name) == body
