"""Are the figures on the page those that were measured?"""

from tests.clients import record as clients_record
from tests.clients.clients import CLIENTS
from tests.docs.pages import read
from tests.faults.__main__ import RECORD, newest, read_record, table
from tests.faults.parts import PARTS

_BEGIN, _END = "<!-- figures: written by `python -m tests.{} --table` -->\n", "<!-- end of figures -->"


def test_the_figures_of_the_reliability_page_are_those_of_the_record() -> None:
    assert _shown("docs/reliability.md", "faults") == table(list(PARTS), newest(read_record(RECORD))).strip()


def test_the_figures_of_the_page_of_clients_are_those_of_the_record() -> None:
    rows = clients_record.read_record(clients_record.RECORD)

    assert _shown("docs/clients.md", "clients") == clients_record.table(CLIENTS, rows)


def _shown(page: str, harness: str) -> str:
    return read(page).partition(_BEGIN.format(harness))[2].partition(_END)[0].strip()
