"""Are messages put together right, however they come in?"""

import pytest

from bench.wire import Message, MessageReader, answer_with

WITH_LENGTH = b"POST / HTTP/1.1\r\nContent-Length: 5\r\nConnection: close\r\n\r\nabcde"
WITHOUT_BODY = b"GET /a HTTP/1.1\r\nHost: b\r\n\r\n"
IN_CHUNKS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


def read(stream: bytes, *, step: int, kept_bytes_max: int = 100) -> list[Message]:
    """What a reader makes of bytes that come `step` at a time."""
    reader = MessageReader(kept_bytes_max=kept_bytes_max)
    return [message for start in range(0, len(stream), step) for message in reader.feed(stream[start : start + step])]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_messages_are_whole_however_they_are_cut(step: int) -> None:
    messages = read(WITH_LENGTH + WITHOUT_BODY + IN_CHUNKS, step=step)

    assert [message.body for message in messages] == [b"abcde", b"", b"3\r\nabc\r\n0\r\n\r\n"]
    assert [message.closes for message in messages] == [True, False, False]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_large_body_is_counted_and_dropped_and_what_follows_is_read(step: int) -> None:
    large = answer_with("200 OK", b"x" * 50, "image/png")

    messages = read(large, step=step, kept_bytes_max=10) + read(WITHOUT_BODY, step=step)

    assert [(message.body, message.body_bytes) for message in messages] == [(b"", 50), (b"", 0)]


def test_who_waits_to_be_told_to_go_on_is_seen_before_the_body_comes() -> None:
    reader = MessageReader(kept_bytes_max=10)

    messages = reader.feed(b"PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")

    assert messages == []
    assert reader.awaits_go_on
