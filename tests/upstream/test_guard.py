"""Is exactly the public internet fetchable, in exactly one spelling?"""

import ipaddress

import pytest

from app.upstream.guard import SourceForbiddenError, check_addresses, is_public_address, parse_source_url

NOT_PUBLIC = (
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.0.9",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "232.1.2.3",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:0:7f00:1::",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:1ff::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "0.255.255.255",
    "10.0.0.0",
    "100.127.255.255",
    "100.64.0.0",
    "127.0.0.0",
    "127.0.0.53",
    "169.254.0.0",
    "169.254.0.23",
    "169.254.169.123",
    "169.254.169.253",
    "169.254.170.23",
    "169.254.255.255",
    "172.16.0.0",
    "172.31.0.10",
    "192.0.0.0",
    "192.0.0.10",
    "192.0.0.170",
    "192.0.0.255",
    "192.0.2.255",
    "192.88.99.0",
    "192.88.99.255",
    "192.168.255.255",
    "198.18.0.0",
    "198.51.100.255",
    "203.0.113.255",
    "224.0.0.0",
    "224.0.0.251",
    "239.255.255.255",
    "240.0.0.0",
    "255.255.255.254",
    "::2",
    "::a9fe:a9fe",
    "::ffff:169.254.169.254",
    "::ffff:168.63.129.16",
    "::ffff:1.1.1.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::a00:1",
    "64:ff9b:1:ffff::a00:1",
    "100::",
    "100:0:0:1::1",
    "2001:0:a9fe:a9fe::",
    "2001:3::1",
    "2001:4:112::1",
    "2001:30::1",
    "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
    "2002:a00:1::",
    "2002:a9fe:a9fe::",
    "2002:ffff:ffff::",
    "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
    "fc00::",
    "fd00:ec2::23",
    "fd00:ec2::253",
    "fd20:ce::254",
    "fdff:ffff::1",
    "fe80::",
    "fe80::a9fe:a9fe",
    "febf::1",
    "feff::1",
    "ff01::1",
    "ff02::fb",
    "ff05::1:3",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "0:0:0:0:0:0:0:1",
)

PUBLIC = (
    "1.0.0.0",
    "9.255.255.255",
    "11.0.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.17",
    "169.253.255.255",
    "169.255.0.0",
    "191.255.255.255",
    "192.88.100.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "2001:db7:ffff::1",
    "2001:db9::",
    "3fff:1000::1",
    "20.150.0.4",
    "1.1.1.1",
    "8.8.8.8",
    "20.60.1.1",
    "93.184.215.14",
    "100.63.255.255",
    "100.128.0.0",
    "168.63.129.15",
    "172.15.255.255",
    "172.32.0.1",
    "192.0.1.1",
    "192.88.98.255",
    "223.255.255.255",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2003::1",
    "2603:1030:20e:3::23c",
    "2606:4700:4700::1111",
    "3ffe::1",
)

