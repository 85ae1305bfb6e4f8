"""Are the pictures real, their URLs alive for their time, and their faults as ordered?"""

import io
import time
from datetime import datetime

import httpx
import pytest
from PIL import Image

from app.sandbox.drawing import draw, draw_blank, sign
from app.sandbox.pictures import Picture, clip_prompt, sign_url
from tests.sandbox.conftest import BARE_ROUTE, Customer
from tests.sandbox_server import API_KEY, RunningSandbox, running_sandbox


@pytest.mark.parametrize("size", ["1024x1024", "1792x1024", "1024x1792"])
@pytest.mark.parametrize(("image_format", "extension"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_every_size_and_format_decodes(customer: Customer, size: str, image_format: str, extension: str) -> None:
    reply = customer.picture(f"a cat [[format {image_format}]]", size=size)
    assert reply.headers["content-type"] == f"image/{image_format}"
    assert reply.request.url.path.endswith(f".{extension}")
    with Image.open(io.BytesIO(reply.content)) as image:
        image.load()
        assert f"{image.width}x{image.height}" == size
        assert image.format == image_format.upper()


def test_output_format_chooses_the_format_too(customer: Customer) -> None:
    order = {"prompt": "a cat", "output_format": "webp"}
    url = customer.client.post(BARE_ROUTE, json=order).json()["data"][0]["url"]
    assert customer.client.get(url).headers["content-type"] == "image/webp"


@pytest.mark.parametrize(
    "prompt",
    ["漢字 😀 عربى שלום", "a\x00b\u202e\u200b\n\tc", "\ufffd", "x" * 4000, "😀" * 4000, "a [[ b ]] c", '"\\' * 2000],
)
def test_any_prompt_is_drawn_and_its_url_stays_short(customer: Customer, prompt: str) -> None:
    reply = customer.picture(prompt)
    assert reply.status_code == 200
    assert len(str(reply.request.url)) < 2_000


def test_the_longest_redirect_and_prompt_fit_into_a_url() -> None:
    noise = "".join(chr(0x4E00 + position * 7919 % 20_000) for position in range(400))
    picture = Picture("0" * 16, 9, "1024x1792", "jpeg", clip_prompt(noise), "redirect " + noise.encode().hex()[:500])
    url = sign_url(picture, public_url="https://sandbox.example.com:65535", now=time.time(), lifetime_seconds=7200)
    assert len(url) < 2_000


def test_a_picture_is_drawn_in_good_time() -> None:
    draw((256, 256), "png", prompt="warm", seed="")
    began = time.process_time()
    draw((1024, 1024), "png", prompt="A red fox reading a newspaper under an old street lamp", seed="1")
    # Twice what is promised, so that a busy machine does not fail the test; a slow way of drawing takes ten times it.
    assert time.process_time() - began < 0.3


def test_the_same_url_gives_the_same_bytes(customer: Customer) -> None:
    url = customer.picture_url("a cat")
    assert customer.client.get(url).content == customer.client.get(url).content


def test_without_drawing_a_picture_is_valid_and_tiny() -> None:
    with running_sandbox(draw=False) as sandbox, httpx.Client(base_url=sandbox.url) as client:
        client.headers["TT-API-KEY"] = API_KEY
        picture = Customer(client).picture("a cat", size="1792x1024")
        with Image.open(io.BytesIO(picture.content)) as image:
            image.load()
            assert image.size == (1792, 1024)
        assert len(picture.content) < 4_096


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_a_blank_tells_whose_it_is_and_is_the_same_each_time(image_format: str) -> None:
    one, other = (sign(draw_blank((1024, 1024), image_format), image_format, prompt) for prompt in ("ein Bär", "a cat"))
    assert one != other
    assert one == sign(draw_blank((1024, 1024), image_format), image_format, "ein Bär")
    with Image.open(io.BytesIO(one)) as image:
        image.load()
        assert "ein Bär".encode() in one


def test_without_drawing_the_picture_carries_its_prompt() -> None:
    with running_sandbox(draw=False) as sandbox, httpx.Client(base_url=sandbox.url) as client:
        client.headers["TT-API-KEY"] = API_KEY
        assert b"a lonely cat" in Customer(client).picture("a lonely cat [[delay 0]]").content


def test_a_url_says_when_it_ends_and_holds_no_longer(customer: Customer) -> None:
    url = httpx.URL(customer.picture_url("a cat [[expires 0]]"))
    ends_at = datetime.fromisoformat(url.params["se"]).timestamp()
    assert abs(ends_at - time.time()) < 5
    reply = customer.client.get(url)
    assert reply.status_code == 403
    assert reply.headers["content-type"].startswith("application/xml")
    assert "<Code>AuthenticationFailed</Code>" in reply.text
    assert "Signature not valid in the specified time frame" in reply.text


def test_a_url_lives_as_long_as_the_sandbox_was_told() -> None:
    with running_sandbox(url_lifetime_seconds=1) as sandbox, httpx.Client(base_url=sandbox.url) as client:
        client.headers["TT-API-KEY"] = API_KEY
        url = Customer(client).picture_url("a cat")
        assert client.get(url).status_code == 200
        deadline = time.monotonic() + 5
        while client.get(url).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client.get(url).status_code == 403


def test_the_signing_keys_end_is_not_the_urls(customer: Customer) -> None:
    params = httpx.URL(customer.picture_url("a cat")).params
    assert params["st"] < params["se"] < params["ske"]


@pytest.mark.parametrize("name", ["se", "st", "sig"])
def test_a_changed_url_is_denied(customer: Customer, name: str) -> None:
    url = httpx.URL(customer.picture_url("a cat"))
    changed = [
        url.copy_set_param(name, "2099-01-01T00:00:00Z"),
        url.copy_set_param(name, "é"),
        url.copy_remove_param(name),
        url.copy_with(path="/pictures/abc.png"),
    ]
    assert [customer.client.get(each).status_code for each in changed] == [403, 403, 403, 403]


def test_a_sandbox_started_again_serves_the_urls_of_the_one_before() -> None:
    with running_sandbox() as first, httpx.Client(base_url=first.url) as client:
        client.headers["TT-API-KEY"] = API_KEY
        url = Customer(client).picture_url("a cat")
        before = client.get(url).content
    with running_sandbox(port=first.port):
        assert httpx.get(url).content == before


@pytest.mark.parametrize(
    ("fault", "status", "content_type"),
    [
        ("missing", 404, "application/xml"),
        ("status 500", 500, "application/xml"),
        ("html", 200, "text/html; charset=utf-8"),
        ("svg", 200, "image/svg+xml"),
        ("garbage", 200, "image/png"),
        ("empty", 200, "image/png"),
    ],
)
def test_what_comes_instead_of_a_picture(customer: Customer, fault: str, status: int, content_type: str) -> None:
    reply = customer.picture(f"a cat [[picture {fault}]]")
    assert reply.status_code == status
    assert reply.headers["content-type"] == content_type
    assert (len(reply.content) == 0) == (fault == "empty")
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(reply.content))


def test_a_flaky_picture_comes_after_so_many_gets_of_its_url(customer: Customer) -> None:
    url = customer.picture_url("a cat [[picture flaky 2]]")
    assert [customer.client.get(url).status_code for _ in range(4)] == [503, 503, 200, 200]


def test_a_huge_picture_does_not_say_how_huge(customer: Customer) -> None:
    with customer.client.stream("GET", customer.picture_url("a cat [[picture huge]]")) as reply:
        assert "content-length" not in reply.headers
        assert sum(len(block) for block in reply.iter_raw()) > 40 * 1024 * 1024


def test_a_bomb_is_a_small_file_with_enormous_sides(customer: Customer) -> None:
    reply = customer.picture("a cat [[picture bomb]]")
    assert len(reply.content) < 200_000
    # The size stands in the first chunk; Pillow itself refuses to look any further.
    assert reply.content[16:24] == (30_000).to_bytes(4, "big") * 2
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(reply.content))


