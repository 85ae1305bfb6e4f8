"""Is it said in time, and not too often, that a model goes?"""

from dataclasses import replace
from datetime import date, timedelta

import pytest
from structlog.testing import capture_logs

from app.upstream.catalog import Catalog
from app.upstream.retirement import Retirement, RetirementNotices, retirement_of, retirements_of
from tests.makers import make_model

DAY = date(2026, 12, 1)
MODEL = replace(make_model(), retires_on=DAY)


@pytest.mark.parametrize("days_before", [31, 365])
def test_a_model_that_goes_in_more_than_thirty_days_is_not_spoken_of(days_before: int) -> None:
    assert retirement_of(MODEL, DAY - timedelta(days=days_before)) is None


@pytest.mark.parametrize(("days_before", "is_over"), [(30, False), (1, False), (0, True), (-400, True)])
def test_a_model_that_goes_or_is_gone_is(days_before: int, is_over: bool) -> None:
    retirement = retirement_of(MODEL, DAY - timedelta(days=days_before))

    assert retirement == Retirement("dall-e-3", DAY, days_before)
    assert retirement.is_over is is_over


def test_of_a_catalog_those_that_go_first_come_first() -> None:
    later = replace(MODEL, name="later", retires_on=DAY + timedelta(days=1))
    staying = replace(MODEL, name="staying", retires_on=None)

    found = retirements_of(Catalog((later, staying, MODEL), "later"), DAY)

    assert [retirement.model for retirement in found] == ["dall-e-3", "later"]


def test_an_order_is_told_once_a_day_for_each_model() -> None:
    notices, other = RetirementNotices(), replace(MODEL, name="other")
    with capture_logs() as lines:
        told = [
            notices.ordered(model, day)
            for day in (DAY - timedelta(days=1), DAY)
            for model in (MODEL, MODEL, other, MODEL, make_model())
        ]

    assert told == [True, False, True, False, False] * 2
    assert [(line["event"], line["model"], line["days_left"]) for line in lines] == [
        ("model_retires", "dall-e-3", 1),
        ("model_retires", "other", 1),
        ("model_retired", "dall-e-3", 0),
        ("model_retired", "other", 0),
    ]
    assert {line["log_level"] for line in lines} == {"warning"}
