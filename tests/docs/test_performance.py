"""Are the figures and the picture on the page of performance those that were measured?"""

from bench.parts import PARTS
from bench.picture import draw
from bench.record import RECORD, read_record
from bench.table import page_with, tables
from tests.docs.pages import read

PAGE = "docs/performance.md"


def test_the_figures_of_the_performance_page_are_those_of_the_record() -> None:
    page = read(PAGE)

    assert page == page_with(page, tables(PARTS, read_record(RECORD)))


def test_the_picture_of_the_performance_page_is_that_of_the_record() -> None:
    assert read("docs/performance.svg") == draw(read_record(RECORD))
