"""Is exactly the public internet fetchable, in exactly one spelling?"""

import ipaddress

import pytest

from app.upstream.guard import SourceForbiddenError, check_addresses, is_public_address, parse_source_url
from tests.upstream.url_corpus import NOT_PUBLIC, ODD_HOSTS, ODD_URLS, PUBLIC

# Where pictures of TTAPI, of OpenAI and of Azure were seen to come from, in stored answers and published examples.
SOURCE_URLS = (
    "https://dalleprodaue.blob.core.windows.net/private/images/6d07d3a8-5b52-4a7d-8f0e-0c4f0f1f7b5e/generated_00.png"
    "?se=2026-11-23T10%3A00%3A00Z&sig=a%2Bb%2Fc%3D&ske=2026-11-28T00%3A00%3A00Z&skoid=x&sks=b&skt=y&sktid=z"
    "&skv=2020-10-02&sp=r&spr=https&sr=b&sv=2020-10-02",
    "https://dalleproduse.blob.core.windows.net/private/images/a/generated_00.png?se=2026-11-23T10%3A00%3A00Z&sig=x",
    "https://oaidalleapiprodscus.blob.core.windows.net/private/org-a/user-b/img-c.png"
    "?st=2026-11-22T09%3A00%3A00Z&se=2026-11-22T11%3A00%3A00Z&rscd=inline&rsct=image/png&sig=a%2Bb%3D",
    "https://filesystem.site/cdn/20261122/0123456789abcdef.webp",
)


def test_the_corpus_does_not_shrink() -> None:
    for corpus in (NOT_PUBLIC, PUBLIC, ODD_HOSTS, ODD_URLS):
        assert len(set(corpus)) == len(corpus)
    assert len(NOT_PUBLIC) >= 120
    assert len(PUBLIC) >= 30
    assert len(ODD_HOSTS) + len(ODD_URLS) >= 175


@pytest.mark.parametrize("url", SOURCE_URLS)
def test_a_host_that_pictures_come_from_is_accepted(url: str) -> None:
    source = parse_source_url(url, allow_loopback_http=False)

    # As it was signed, to the last character.
    assert f"https://{source.host}{source.target}" == url
    check_addresses(source, tuple(map(ipaddress.ip_address, PUBLIC)))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_the_same_host_everywhere_is_not_public(address: str) -> None:
    assert not is_public_address(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public_address(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", ODD_HOSTS)
@pytest.mark.parametrize("allow_loopback_http", [True, False])
def test_an_odd_spelling_of_a_host_is_refused(host: str, allow_loopback_http: bool) -> None:
    for scheme in ("https", "http"):
        with pytest.raises(SourceForbiddenError):
            parse_source_url(f"{scheme}://{host}/a.png", allow_loopback_http=allow_loopback_http)


@pytest.mark.parametrize("url", ODD_URLS)
def test_all_but_plain_https_on_its_own_port_is_refused(url: str) -> None:
    with pytest.raises(SourceForbiddenError):
        parse_source_url(url, allow_loopback_http=False)


@pytest.mark.parametrize(
    ("url", "host", "target"),
    [
        ("https://pictures.example/a.png", "pictures.example", "/a.png"),
        ("HTTPS://Pictures.Example:443/A.png", "pictures.example", "/A.png"),
        ("https://pictures.example", "pictures.example", "/"),
        ("https://pictures.example?se=1", "pictures.example", "/?se=1"),
        ("https://pictures.example/a?sig=a%2Bb%2F%3d+c&x#part@127.0.0.1", "pictures.example", "/a?sig=a%2Bb%2F%3d+c&x"),
        ("https://pictures.example/a@127.0.0.1/b", "pictures.example", "/a@127.0.0.1/b"),
        ("https://pictures.example/ä.png", "pictures.example", "/%C3%A4.png"),
        ("https://my_account-1.blob.core.windows.net/x", "my_account-1.blob.core.windows.net", "/x"),
        ("https://xn--bcher-kva.example/x", "xn--bcher-kva.example", "/x"),
        ("https://8.8.8.8/x", "8.8.8.8", "/x"),
        ("https://[2606:4700:4700::1111]/x", "2606:4700:4700::1111", "/x"),
    ],
)
def test_a_plain_url_is_taken_apart(url: str, host: str, target: str) -> None:
    source = parse_source_url(url, allow_loopback_http=False)
    assert (source.scheme, source.host, source.port, source.target) == ("https", host, 443, target)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "[::1]"])
def test_http_to_this_machine_needs_the_setting(host: str) -> None:
    url = f"http://{host}:8765/a.png"
    assert parse_source_url(url, allow_loopback_http=True).port == 8765
    with pytest.raises(SourceForbiddenError):
        parse_source_url(url, allow_loopback_http=False)


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0", "169.254.169.254", "pictures.example", "8.8.8.8", "[::]"])
def test_http_stays_refused_for_every_other_host(host: str) -> None:
    with pytest.raises(SourceForbiddenError):
        parse_source_url(f"http://{host}/a.png", allow_loopback_http=True)


def test_a_signature_is_in_no_repr() -> None:
    source = parse_source_url("https://pictures.example/a?sig=canary", allow_loopback_http=False)
    assert "canary" not in repr(source)