def test_a_slow_picture_stalls_in_the_middle(customer: Customer) -> None:
    began = time.monotonic()
    reply = customer.picture("a cat [[picture slow 0.3]]")
    assert time.monotonic() - began >= 0.3
    with Image.open(io.BytesIO(reply.content)) as image:
        image.load()


def test_a_slow_picture_without_seconds_never_ends(customer: Customer) -> None:
    url = customer.picture_url("a cat [[picture slow]]")
    with pytest.raises(httpx.ReadTimeout):
        customer.client.get(url, timeout=httpx.Timeout(5, read=0.5))


def test_a_cut_picture_ends_before_its_length(customer: Customer) -> None:
    url = customer.picture_url("a cat [[picture cut]]")
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
        customer.client.get(url)


def test_a_dropped_picture_is_not_answered(customer: Customer) -> None:
    url = customer.picture_url("a cat [[picture drop]]")
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        customer.client.get(url)


def test_a_picture_redirects_where_it_is_told(customer: Customer) -> None:
    reply = customer.picture("a cat [[picture redirect http://169.254.169.254/latest/meta-data]]")
    assert reply.status_code == 302
    assert reply.headers["location"] == "http://169.254.169.254/latest/meta-data"


def test_a_picture_of_the_wrong_size_is_half_as_large(customer: Customer) -> None:
    with Image.open(io.BytesIO(customer.picture("a cat [[picture wrong-size]]").content)) as image:
        assert image.size == (512, 512)


def test_a_fault_of_the_picture_is_billed(sandbox: RunningSandbox, customer: Customer) -> None:
    customer.order("a cat [[picture missing]]")
    assert sandbox.witness()["billed"] == 1