# Hosts that some parser or resolver takes for an address inside, or that two of them take for different ones.
ODD_HOSTS = (
    "127.1",
    "127.0.1",
    "0",
    "0.0",
    "2130706433",
    "017700000001",
    "0x7f000001",
    "0x7f.1",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "127.0.0.01",
    "127.0.0.0x1",
    "127.0.0.1.",
    "127.0.0.1.5",
    "256.1.1.1",
    "1.2.3",
    "pictures.example.1",
    "pictures.example.0x1",
    "localhost.",
    "①②⑦.⓪.⓪.①",
    "１２７.０.０.１",
    "127。0。0。1",
    "loc\u0430lhost",
    "lo\u212aalhost",
    "ho\u017ft.example",
    "%31%32%37.0.0.1",
    "127.0.0.1%00.example",
    "127.0.0.1\\@pictures.example",
    "pictures.example\\@127.0.0.1",
    "pictures.example@127.0.0.1",
    "user:password@127.0.0.1",
    "pictures.example:443@127.0.0.1",
    "pictures.example\t",
    "pictures.example ",
    "pictures .example",
    "pictures.example\n",
    "pictures.example\x00",
    "pictures.example\u00a0",
    "pictures..example",
    ".pictures.example",
    "-pictures.example",
    "pictures-.example",
    "a" * 64 + ".example",
    "a." * 130 + "example",
    "",
    "[::1",
    "::1",
    "[]",
    "[:::]",
    "[::1%25lo]",
    "[fe80::1%eth0]",
    "[v1.127]",
    "[127.0.0.1]",
    "[::ffff:127.0.0.01]",
    "[::1].example",
    "127.0.0.0x01",
    "0x7f.0x0.0x0.0x1",
    "0X7F000001",
    "0177.0.0.1.",
    "00000177.1",
    "0xa9fea9fe",
    "0xa9.0xfe.0xa9.0xfe",
    "2852039166",
    "169.254.43518",
    "169.16689662",
    "0251.0376.0251.0376",
    "025177524776",
    "4294967295",
    "4294967296",
    "-1",
    "0b1111111.0.0.1",
    "0o177.0.0.1",
    "１69.254.169.254",
    "169。254。169。254",
    "169．254．169．254",
    "169｡254｡169｡254",
    "١٢٧.٠.٠.١",
    "⑯⑨.254.169.254",
    "𝟏𝟐𝟕.0.0.1",
    "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
    "localhost\u3002",
    "lòcalhost",
    "xn--",
    "bücher.example",
    "ﬀ.example",
    "pictures.example%2e",
    "pictures%2eexample",
    "%6c%6f%63%61%6c%68%6f%73%74",
    "localhost%00.example",
    "pictures.example%23@127.0.0.1",
    "127.0.0.1;pictures.example",
    "127.0.0.1,pictures.example",
    "pictures.example:@127.0.0.1",
    "@127.0.0.1",
    ":@127.0.0.1",
    "pictures.example\u2025",
    "pictures.example\uff0f127.0.0.1",
    "pictures.example\u2044",
    "pictures.exa\u00admple",
    "pictures.example\u200b",
    "\u202e127.0.0.1",
    "pictures.example.",
    "[::ffff:7f00:1%25lo]",
    "[0:0:0:0:0:0:0:1%lo]",
    "[::1]]",
    "[[::1]]",
    "::1]",
    "[::127.1]",
    "[1:2:3:4:5:6:7:8:9]",
    "[12345::1]",
    "[::g]",
    "[0x0::1]",
    "[ ::1]",
    "[::1\x00]",
)

ODD_URLS = (
    "",
    "//pictures.example/a.png",
    "pictures.example/a.png",
    "http://pictures.example/a.png",
    "ftp://pictures.example/a.png",
    "file:///etc/passwd",
    "data:image/png;base64,AAAA",
    "gopher://pictures.example/",
    "javascript:alert(1)",
    "http\u017f://pictures.example/",
    "https:pictures.example/a.png",
    "https:/pictures.example/a.png",
    "https:///pictures.example/a.png",
    "https://pictures.example:80/a.png",
    "https://pictures.example:0/a.png",
    "https://pictures.example:/a.png",
    "https://pictures.example:0443/a.png",
    "https://pictures.example:443443/a.png",
    "https://pictures.example:65979/a.png",
    "https://pictures.example:-443/a.png",
    "https://pictures.example:443:443/a.png",
    "https://pictures.example:４４３/a.png",
    " https://pictures.example/a.png",
    "https://pictures.example/a.png ",
    "https://pictures.example/a\r\nHost: b",
    "https://pictures.example/a\\b",
    "https\t://pictures.example/",
    "https://pictures.example/" + "a" * 20_000,
    "https://pictures.example/" + "ä" * 10_000,
    "http://127.0.0.1/",
    "http://localhost/",
    "HTTPS:\\\\pictures.example\\a.png",
    "https:\\\\127.0.0.1/a.png",
    "https://\\127.0.0.1/a.png",
    "https:////127.0.0.1/a.png",
    "https://pictures.example:443@/a.png",
    "https://pictures.example:44３/a.png",
    "https://pictures.example:+443/a.png",
    "https://pictures.example: 443/a.png",
    "https://pictures.example:22/a.png",
    "https://pictures.example:6379/a.png",
    "https://pictures.example:4430/a.png",
    "https://pictures.example:https/a.png",
    "https://pictures.example:0x1bb/a.png",
    "wss://pictures.example/a.png",
    "ws://pictures.example/a.png",
    "ldap://pictures.example/a.png",
    "dict://pictures.example:11211/",
    "jar:https://pictures.example!/",
    "blob:https://pictures.example/x",
    "view-source:https://pictures.example/",
    "https+unix://socket/a.png",
    "unix:///var/run/docker.sock",
    "https:pictures.example",
    "https//pictures.example/",
    "://pictures.example/",
    "https://?https://pictures.example/",
    "https://#pictures.example/",
    "\ufeffhttps://pictures.example/a.png",
    "ｈttps://pictures.example/a.png",
    "https：//pictures.example/a.png",
    "https://pictures.example/a\x7fb",
    "https://pictures.example/a\x00b",
    "https://pictures.example/a\u00a0b",
)


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
