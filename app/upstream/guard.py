"""Which addresses may a picture be fetched from, so that a URL from outside never reaches inside?"""

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import quote

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# `is_global` alone lets these through on one supported Python or another (17 of 53 tried on 3.11.7 and 3.12.1).
_V4_REFUSED = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata service is in it
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # Azure's wire server, a public address that answers inside only
    )
)
_V6_ALLOWED = ipaddress.IPv6Network("2000::/3")
_V6_REFUSED = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # Teredo, benchmarking and other protocol assignments
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which carries any IPv4 address
        "3fff::/20",  # documentation
    )
)

_HTTP_PORT = 80
_HTTPS_PORT = 443
_PORT_MAX = 65_535
_URL_CHARACTERS_MAX = 16_384
_HOST_CHARACTERS_MAX = 253

# One spelling is accepted for each thing. What another parser could read in another way (userinfo, backslashes,
# blanks, %-escaped hosts, wide digits, zone ids) does not match, and is refused before anything is looked up.
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_URL = re.compile(
    rf"(?P<scheme>https?)://(?:(?P<name>{_LABEL}(?:\.{_LABEL})*)|\[(?P<v6>[0-9a-f:.]{{2,45}})\])"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?(?P<target>[/?][^#]*)?(?:\#.*)?",
    # Without ASCII the long s and the Kelvin sign would count as letters of a host.
    re.IGNORECASE | re.ASCII,
)
_BLANK_OR_CONTROL = re.compile(r"[\x00-\x20\x7f-\xa0\\]")
_UNESCAPED = "".join(map(chr, range(0x21, 0x7F)))


class SourceForbiddenError(ValueError):
    """The URL, or an address its host has, is none that may be fetched. The text names the fault, not the URL."""


@dataclass(frozen=True)
class SourceAddress:
    """A source URL taken apart. `target` (path and query) may carry a signature, so it is not in the repr."""

    scheme: str
    host: str
    port: int
    target: str = field(repr=False)
    literal: Address | None
    loopback: bool


def parse_source_url(url: str, *, allow_loopback_http: bool) -> SourceAddress:
    """Takes a URL apart without looking anything up: https on port 443, or http to this machine where that is allowed.

    Raises: `SourceForbiddenError` for all else: other schemes and ports, userinfo, odd spellings of a host.
    """
    if len(url) > _URL_CHARACTERS_MAX or _BLANK_OR_CONTROL.search(url):
        raise SourceForbiddenError("it is too long, or holds a blank, a control character or a backslash")
    parts = _URL.fullmatch(url)
    if parts is None:
        raise SourceForbiddenError("it is not a plain http(s) URL")
    host = (parts["name"] or parts["v6"]).lower()
    literal = _literal(host, is_v6=parts["v6"] is not None)
    scheme = parts["scheme"].lower()
    port = int(parts["port"] or (_HTTPS_PORT if scheme == "https" else _HTTP_PORT))
    if scheme == "http":
        if not (allow_loopback_http and (host == "localhost" or (literal is not None and literal.is_loopback))):
            raise SourceForbiddenError("it is not https")
        if port > _PORT_MAX:
            raise SourceForbiddenError("its port is none")
    elif port != _HTTPS_PORT:
        raise SourceForbiddenError("its port is not 443")
    return SourceAddress(
        scheme=scheme,
        host=host,
        port=port,
        target=_target(parts["target"] or "/"),
        literal=literal,
        loopback=scheme == "http",
    )


def _target(text: str) -> str:
    target = quote(text if text.startswith("/") else "/" + text, safe=_UNESCAPED, errors="replace")
    if len(target) > _URL_CHARACTERS_MAX:
        raise SourceForbiddenError("it is too long")
    return target


def _literal(host: str, *, is_v6: bool) -> Address | None:
    try:
        if is_v6:
            return ipaddress.IPv6Address(host)
        last_label = host.rpartition(".")[2]
        # A resolver reads 127.1, 0x7f.1 and 2130706433 as addresses too; only the dotted quad is accepted as one.
        if not re.fullmatch(r"[0-9]+|0x[0-9a-f]*", last_label):
            if len(host) > _HOST_CHARACTERS_MAX:
                raise SourceForbiddenError("its host name is too long")
            return None
        return ipaddress.IPv4Address(host)
    except ipaddress.AddressValueError:
        raise SourceForbiddenError("its host is an odd spelling of an address") from None


def check_addresses(source: SourceAddress, addresses: tuple[Address, ...]) -> None:
    """Promises that every address is one that `source` may be fetched from: a mixed answer is refused whole.

    Raises: `SourceForbiddenError`.
    """
    for address in addresses:
        allowed = address.is_loopback if source.loopback else is_public_address(address)
        if not allowed:
            raise SourceForbiddenError(f"it leads to {address}, which is not a public address")


def is_public_address(address: Address) -> bool:
    """Tells whether the whole internet sees this address as the same host: no private, reserved or translated one."""
    if isinstance(address, ipaddress.IPv6Address):
        return address in _V6_ALLOWED and not any(address in network for network in _V6_REFUSED)
    in_refused = any(address in network for network in _V4_REFUSED)
    return address.is_global and not address.is_multicast and not in_refused
