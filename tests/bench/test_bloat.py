"""Does the bench make whole orders where it weighs what they leave?"""

import pytest

from bench.bloat import measure
from bench.neighbourhood import Neighbourhood
from tests.service import rows

pytestmark = pytest.mark.anyio


async def test_what_is_weighed_are_completed_orders(near: Neighbourhood, capsys: pytest.CaptureFixture[str]) -> None:
    await measure(near, 70)

    url = near.postgres_url.rpartition("/")[0] + "/of-bloat"
    assert rows(url, "SELECT state, count(*) AS n FROM generations GROUP BY state") == [{"state": "completed", "n": 70}]
    assert rows(url, "SELECT count(*) AS n FROM images") == [{"n": 70}]
    assert capsys.readouterr().out.startswith("70 orders, ")
