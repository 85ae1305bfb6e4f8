"""What does a client send that means harm, or whose programmer slept: whole requests, byte by byte?

The word CANARY stands wherever it can; nothing may repeat it. `{key}` is a good key, `{id}` and `{name}` are a
generation's and its image's.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Hostile:
    """One request. `cut` is sent by a client that then hangs up, so that no answer is a good answer."""

    name: str
    sent: bytes
    cut: bool = False


_KEYED = b"Host: imagekeep\r\nAuthorization: Bearer {key}\r\n"
_ORDER = b'{"prompt": "a hidden fox"}'
_MIB = 1024 * 1024


def _get(target: bytes = b"/me", *headers: bytes, method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    return (
        method
        + b" "
        + target
        + b" "
        + version
        + b"\r\n"
        + b"".join(line + b"\r\n" for line in (*_KEYED.split(b"\r\n")[:-1], b"Connection: close", *headers))
        + b"\r\n"
    )


def _post(body: bytes, *headers: bytes, target: bytes = b"/images", method: bytes = b"POST") -> bytes:
    return _get(target, b"Content-Length: %d" % len(body), *headers, method=method) + body


# Values that some header of some program chokes on.
_VALUES = {
    "nothing": b"",
    "blanks": b"  \t ",
    "Latin-1": b"CANARY \xe4\xf6\xfc",
    "UTF-8": "CANARY für 🦊 ‮".encode(),
    "bytes that are no text": b"CANARY \xff\xfe\x80",
    "a tab": b"CANARY\tCANARY",
    "quotes": b'"CANARY',
    "separators": b",;=,;=CANARY;;,,",
    "markup": b"<script>CANARY</script>",
    "a template": b"{CANARY.__class__} %s ${jndi:ldap://CANARY}",
    "JSON for the log": b'CANARY", "level": "info", "event": "forged"}',
    "a number of 5,000 digits": b"9" * 5_000,
    "NaN": b"NaN",
    "8,000 characters": b"CANARY--" * 1_000,
    "a path": b"../../../etc/CANARY",
    "SQL": b"CANARY' OR 1=1; --",
}
_HEADERS = (
    b"Accept",
    b"Accept-Encoding",
    b"Authorization",
    b"Content-Encoding",
    b"Content-Type",
    b"Cookie",
    b"Idempotency-Key",
    b"If-None-Match",
    b"If-Range",
    b"Origin",
    b"Prefer",
    b"Range",
    b"TT-API-KEY",
    b"X-Forwarded-For",
    b"X-Request-Id",
    b"X-Stainless-Retry-Count",
)
# Values that no header may have: the line ends, or the request does.
_BREAKERS = {
    "NUL": b"a\x00CANARY",
    "an escape code": b"\x1b[31mCANARY",
    "a bare CR": b"a\rX-Forged: CANARY",
    "a bare LF": b"a\nX-Forged: CANARY",
    "CR LF": b"a\r\nX-Forged: CANARY",
    "a folded line": b"a\r\n CANARY",
    "70,000 characters": b"CANARY7" * 10_000,
}


def _headers() -> Iterator[Hostile]:
    for header, (what, value) in product(_HEADERS, _VALUES.items()):
        # The image's own route reads Range and the conditions; /me reads the rest.
        target = b"/i/{name}" if header in (b"If-None-Match", b"If-Range", b"Range") else b"/me"
        if header == b"TT-API-KEY":
            target = b"/v1/models"
        yield Hostile(f"{header.decode()}: {what}", _get(target, header + b": " + value))
    for header, (what, value) in product((b"Authorization", b"Idempotency-Key", b"X-Request-Id"), _BREAKERS.items()):
        yield Hostile(f"{header.decode()}: {what}", _post(b"CANARY", header + b": " + value))
    for header in (b"Authorization", b"Idempotency-Key", b"X-Request-Id", b"Content-Length", b"Host", b"Prefer"):
        twice = _post(b"CANARY", header + b": 6", header + b": 7 CANARY")
        yield Hostile(f"{header.decode()} three times", twice)


def _header_lines() -> Iterator[Hostile]:
    lines = {
        "a name of blanks": b"  : CANARY",
        "no name": b": CANARY",
        "no colon": b"CANARY",
        "a blank before the colon": b"X-Odd : CANARY",
        "a name that is no token": b"X(CANARY): a",
        "NUL in a name": b"X\x00: CANARY",
        "Latin-1 in a name": b"X-\xe4: CANARY",
        "a name of 70,000 characters": b"X" * 70_000 + b": CANARY",
        "1,000 headers": b"\r\n".join(b"X-%d: CANARY" % number for number in range(1_000)),
        "20,000 headers": b"\r\n".join(b"X-%d: CANARY" % number for number in range(20_000)),
        "an Upgrade to WebSocket": b"Upgrade: websocket\r\nSec-WebSocket-Key: Q0FOQVJZ\r\nSec-WebSocket-Version: 13",
        "an Upgrade to HTTP/2": b"Upgrade: h2c\r\nHTTP2-Settings: CANARY",
        "a method in the place of another": b"X-HTTP-Method-Override: DELETE",
        "a path in the place of another": b"X-Original-URL: /CANARY\r\nX-Rewrite-URL: /CANARY",
        "an Expect that nobody meets": b"Expect: CANARY",
    }
    return (Hostile(what, _get(b"/me", line)) for what, line in lines.items())


def _request_lines() -> Iterator[Hostile]:
    lines = {
        "HTTP/0.9": b"GET /me",
        "HTTP/1.0": b"GET /me HTTP/1.0",
        "HTTP/1.2": b"GET /me HTTP/1.2",
        "HTTP/2.0": b"GET /me HTTP/2.0",
        "HTTP/9.9": b"GET /me HTTP/9.9",
        "HTTP/1.1 in small letters": b"GET /me http/1.1",
        "no version": b"GET /me CANARY",
        "no target": b"GET HTTP/1.1",
        "two blanks": b"GET  /me  HTTP/1.1",
        "tabs": b"GET\t/me\tHTTP/1.1",
        "a blank in the target": b"GET /CANARY CANARY HTTP/1.1",
        "NUL in the target": b"GET /CANARY\x00 HTTP/1.1",
        "Latin-1 in the target": b"GET /CANARY\xe4 HTTP/1.1",
        "UTF-8 in the target": "GET /CANARYä🦊 HTTP/1.1".encode(),
        "an escape code in the target": b"GET /\x1b[31mCANARY HTTP/1.1",
        "an absolute target": b"GET http://CANARY.example/me HTTP/1.1",
        "an absolute target with a user": b"GET http://CANARY:CANARY@169.254.169.254/me HTTP/1.1",
        "an absolute target of another scheme": b"GET file:///etc/CANARY HTTP/1.1",
        "an authority": b"CONNECT CANARY.example:443 HTTP/1.1",
        "CONNECT to a path": b"CONNECT /me HTTP/1.1",
        "an asterisk": b"OPTIONS * HTTP/1.1",
        "GET an asterisk": b"GET * HTTP/1.1",
        "a target without a slash": b"GET CANARY HTTP/1.1",
        "an empty target": b"GET  HTTP/1.1",
        "only a query": b"GET ?CANARY HTTP/1.1",
        "a fragment": b"GET /me#CANARY HTTP/1.1",
        "a target of 70,000 characters": b"GET /" + b"CANARY7" * 10_000 + b" HTTP/1.1",
        "a query of 70,000 characters": b"GET /me?" + b"CANARY7" * 10_000 + b" HTTP/1.1",
        "a method in small letters": b"get /me HTTP/1.1",
        "a method of another kind": b"CANARY /me HTTP/1.1",
        "a method of 10,000 letters": b"G" * 10_000 + b" /me HTTP/1.1",
        "a method with NUL": b"GE\x00T /me HTTP/1.1",
        "no method": b" /me HTTP/1.1",
        "PRI": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "TRACE": b"TRACE /me HTTP/1.1",
        "TRACK": b"TRACK /me HTTP/1.1",
        "DEBUG": b"DEBUG /me HTTP/1.1",
        "PURGE": b"PURGE /i/{name} HTTP/1.1",
        "SOURCE": b"SOURCE /me ICE/1.0",
    }
    return (Hostile(what, line + b"\r\n" + _KEYED + b"Connection: close\r\n\r\n") for what, line in lines.items())


_METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"PROPFIND", b"M-SEARCH")
_TARGETS = (
    b"/",
    b"/images/%00",
    b"/images/CANARY",
    b"/images/%FF%FE",
    b"/images/..%2f..%2fmetrics",
    b"/images/00000000-0000-0000-0000-000000000000",
    b"/i/%00.png",
    b"/i/CANARY.png",
    b"/i/..%2f{name}",
    b"/i/{name}%00",
    b"/i//{name}",
    b"/docs/files/%2e%2e/%2e%2e/CANARY",
    b"/docs/files/..%5c..%5cCANARY",
    b"/docs/files/%00CANARY",
    b"/docs/files/" + b"CANARY/" * 500,
    b"/docs/files/CANARY%0d%0aX-Forged:%20a",
    b"/openapi.json/CANARY",
    b"/healthz/CANARY",
    b"/metrics/%0aCANARY",
    b"/v1/models/CANARY",
    b"/v1/models/%00%0d%0aX-Forged:%20CANARY",
    b"/v1/images/generations",
    b"/v1/images/edits",
    b"/openai/v1/images/generations",
    b"/openai/v1/%0aCANARY",
    b"/%0d%0aX-Forged:%20CANARY",
    b"/%E2%80%AECANARY",
    b"//CANARY.example/",
    b"/%2e%2e/%2e%2e/CANARY",
    b"/me;CANARY",
    b"/me%20",
    b"/%6de/CANARY",
)


def _paths() -> Iterator[Hostile]:
    for number, target in enumerate(_TARGETS):
        # Every target under four methods, so that every method meets ten of them.
        for step in range(4):
            method = _METHODS[(number * 4 + step) % len(_METHODS)]
            yield Hostile(f"{method.decode()} {target[:60].decode()}", _post(b"CANARY", target=target, method=method))


_QUERIES = (
    b"limit=" + b"9" * 5_000,
    b"limit=\xff",
    b"limit=%FF%FE",
    b"limit=1&limit=CANARY",
    b"limit=0x10",
    b"limit=1e1",
    b"limit=%D9%A1CANARY",
    b"limit[]=1",
    b"before=%00",
    b"before={id}%00",
    b"before={id}'%20OR%201=1",
    b"before=" + b"%" * 5_000,
    b"before=urn:uuid:CANARY",
    b"=CANARY&&=&%=%",
    b"limit=" + b"%30" * 5_000 + b"CANARY",
)


def _framing() -> Iterator[Hostile]:
    """Lengths that lie, chunks that are none, and requests hidden behind them."""
    hidden = _post(_ORDER)
    chunked = b"Transfer-Encoding: chunked"
    start = b"POST /images HTTP/1.1\r\n" + _KEYED
    whole = {
        "a length that is no number": start + b"Content-Length: CANARY\r\n\r\n{}",
        "a length below nothing": start + b"Content-Length: -1\r\n\r\n{}",
        "a length with a sign": start + b"Content-Length: +2\r\n\r\n{}",
        "a length in hexadecimal": start + b"Content-Length: 0x2\r\n\r\n{}",
        "a length with a blank": start + b"Content-Length: 2 2\r\n\r\n{}",
        "a length of 5,000 digits": start + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n{}",
        "a length over 64 bits": start + b"Content-Length: 18446744073709551618\r\n\r\n{}",
        "two lengths": start + b"Content-Length: 2\r\nContent-Length: 200\r\n\r\n{}" + hidden,
        "two lengths in one": start + b"Content-Length: 2, 200\r\n\r\n{}" + hidden,
        "a length and chunks": start + chunked + b"\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + hidden,
        "chunks and a length": start + b"Content-Length: 4\r\n" + chunked + b"\r\n\r\n0\r\n\r\n" + hidden,
        "chunks with a blank": start + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + hidden,
        "chunks in the name of another": start + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + hidden,
        "chunks, and more": start + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + hidden,
        "chunks twice": start + chunked + b"\r\n" + chunked + b"\r\n\r\n0\r\n\r\n" + hidden,
        "chunks and then CANARY": start + chunked + b"\r\nTransfer-Encoding: CANARY\r\n\r\n0\r\n\r\n" + hidden,
        "chunks behind NUL": start + b"Transfer-Encoding: \x00chunked\r\n\r\n0\r\n\r\n" + hidden,
        "chunks behind a tab": start + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + hidden,
        "folded chunks": start + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + hidden,
        "a chunk of no size": start + chunked + b"\r\n\r\nCANARY\r\n\r\n" + hidden,
        "a chunk below nothing": start + chunked + b"\r\n\r\n-1\r\n{}\r\n0\r\n\r\n" + hidden,
        "a chunk of 0x": start + chunked + b"\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n" + hidden,
        "a chunk over 64 bits": start + chunked + b"\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n" + hidden,
        "a chunk longer than it says": start + chunked + b"\r\n\r\n1\r\n{CANARY}\r\n0\r\n\r\n" + hidden,
        "a chunk that ends in LF": start + chunked + b"\r\n\r\n2\n{}\n0\n\n" + hidden,
        "a chunk with NUL in its extension": start + chunked + b"\r\n\r\n2;\x00CANARY\r\n{}\r\n0\r\n\r\n" + hidden,
        "a chunk with a long extension": _get(b"/images", chunked, method=b"POST")
        + b"2;"
        + b"CANARY" * 20_000
        + b"\r\n{}\r\n0\r\n\r\n",
        "trailers that are headers": _get(b"/images", chunked, method=b"POST")
        + b"2\r\n{}\r\n0\r\nAuthorization: Bearer CANARY\r\nContent-Length: 6\r\n\r\n",
        "LF alone at each line's end": _post(b"CANARY").replace(b"\r\n", b"\n"),
        "CR alone at each line's end": _post(b"CANARY").replace(b"\r\n", b"\r"),
        "an empty line before": b"\r\n\r\n" + _post(b"CANARY"),
        "a blank line inside the head": start + b"\r\nX: CANARY\r\n\r\n",
        "Expect, and a bad body at once": _post(b"CANARY", b"Expect: 100-continue"),
        "Expect, and too large a body": _get(
            b"/images", b"Expect: 100-continue", b"Content-Length: 99999999", method=b"POST"
        ),
        "TLS": bytes.fromhex("1603010200010001fc0303") + b"CANARY" * 80,
        "SSH": b"SSH-2.0-CANARY\r\n",
        "SMTP": b"EHLO CANARY\r\n",
        "a PROXY line": b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + _get(),
        "noise": bytes(range(256)) * 16,
        "NULs": b"\x00" * 4_096,
    }
    # What hides an order ends with a hang-up: a server that waits for the rest of a chunk may wait for ever.
    yield from (Hostile(what, sent, cut=hidden in sent or b"99999999" in sent) for what, sent in whole.items())
    cut = {
        "nothing at all": b"",
        "line ends": b"\r\n" * 10_000,
        "half a method": b"PO",
        "half a request line": b"POST /ima",
        "half a header": start + b"X-CANARY",
        "no end of the head": start + b"Content-Length: 2\r\n",
        "a length longer than the body": start + b"Content-Length: 1000\r\n\r\n" + b'{"prompt": "CANARY"}',
        "a chunk shorter than it says": start + chunked + b"\r\n\r\nff\r\nCANARY",
        "chunks without an end": start + chunked + b"\r\n\r\n6\r\nCANARY\r\n",
        **{
            f"a pipeline of {length} bad ones": _post(b"CANARY").replace(b"Connection: close\r\n", b"") * length
            for length in range(20, 60, 4)
        },
    }
    yield from (Hostile(what, sent, cut=True) for what, sent in cut.items())


def _bodies() -> Iterator[Hostile]:
    """Bodies beyond those of tests/api/test_malformed_input.py, which names each one's answer."""
    canary = '{"prompt": "CANARY", %s}'
    bodies = {
        "20 MB of prompt": b'{"prompt": "' + b"CANARY  " * (20 * _MIB // 8) + b'"}',
        "20 MB of a name": b'{"' + b"CANARY  " * (20 * _MIB // 8) + b'": 1}',
        "20 MB of blanks": b" " * (20 * _MIB),
        "20 MB of brackets": b"[" * (20 * _MIB),
        "65,000 brackets": b"[" * 65_000,
        "30,000 objects": b'{"a":' * 13_000,
        "the same name 5,000 times": b"{" + b'"n": "CANARY",' * 4_500 + b'"prompt": 1}',
        "60,000 digits": canary.encode() % (b'"n": ' + b"9" * 60_000),
        "60,000 digits behind a point": canary.encode() % (b'"n": 0.' + b"9" * 60_000),
        "an exponent of 5,000 digits": canary.encode() % (b'"n": 1e' + b"9" * 5_000),
        "10,000 escapes": b'{"prompt": "' + b"\\u0000" * 9_000 + b'"}',
        "a lone surrogate as a name": b'{"\\ud800CANARY": 1}',
        "a lone surrogate as a size": canary.encode() % b'"size": "\\udfff"',
        "UTF-16 without a mark": _ORDER.decode().encode("utf-16-le"),
        "UTF-16, big end first": b"\xfe\xff" + _ORDER.decode().encode("utf-16-be"),
        "UTF-7": "{+AHs-CANARY}".encode("utf-7"),
        "EBCDIC": _ORDER.decode().encode("cp500"),
        "a mark in the middle": b'{"prompt":\xef\xbb\xbf "CANARY"}',
        "two marks": b"\xef\xbb\xbf\xef\xbb\xbf" + _ORDER,
        "YAML": b"prompt: CANARY\n",
        "MessagePack": b"\x81\xa6prompt\xa6CANARY",
        "a multipart form": b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nCANARY\r\n--x--\r\n',
        "a pickle": b"cos\nsystem\n(S'CANARY'\ntR.",
        "XML with entities": b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/CANARY">]><a>&x;</a>',
        "NaN as prompt": b'{"prompt": NaN}',
        "Infinity as a name": b"{Infinity: 1}",
        "-0 as n": canary.encode() % b'"n": -0',
        "1.0 as n": canary.encode() % b'"n": 1.0000000000000001',
        "4,001 emoji of two parts": json.dumps({"prompt": "👩‍🚀" * 1_334}).encode(),
    }
    # What a wrong type looks like, for every field there is.
    for field, value in product(
        ("prompt", "model", "size", "quality", "n"),
        ("[]", "{}", '{"CANARY": 1}', "[[[[1]]]]", "false", "1e999", "-1e999", "0.1", '"\\u0000"', '"CANARY\\ud800"'),
    ):
        bodies[f"{value} as {field}"] = b'{"prompt": "CANARY", "%s": %s}' % (field.encode(), value.encode())
    yield from (Hostile(what, _post(body, b"Content-Type: application/json")) for what, body in bodies.items())
    chunk = b"%x\r\n%b\r\n" % (_MIB, b"CANARY  " * (_MIB // 8))
    yield Hostile(
        "20 MB in chunks", _get(b"/images", b"Transfer-Encoding: chunked", method=b"POST") + chunk * 20 + b"0\r\n\r\n"
    )


CORPUS: tuple[Hostile, ...] = (
    *_headers(),
    *_header_lines(),
    *_request_lines(),
    *_paths(),
    *(Hostile(f"?{query[:40]!r}", _get(b"/images?" + query)) for query in _QUERIES),
    *_framing(),
    *_bodies(),
)
