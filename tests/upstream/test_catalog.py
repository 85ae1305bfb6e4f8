"""Can a catalog that is wrong never be loaded, and does the shipped one say what it should?"""

from datetime import date
from pathlib import Path

import pytest

from app.upstream.catalog import CatalogError, load_catalog

WHOLE = """
default_model = "a"

[[models]]
name = "a"
path = "/v1/images/generations"
sizes = ["1024x1024", "auto"]
qualities = ["low", "high"]
default_size = "auto"
default_quality = "low"
prompt_characters_max = 32000
images_max = 10
aliases = ["b", "c"]
fields = ["prompt", "model", "n", "size", "quality"]
token_prices = { input = 1, output = 2 }
also_takes = { sizes = { "512x512" = "1024x1024" }, qualities = { hd = "high" } }
stands_in_for = [{ name = "d", sizes = { wide = "auto" } }, { name = "e", qualities = { low = "high" } }]
retires_on = 2027-01-31
price_source = "a list"
price_date = 2026-11-22
[models.prices.low]
"1024x1024" = 9_000
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "models.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_shipped_catalog_sells_dall_e_3_on_the_seeds_route() -> None:
    catalog = load_catalog(None)
    model = catalog.models[0]
    assert (catalog.default_model, model.name, model.path) == ("dall-e-3", "dall-e-3", "/openai/v1/images/generations")
    assert (model.sizes, model.default_size) == (("1024x1024", "1792x1024", "1024x1792"), "1024x1024")
    assert (model.qualities, model.default_quality) == (("standard", "hd"), "standard")
    assert (model.prompt_characters_max, model.images_max, model.retires_on) == (4000, 1, date(2026, 5, 12))


@pytest.mark.parametrize(
    ("name", "low", "medium", "high", "retires_on"),
    [
        ("gpt-image-2", 5_880, 52_680, 210_720, None),
        ("gpt-image-2.5-flare", 5_880, 13_170, 52_680, None),
        ("gpt-image-2.5-sunburst", 5_880, 13_170, 52_680, None),
        ("gpt-image-1.5", 9_000, 34_000, 133_000, date(2026, 12, 1)),
        ("gpt-image-1-mini", 5_000, 11_000, 36_000, date(2026, 12, 1)),
    ],
)
def test_the_shipped_catalog_sells_gpt_image_models_on_the_newer_route_at_openais_list_price(
    name: str, low: int, medium: int, high: int, retires_on: date | None
) -> None:
    model = load_catalog(None).find(name)
    assert model is not None
    assert (model.path, model.prompt_characters_max, model.retires_on) == (
        "/v1/images/generations",
        32_000,
        retires_on,
    )
    assert model.sizes == ("1024x1024", "1536x1024", "1024x1536", "auto")
    assert [model.price_micros("1024x1024", quality) for quality in ("low", "medium", "high")] == [low, medium, high]
    assert model.token_prices is not None
    # Every size and quality that it takes can be ordered, and says where its price is from.
    assert len(list(model.all_prices())) == len(model.sizes) * len(model.qualities)
    assert "OpenAI's whole list price" in model.price_source


@pytest.mark.parametrize("name", ["gpt-image-1", "gpt-image-2.6-flare", "chatgpt-image-latest", "dall-e-2"])
def test_what_is_gone_or_has_no_known_price_is_not_shipped(name: str) -> None:
    assert load_catalog(None).find(name) is None


@pytest.mark.parametrize(
    ("size", "quality", "micros"),
    [
        ("1024x1024", "standard", 10_000),
        ("1792x1024", "standard", 20_000),
        ("1024x1792", "standard", 20_000),
        ("1024x1024", "hd", 20_000),
        ("1792x1024", "hd", 30_000),
        ("1024x1792", "hd", 30_000),
        ("512x512", "standard", None),
        ("1024x1024", "low", None),
    ],
)
def test_the_shipped_prices_are_a_quarter_of_openais(size: str, quality: str, micros: int | None) -> None:
    assert load_catalog(None).models[0].price_micros(size, quality) == micros


def test_an_operators_file_replaces_the_shipped_one(tmp_path: Path) -> None:
    catalog = load_catalog(written(tmp_path, WHOLE))
    (model,) = catalog.models
    assert (model.aliases, model.retires_on, model.price_date) == (("b", "c"), date(2027, 1, 31), date(2026, 11, 22))
    assert model.price_micros("1024x1024", "low") == 9_000
    assert model.price_micros("1024x1024", "high") is None


def test_a_model_is_found_by_name_and_alias_spelled_exactly(tmp_path: Path) -> None:
    catalog = load_catalog(written(tmp_path, WHOLE))
    assert catalog.find("a") is catalog.find("b") is catalog.find("c") is catalog.models[0]
    assert catalog.find("A") is None
    assert catalog.find("") is None


def test_a_loaded_catalog_cannot_be_changed(tmp_path: Path) -> None:
    model = load_catalog(written(tmp_path, WHOLE)).models[0]
    with pytest.raises(TypeError):
        model.prices[("auto", "low")] = 1  # type: ignore[index]


@pytest.mark.parametrize(
    ("was", "becomes", "fault"),
    [
        ('default_model = "a"\n', "", "default_model: is missing"),
        ('default_model = "a"', 'default_model = "nobody"', "default_model: 'nobody' is the name of no model"),
        ('default_model = "a"', 'default_model = "a"\nmodel = 1', "model: is not known here"),
        ('name = "a"', "", "models[0].name: is missing"),
        ('name = "a"', 'name = "a b"', "models[0] (a b).name: must be a name of letters, digits and . _ : / -"),
        ('path = "/v1/images/generations"', 'path = "//evil.example/v1"', "models[0] (a).path: must be a path"),
        ('path = "/v1/images/generations"', 'path = "@evil.example/v1"', "models[0] (a).path: must be a path"),
        ('path = "/v1/images/generations"', 'path = "https://evil.example/"', "models[0] (a).path: must be a path"),
        ('path = "/v1/images/generations"', 'path = "/v1?a=b"', "models[0] (a).path: must be a path"),
        ('sizes = ["1024x1024", "auto"]', "sizes = []", "models[0] (a).sizes: must be a list of different sizes"),
        ('sizes = ["1024x1024", "auto"]', 'sizes = "auto"', "models[0] (a).sizes: must be a list of different sizes"),
        ('"auto"]', '"auto", "auto"]', "models[0] (a).sizes: must be a list of different sizes"),
        ('qualities = ["low", "high"]', "qualities = [1]", "models[0] (a).qualities: must be a list of different"),
        ('default_size = "auto"', 'default_size = "1x1"', "models[0] (a).default_size: '1x1' is not in the list"),
        ('default_quality = "low"', 'default_quality = "hd"', "models[0] (a).default_quality: 'hd' is not in the list"),
        ("max = 32000", "max = 0", "models[0] (a).prompt_characters_max: must be a whole number above zero"),
        ("images_max = 10", "images_max = true", "models[0] (a).images_max: must be a whole number above zero"),
        ("images_max = 10", "images_max = 1.0", "models[0] (a).images_max: must be a whole number above zero"),
        ('["b", "c"]', '["b", "a"]', "models[0] (a): 'a' is the name of a model already"),
        ('["b", "c"]', '["b", "d"]', "models[0] (a): 'd' is the name of a model already"),
        ('{ name = "e", q', '{ name = "d", q', "models[0] (a).stands_in_for[1] (d).name: 'd' stands here twice"),
        ('{ name = "e", q', "{ q", "models[0] (a).stands_in_for[1].name: is missing"),
        ("{ low =", "{ 'LOW' =", "models[0] (a).stands_in_for[1] (e).qualities.LOW: is no word for this"),
        ('wide = "auto"', 'wide = "1x1"', "models[0] (a).stands_in_for[0] (d).sizes.wide: '1x1' is not one of"),
        ('wide = "auto"', "wide = 1", "models[0] (a).stands_in_for[0] (d).sizes.wide: must be a text"),
        ("sizes = { wide", "n = { wide", "models[0] (a).stands_in_for[0] (d).n: is not known here"),
        ("stands_in_for = [", "stands_in_for = [1, ", "models[0] (a).stands_in_for: must be one [[models[0] (a)."),
        ('= "1024x1024" }', '= "2x2" }', "models[0] (a).also_takes.sizes.512x512: '2x2' is not one of 1024x1024, auto"),
        ('{ hd = "high" }', '{ low = "high" }', "models[0] (a).also_takes.qualities.low: is one of the qualities"),
        ("also_takes = {", "also_takes = { n = {},", "models[0] (a).also_takes.n: is not known here"),
        ("input = 1, ", "", "models[0] (a).token_prices.input: is missing"),
        ("input = 1, ", "input = 0.5, ", "models[0] (a).token_prices.input: must be a whole number above zero"),
        ("input = 1, ", "input = 1, image = 1, ", "models[0] (a).token_prices.image: is not known here"),
        ('["prompt", "model"', '["model"', "models[0] (a).fields: must hold 'prompt'"),
        ('"n", "size", "quality"]', '"n", "size"]', "models[0] (a).fields: leave out 'quality', so qualities must be"),
        ('"n", "size", "quality"]', '"size", "quality"]', "models[0] (a).fields: leave out 'n', so images_max must"),
        ('"n", "size", "quality"]', '"n", "size", "style"]', "models[0] (a).fields: must be a list of some of prompt"),
        ('"1024x1024" = 9_000', "", "models[0] (a).prices: must be tables of prices"),
        ('"1024x1024" = 9_000', '"1024x1024" = 9_000\nauto = 8_999', "models[0] (a).prices.low.auto: is less than"),
        ("[models.prices.low]", "[models.prices.high]", "models[0] (a).prices: have none for the usual auto in low"),
        ('["b", "c"]', '["b", 1]', "models[0] (a).aliases: must be a list of different names"),
        ("retires_on = 2027-01-31", 'retires_on = "soon"', "models[0] (a).retires_on: must be a date"),
        ("price_date = 2026-11-22", "price_date = 2026-11-22T00:00:00", "models[0] (a).price_date: must be a date"),
        ("price_date = 2026-11-22", "", "models[0] (a).price_date: is missing"),
        ('price_source = "a list"', "", "models[0] (a).price_source: is missing"),
        ("9_000", "0", "models[0] (a).prices.low.1024x1024: must be a whole number of micros above zero"),
        ("9_000", "-1", "models[0] (a).prices.low.1024x1024: must be a whole number of micros above zero"),
        ("9_000", "9000.0", "models[0] (a).prices.low.1024x1024: must be a whole number of micros above zero"),
        ("9_000", '"9000"', "models[0] (a).prices.low.1024x1024: must be a whole number of micros above zero"),
        ("9_000", "9223372036854775808", "models[0] (a).prices.low.1024x1024: must be a whole number of micros"),
        ('"1024x1024" = 9_000', '"512x512" = 1', "models[0] (a).prices.low.512x512: is not one of the sizes"),
        ("[models.prices.low]", "[models.prices.hd]", "models[0] (a).prices.hd: is not one of the qualities"),
        ('[models.prices.low]\n"1024x1024" = 9_000', "", "models[0] (a).prices: is missing"),
        ('[models.prices.low]\n"1024x1024" = 9_000', "prices = 1", "models[0] (a).prices: must be tables of prices"),
    ],
)
def test_each_fault_is_told_with_its_place(tmp_path: Path, was: str, becomes: str, fault: str) -> None:
    assert was in WHOLE
    with pytest.raises(CatalogError) as refusal:
        load_catalog(written(tmp_path, WHOLE.replace(was, becomes)))
    assert [told for told in refusal.value.faults if told.startswith(fault)], refusal.value.faults


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = (
        WHOLE.replace('path = "/v1/images/generations"', "").replace("9_000", "0").replace("images_max = 10", "n = 1")
    )
    with pytest.raises(CatalogError) as refusal:
        load_catalog(written(tmp_path, text + text.replace('default_model = "a"', "")))
    faults = refusal.value.faults
    for position in (0, 1):
        for key in ("path", "images_max", "n", "prices.low.1024x1024"):
            assert [told for told in faults if told.startswith(f"models[{position}] (a).{key}:")]
    assert [told for told in faults if "is the name of a model already" in told]
    assert all(told in str(refusal.value) for told in faults)


@pytest.mark.parametrize("text", ["", "models = []", "models = 1", "models = [1]", "default_model = ", "a = 1\na = 2"])
def test_a_file_that_is_no_catalog_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(CatalogError, match=r"models\.toml"):
        load_catalog(written(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="cannot be read"):
        load_catalog(tmp_path / "missing.toml")
    with pytest.raises(CatalogError, match="cannot be read"):
        load_catalog(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'default_model = "\xe4"')
    with pytest.raises(CatalogError, match="not TOML"):
        load_catalog(tmp_path / "latin.toml")
