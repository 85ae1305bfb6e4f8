"""Does each way of bringing a picture home bring it home whole, once?"""

import pytest

from bench.neighbourhood import Neighbourhood
from bench.pictures import make_picture
from bench.rehosters import KINDS

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("kind", KINDS)
async def test_a_picture_is_in_the_bucket_whole(
    kind: str, near: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in {"ACCESS_KEY_ID": "bench", "SECRET_ACCESS_KEY": "bench", "DEFAULT_REGION": "eu"}.items():
        monkeypatch.setenv(f"AWS_{variable}", value)
    pictures, picture_bytes = near.pictures_taken()

    async with KINDS[kind](near.upstream_url, near.sink_url) as rehost:
        await rehost("1500kb")

    assert near.pictures_taken() == (pictures + 1, picture_bytes + len(make_picture("1500kb")))
