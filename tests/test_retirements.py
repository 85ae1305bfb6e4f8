"""Is the operator told, at the start and while orders come, that a model goes or is gone?"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.installation import Installation, beside, eventually, running_installation
from tests.sandbox_server import RunningSandbox
from tests.test_repeats import CATALOG

TODAY = datetime.now(UTC).date()


def written(folder: Path, *days: int | None) -> Path:
    """A catalog of models a, b, ... of which each retires in so many days from now, or never."""
    shipped = CATALOG.read_text().partition("[[models]]\n")[2].partition("[[models]]\n")[0]
    entry = "\n".join(line for line in shipped.splitlines() if not line.startswith("retires_on"))
    text = 'default_model = "dall-e-3-a"\n'
    for name, left in zip("abcde", days, strict=False):
        model = entry.replace('name = "dall-e-3"', f'name = "dall-e-3-{name}"')
        if left is not None:
            model = model.replace("images_max = 1", f"images_max = 1\nretires_on = {TODAY + timedelta(days=left)}")
        text += f"[[models]]\n{model}\n"
    file = folder / "models.toml"
    file.write_text(text)
    return file


def warnings_of(installation: Installation) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in installation.stderr.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] in ("model_retires", "model_retired")]


def test_each_model_that_goes_is_told_once_at_the_start_and_once_a_day_when_it_is_ordered(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    file = written(tmp_path, -1, 20, 60, None)
    env = beside(database_url, sandbox, MODEL_CATALOG=str(file))
    with running_installation(tmp_path / "home", env=env, workers=2) as installation:
        at_start = warnings_of(installation)
        answers = [installation.order("a fox", model=f"dall-e-3-{name}") for name in "ababcdab"]

        assert [(line["event"], line["model"], line["level"], line["ordered"]) for line in at_start] == [
            ("model_retired", "dall-e-3-a", "warning", False),
            ("model_retires", "dall-e-3-b", "warning", False),
        ]
        assert installation.banner["retiring"] == [
            {"model": "dall-e-3-a", "retires_on": str(TODAY - timedelta(days=1))},
            {"model": "dall-e-3-b", "retires_on": str(TODAY + timedelta(days=20))},
        ]
        # What is said to be gone is sent all the same.
        assert [answer.status_code for answer in answers] == [200] * 8
        ordered = [line["model"] for line in warnings_of(installation) if line["ordered"]]
        # By each of the two workers once, if both had such an order.
        assert set(ordered) <= {"dall-e-3-a", "dall-e-3-b"}
        assert 2 <= len(ordered) <= 4


def test_a_person_who_starts_it_reads_which_models_go(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    env = beside(database_url, sandbox, MODEL_CATALOG=str(written(tmp_path, -1, 20)))
    installation = Installation(tmp_path / "home", env)
    try:
        installation.launch()
        said = eventually(lambda: text if "Ctrl-C" in (text := installation.stdout.read_text()) else "", seconds=60)
    finally:
        installation.close()

    assert f"  retiring  dall-e-3-a, since {TODAY - timedelta(days=1)}\n" in said
    assert f"  retiring  dall-e-3-b, on {TODAY + timedelta(days=20)}\n" in said
