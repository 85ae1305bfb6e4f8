"""How is every client driven against the service, and what came of it?

python -m tests.clients                make every environment, drive every client, keep, show and print the figures
python -m tests.clients curl httpie    only these
python -m tests.clients --table        run nothing, write the record's figures into docs/clients.md and print them
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from xml.etree import ElementTree

from tests.clients.clients import CHOICE, CLIENTS, Client
from tests.clients.environments import CHECKOUT, NotMadeError, drive_of, version_of
from tests.clients.record import PAGE, RECORD, Row, read_record, show, table, write_record
from tests.faults.__main__ import code_tree


def main() -> int:
    """Drive those that were asked for; 1 when anything went wrong, or a client could not be driven."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__.partition("\n")[0])
    parser.add_argument("client", nargs="*", help="only these", metavar="client")
    parser.add_argument("--table", action="store_true", help="run nothing, show the record's figures")
    asked = parser.parse_args()
    unknown = set(asked.client) - {client.name for client in CLIENTS}
    if unknown:
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    failed = False
    if not asked.table:
        rows = _drive([client for client in CLIENTS if not asked.client or client.name in asked.client])
        write_record(RECORD, {**read_record(RECORD), **rows})
        failed = not all(row.ok for row in rows.values())
    figures = table(CLIENTS, read_record(RECORD))
    show(PAGE, figures)
    print(figures)
    return int(failed)


def _drive(clients: Sequence[Client]) -> dict[str, Row]:
    """Make the environments, run the tests over those that could be made, and return a row for each client."""
    code = code_tree()
    rows: dict[str, Row] = {}
    for client in clients:
        print(f"{client.name}: making its environment", flush=True)
        try:
            drive_of(client)
        except NotMadeError as why:
            rows[client.name] = Row(code, why=str(why))
    driven = [client for client in clients if client.name not in rows]
    figures = _figures([client.name for client in driven]) if driven else {}
    return rows | {client.name: Row(code, version_of(client), **figures.get(client.name, {})) for client in driven}


def _figures(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Run the tests over these clients, and return what `figure` was told of each, whether they passed or not."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        # The newer family of the format has no place for figures.
        command = [sys.executable, "-m", "pytest", "-q", "tests/clients", "-o", "junit_family=xunit1"]
        command.append(f"--junitxml={report.name}")
        subprocess.run(command, cwd=CHECKOUT, env={**os.environ, CHOICE: " ".join(names)}, check=False)
        tests = ElementTree.parse(report.name).iter("testcase")
    figures: dict[str, dict[str, str]] = {}
    for test in tests:
        told = {found.attrib["name"]: found.attrib["value"] for found in test.iter("property")}
        if "client" in told:
            figures.setdefault(told.pop("client"), {}).update(told)
    return figures


if __name__ == "__main__":
    sys.exit(main())
