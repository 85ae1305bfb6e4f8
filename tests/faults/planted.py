"""Would the harness find the bugs that it is there to find? Each is planted into a copy of the code, and looked for."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.frame import Figures, Piece, figures_from_json

CHECKOUT = Path(__file__).parents[2]
SECONDS_MAX = 60


@dataclass(frozen=True)
class Bug:
    """A mistake somebody could make: in `file`, `wrong` stands where `right` belongs.

    `part` is the part of the harness that has to see it when it does its fault `times` times; with `times` of 0 it is
    a test of every day, by its path and name.
    """

    name: str
    file: str
    right: str
    wrong: str
    part: str
    times: int = 0


_DRIVER, _BUDGETS, _RECORDS = "app/generations/driver.py", "app/accounts/budgets.py", "app/generations/records.py"

_PUT_HOME = "    await home.put(key, body, content_type=image.content_type, sha256=image.sha256)\n"

BUGS: tuple[Bug, ...] = (
    Bug(
        "refund on timeout",
        _DRIVER,
        "        return await self._leave_unknown(generation, outcome.detail)\n",
        '        return await self._leave_unsent(generation, "upstream_failed", outcome.detail)\n',
        "kills",
        15,
    ),
    Bug(
        "the order sent again after a drop",
        _DRIVER,
        "        tell_answer(generation, outcome, time.monotonic() - started)\n",
        "        if not isinstance(outcome, Generated | Refused):\n            return await self._send(generation)\n",
        "kills",
        15,
    ),
    Bug(
        "an unknown released silently",
        _BUDGETS,
        "             ELSE 0 END AS images,\n        CASE WHEN :state = 'completed'",
        "             WHEN :state = 'unknown' THEN -s.held_images ELSE 0 END AS images,\n"
        "        CASE WHEN :state = 'completed'",
        "walk",
        2_500,
    ),
    Bug(
        "settled before the picture is stored",
        "app/generations/rehost.py",
        "            storage = await self._stores.put(\n"
        "                key, picture.body, content_type=picture.content_type, sha256=picture.sha256\n"
        "            )\n",
        "            putting = self._stores.put(key, picture.body, content_type=picture.content_type)\n"
        "            self._late = asyncio.create_task(putting)\n"
        "            storage = self._stores.home.name\n",
        # A folder is quicker than a kill. A bucket is taken away now and then.
        "kills-s3",
        10,
    ),
    Bug(
        "budget read before it is locked",
        _BUDGETS,
        "ORDER BY b.scope FOR UPDATE OF b\n),\nframe",
        "ORDER BY b.scope\n),\nframe",
        "race",
        1,
    ),
    Bug(
        "no unique (owner, key)",
        "migrations/versions/0006_indexes_of_repeats.py",
        '        ["user_id", "idempotency_key"],\n        unique=True,',
        '        ["user_id", "idempotency_key", "id"],\n        unique=True,',
        "kills",
        20,
    ),
    Bug(
        "a 5xx taken as free",
        "app/upstream/reply.py",
        "    if 400 <= status < 500 and status != 408:",
        "    if 400 <= status < 600 and status != 408:",
        "kills",
        15,
    ),
    Bug(
        "MOVE without its state guard",
        _RECORDS,
        "WHERE g.id = :id AND g.state = ANY(CAST(:leaving AS text[]))",
        "WHERE g.id = :id AND (g.state = ANY(CAST(:leaving AS text[])) OR true)",
        "walk",
        2_500,
    ),
    Bug(
        "locks out of order",
        _BUDGETS,
        "    ORDER BY b.scope FOR UPDATE OF b\n),\nchange",
        "    ORDER BY b.scope DESC FOR UPDATE OF b\n),\nchange",
        "race",
        1,
    ),
    Bug(
        "a window rolled back at midnight",
        _BUDGETS,
        "SELECT GREATEST(max(l.day), max((m.ts AT TIME ZONE 'UTC')::date)) AS day",
        "SELECT max((m.ts AT TIME ZONE 'UTC')::date) AS day",
        "walk",
        2_500,
    ),
    Bug(
        "given back into the wrong window",
        _BUDGETS,
        "images_day = b.images_day + CASE WHEN b.day = c.day THEN c.images ELSE 0 END",
        "images_day = GREATEST(0, b.images_day + c.images)",
        "walk",
        2_500,
    ),
    Bug(
        "a spool row deleted before its object is verified",
        "app/generations/images.py",
        _PUT_HOME,
        f"{_PUT_HOME}    await source.delete(image.storage_key)\n",
        "tests/generations/test_spool.py::test_a_picture_that_arrives_cut_stays_in_the_spool",
    ),
    Bug(
        "the live-key check left out of RESERVE",
        "app/generations/repeats.py",
        '    WHERE k.id = :api_key_id AND k.revoked_at IS NULL AND u.disabled_at IS NULL"""\n',
        '    WHERE k.id = :api_key_id"""\n',
        "kills",
        20,
    ),
    Bug(
        "the fetch guard checking the name but not the address connected to",
        "app/upstream/download.py",
        "        host=str(address),\n",
        "        host=source.host,\n",
        "tests/upstream/test_fetch_guard.py",
    ),
)


