"""Are the figures on the page those that were measured?"""

from tests.docs.pages import read
from tests.faults.__main__ import RECORD, newest, read_record, table
from tests.faults.parts import PARTS

_BEGIN, _END = "<!-- figures: written by `python -m tests.faults --table` -->\n", "<!-- end of figures -->"


def test_the_figures_of_the_reliability_page_are_those_of_the_record() -> None:
    shown = read("docs/reliability.md").partition(_BEGIN)[2].partition(_END)[0]

    assert shown.strip() == table(list(PARTS), newest(read_record(RECORD))).strip()
