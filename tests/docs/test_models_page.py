"""Does the page about models say what the catalog holds and what its file may say?"""

import re
from pathlib import Path

from app.upstream.catalog import load_catalog
from tests.docs.pages import ROOT, blocks, read

SHIPPED = ROOT / "app" / "upstream" / "catalog.toml"
NOT_IN_THE_TABLE = {"default_model", "models", "input", "output"}


def test_the_page_lists_every_model_that_is_shipped_and_no_other() -> None:
    table = read("docs/models.md").partition("## What is shipped")[2].partition("**Look at")[0]
    named = re.findall(r"`([a-z0-9.-]+)`", " ".join(line.split("|")[1] for line in table.splitlines() if "|" in line))

    assert named == [model.name for model in load_catalog(None).models]


def test_the_page_explains_every_key_that_a_model_may_have() -> None:
    lines = [line.split("|")[1] for line in read("docs/models.md").splitlines() if re.match(r"\| `\w+`", line)]
    explained = {key for line in lines for key in re.findall(r"`(\w+)`", line)}
    used = set(re.findall(r"^\[?\[?(?:models\.)?(\w+)", "\n".join(_toml()), re.MULTILINE))

    assert used - explained - NOT_IN_THE_TABLE == set()
    assert {"fields", "retires_on", "aliases", "stands_in_for", "also_takes", "token_prices"} <= explained


def test_the_examples_of_the_page_are_catalogs(tmp_path: Path) -> None:
    one_more, whole = [block.text for block in blocks("docs/models.md") if block.language == "toml"]
    file = tmp_path / "models.toml"

    file.write_text(SHIPPED.read_text() + one_more)
    added = load_catalog(file).find("newest")
    file.write_text(whole)
    mapped = load_catalog(file).find("dall-e-3")

    assert added is not None
    assert added.name == "gpt-image-2.6"
    assert mapped is not None
    assert mapped.quality_for("hd", name="dall-e-3") == "high"


def _toml() -> list[str]:
    texts = [block.text for block in blocks("docs/models.md") if block.language == "toml"]
    return [*texts, SHIPPED.read_text()]