def plant(piece: Piece) -> Figures:
    """Plant the bug of this piece's number into a copy, and have its part look for it."""
    bug = BUGS[piece.number]
    copy = piece.folder / "copy"
    copy_with(bug, copy)
    started = time.monotonic()
    seen = _look_by_part(bug, piece, copy) if bug.times else _look_by_test(bug, copy)
    seconds = time.monotonic() - started
    by = bug.part.rpartition("/")[2]
    if seen is None:
        return Figures({"planted": 1, "caught": 0}, broken=(f"{bug.name}: not caught by {by} (seed {piece.seed})",))
    late = (f"{bug.name}: caught only after {seconds:.0f} s",) if seconds > SECONDS_MAX else ()
    note = f"{bug.name}: caught by `{by}` in {seconds:.0f} s: {_shortened(seen)}"
    return Figures({"planted": 1, "caught": 1}, {"seconds to catch one": seconds}, late, (note,))


def _look_by_part(bug: Bug, piece: Piece, copy: Path) -> str | None:
    """The first promise that the part finds broken. A part that crashes has found nothing."""
    answer = piece.folder / "answer.json"
    looking = ["--part", bug.part, "--piece", "0", "--times", str(bug.times), "--seed", str(piece.seed)]
    _run(copy, "tests.faults", *looking, "--record", str(answer)).check_returncode()
    broken = figures_from_json(json.loads(answer.read_text())).broken
    return broken[0] if broken else None


def _look_by_test(bug: Bug, copy: Path) -> str | None:
    """The first test that fails."""
    done = _run(copy, "pytest", "-q", "-x", "-p", "no:cacheprovider", bug.part)
    assert done.returncode in (0, 1), done.stdout
    return next((line for line in done.stdout.splitlines() if line.startswith("FAILED ")), None)


def _run(copy: Path, module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": str(copy)}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=copy, env=env, check=False, stdout=subprocess.PIPE, text=True
    )


def copy_with(bug: Bug, copy: Path) -> None:
    """Copy the code and its tests, with the bug in it."""
    for folder in ("app", "migrations", "tests"):
        # With what was compiled of it, which Python takes while the files have their times: else all of it would be
        # compiled once more.
        shutil.copytree(CHECKOUT / folder, copy / folder)
    shutil.copy(CHECKOUT / "pyproject.toml", copy)
    file = copy / bug.file
    code = file.read_text()
    assert code.count(bug.right) == 1, f"{bug.name}: {bug.file} does not hold what the bug replaces, once"
    file.write_text(code.replace(bug.right, bug.wrong))
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
        compiled.unlink()


def _shortened(sentence: str) -> str:
    words = " ".join(sentence.split())
    return words if len(words) <= 160 else words[:157] + "..."
