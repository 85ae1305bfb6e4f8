"""What stands in a line of the log, whoever wrote it, and does a secret stay out of it?"""

import json
import subprocess
import sys

import pytest

SECRET = 'pass"word\\of\u00fcs'
SCRIPT = """
import logging, sys, structlog
from app.telemetry import configure_logging
configure_logging(level="INFO", log_format=sys.argv[1], secrets=[sys.argv[2]])
log = structlog.get_logger("app.somewhere")
url = "https://pictures.example/a.png?sig=c2VjcmV0&se=2026"
log.info("said", word=sys.argv[2], nested={"words": [sys.argv[2], "ik_user_0123456789", url]})
log.debug("whispered")
logging.getLogger("somebody").warning("%s and %s", sys.argv[2], url)
try:
    raise ValueError(sys.argv[2])
except ValueError as error:
    log.error("crashed", exc_info=error)
"""


def written(log_format: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, log_format, SECRET], capture_output=True, check=True, encoding="utf-8"
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_a_line_has_its_time_its_level_and_where_it_comes_from() -> None:
    said, foreign, crashed = map(json.loads, written("json"))

    assert (said["event"], said["level"], said["logger"]) == ("said", "info", "app.somewhere")
    assert (foreign["level"], foreign["logger"]) == ("warning", "somebody")
    assert (crashed["event"], crashed["exception"].splitlines()[-1]) == ("crashed", "ValueError: [secret]")
    assert all(line["timestamp"].endswith("Z") for line in (said, foreign, crashed))


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_line_holds_a_secret_a_key_or_a_signature_however_it_is_written(log_format: str) -> None:
    text = "\n".join(written(log_format))

    assert text.count("[secret]") == 4
    assert text.count("[api key]") == 1
    assert text.count("sig=[signature]") == 2
    assert not any(word in text for word in ("word\\", "c2VjcmV0", "0123456789"))


def test_a_line_that_can_not_be_written_stops_nothing() -> None:
    script = (
        "import sys, structlog; from app.telemetry import configure_logging; sys.stderr = open('/dev/full', 'w');"
        "configure_logging(level='INFO', log_format='json', secrets=[]);"
        "structlog.get_logger('app.somewhere').info('said', word='x' * 100_000); print('went on', flush=True)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, encoding="utf-8")

    assert done.stdout == "went on\n"


@pytest.mark.parametrize("word", ["half a pair: \ud83e", "a line\u2028and another\nand\x85one", "é🦊", "\x00\x1b[31m"])
def test_any_text_is_one_line_of_ascii_and_reads_as_it_was(word: str) -> None:
    script = (
        "import json, sys, structlog; from app.telemetry import configure_logging;"
        "configure_logging(level='INFO', log_format='json', secrets=[]);"
        "structlog.get_logger('app.somewhere').info('said', word=json.loads(sys.argv[1]), thing={1: object})"
    )

    done = subprocess.run([sys.executable, "-c", script, json.dumps(word)], capture_output=True, check=True)

    (line,) = done.stderr.decode("ascii").splitlines()
    assert json.loads(line)["word"] == word


def test_what_a_value_keeps_out_of_its_repr_stays_out_of_the_line() -> None:
    script = (
        "import structlog; from app.telemetry import configure_logging; from app.connections.kept import Request;"
        "configure_logging(level='INFO', log_format='json', secrets=[]);"
        "request = Request('host', 1, None, b'GET /a.png?sig=a-secret');"
        "structlog.get_logger('app.somewhere').info('said', request=request, within={'it': [request]}, at=OSError('x'))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, encoding="utf-8")

    assert "a-secret" not in done.stderr
    assert json.loads(done.stderr)["at"] == "OSError('x')"
