"""Both sides of a connection without a socket: each check, its text, its order; any bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunnage.api.ttrpc_pb2 import KeyValue, Request, Response
from dunnage.ttrpc.connection import (
    Answered,
    ClientConnection,
    Dropped,
    Failed,
    Refused,
    Requested,
    ServerConnection,
    encode_error,
)
from dunnage.ttrpc.errors import Code, ConnectionClosed, ProtocolError, RpcError
from dunnage.ttrpc.frames import MAX_DATA_BYTES, Flag, Type, encode, split


def request(stream_id: int, *, flags: int = 0) -> bytes:
    return encode(stream_id, Type.REQUEST, flags, Request(service="s", method="m").SerializeToString())


def response_of(raw: bytes) -> tuple[int, int, str]:
    [frame], used = split(raw)
    assert (frame.type, frame.flags, used) == (Type.RESPONSE, 0, len(raw))
    response = Response.FromString(frame.data)
    assert not response.payload
    return frame.stream_id, response.status.code, response.status.message


def refusals(connection: ServerConnection, raw: bytes) -> list[tuple[int, int, str]]:
    events = connection.receive(raw)
    assert all(isinstance(event, Refused) for event in events)
    return [response_of(event.frame) for event in events if isinstance(event, Refused)]


# The server's side


def test_a_request_is_read_with_all_its_fields() -> None:
    sent = Request(service="s", method="m", payload=b"p", timeout_nano=7, metadata=[KeyValue(key="k", value="v")])
    [event] = ServerConnection().receive(encode(1, Type.REQUEST, 0, sent.SerializeToString()))
    assert event == Requested(1, sent, False)
    assert isinstance(event, Requested)
    assert event.metadata == (("k", "v"),)


def test_a_stream_id_must_be_odd() -> None:
    expected = [(2, 3, "StreamID must be odd for client initiated streams")]
    assert refusals(ServerConnection(), request(2)) == expected
    assert refusals(ServerConnection(), encode(2, Type.DATA, 0, b"")) == expected


def test_an_even_id_is_told_before_an_unknown_type() -> None:
    assert refusals(ServerConnection(), encode(0, 9, 0, b"")) == [
        (0, 3, "StreamID must be odd for client initiated streams")
    ]


def test_too_large_a_frame_is_told_before_its_even_id() -> None:
    length = MAX_DATA_BYTES + 1
    connection = ServerConnection()
    header = length.to_bytes(4, "big") + bytes.fromhex("00000002 01 00")
    assert refusals(connection, header + bytes(length)) == [
        (2, 8, "message length 4194305 exceed maximum message size of 4194304")
    ]
    assert isinstance(connection.receive(request(1))[0], Requested)


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("stream_id", [1, 5])
def test_a_stream_id_must_rise(stream_id: int, answered: bool) -> None:
    connection = ServerConnection()
    connection.receive(request(5))
    if answered:
        assert connection.answer(5, b"")
    assert refusals(connection, request(stream_id)) == [(stream_id, 3, "StreamID cannot be re-used and must increment")]
    assert (connection.answer(5, b"") is None) is answered


def test_data_for_a_stream_that_is_not_open_is_refused() -> None:
    connection = ServerConnection()
    assert refusals(connection, encode(3, Type.DATA, Flag.REMOTE_CLOSED, b"")) == [
        (3, 3, "StreamID is no longer active")
    ]
    assert isinstance(connection.receive(request(3))[0], Requested)


def test_data_for_a_unary_call_ends_it() -> None:
    connection = ServerConnection()
    connection.receive(request(1))
    assert refusals(connection, encode(1, Type.DATA, 0, b"x")) == [
        (1, 3, "data handling error: the method is not streaming")
    ]
    assert connection.answer(1, b"late") is None


def test_a_request_that_opens_a_stream_says_so() -> None:
    [event] = ServerConnection().receive(request(1, flags=Flag.REMOTE_OPEN))
    assert isinstance(event, Requested)
    assert event.streaming


@pytest.mark.parametrize("frame_type", [0, Type.RESPONSE, 4, 255])
def test_other_types_are_ignored(frame_type: int) -> None:
    connection = ServerConnection()
    assert connection.receive(encode(1, frame_type, 0, b"x")) == []
    assert isinstance(connection.receive(request(1))[0], Requested)


def test_bad_request_bytes_are_refused_and_use_up_the_id() -> None:
    connection = ServerConnection()
    [(stream_id, code, text)] = refusals(connection, encode(1, Type.REQUEST, 0, b"\xff"))
    assert (stream_id, code) == (1, Code.INVALID_ARGUMENT)
    assert text.startswith("unmarshal request error: ")
    assert refusals(connection, request(1))[0][2] == "StreamID cannot be re-used and must increment"


def test_an_empty_result_is_a_frame_without_data() -> None:
    connection = ServerConnection()
    connection.receive(request(1))
    assert connection.answer(1, b"") == bytes.fromhex("00000000 00000001 02 00")


def test_a_stream_is_answered_once() -> None:
    connection = ServerConnection()
    connection.receive(request(1))
    raw = connection.answer(1, b"p")
    assert raw is not None
    assert Response.FromString(split(raw)[0][0].data) == Response(payload=b"p")
    assert connection.answer(1, b"p") is None
    assert connection.refuse(1, RpcError(Code.UNKNOWN, "x")) is None


def test_too_large_a_result_becomes_an_error() -> None:
    connection = ServerConnection()
    connection.receive(request(1))
    raw = connection.answer(1, bytes(MAX_DATA_BYTES))
    assert raw is not None
    assert response_of(raw)[1] == Code.RESOURCE_EXHAUSTED


def test_an_error_may_hold_any_text() -> None:
    assert response_of(encode_error(1, RpcError(Code.UNKNOWN, "a\udcff"))) == (1, 2, "a\\udcff")
    assert len(encode_error(1, RpcError(Code.UNKNOWN, "x" * (5 << 20)))) < 1 << 20


# The client's side


def call(connection: ClientConnection) -> int:
    return connection.call("s", "m", b"p")[0]


def test_a_client_opens_odd_streams_that_rise() -> None:
    connection = ClientConnection()
    assert [call(connection) for _ in range(3)] == [1, 3, 5]


def test_a_call_is_a_request_frame() -> None:
    stream_id, raw = ClientConnection().call("s", "m", b"p", timeout_ns=9, metadata=[("k", "v")])
    [event] = ServerConnection().receive(raw)
    assert isinstance(event, Requested)
    assert (event.stream_id, event.streaming) == (stream_id, False)
    assert event.request == Request(
        service="s", method="m", payload=b"p", timeout_nano=9, metadata=[KeyValue(key="k", value="v")]
    )


def test_a_client_that_has_used_all_ids_is_closed() -> None:
    connection = ClientConnection()
    connection.streams._next_id = 2**32 - 1
    assert call(connection) == 2**32 - 1
    with pytest.raises(ConnectionClosed):
        call(connection)


def test_too_large_a_request_fails_and_sends_nothing() -> None:
    connection = ClientConnection()
    with pytest.raises(RpcError) as refused:
        connection.call("s", "m", bytes(MAX_DATA_BYTES))
    assert refused.value.code is Code.RESOURCE_EXHAUSTED


def test_a_result_and_an_error_are_told_apart() -> None:
    connection = ClientConnection()
    first, second, third = (call(connection) for _ in range(3))
    ok = Response(payload=b"p")
    ok.status.code = 0
    answers = (
        encode(third, Type.RESPONSE, 0, b"")
        + encode_error(second, RpcError(Code.NOT_FOUND, "no c1: not found"))
        + encode(first, Type.RESPONSE, 0, ok.SerializeToString())
    )
    empty, failed, answered = connection.receive(answers)
    assert (empty, answered) == (Answered(third, b""), Answered(first, b"p"))
    assert isinstance(failed, Failed)
    assert (failed.error.code, failed.error.message) == (Code.NOT_FOUND, "no c1: not found")


def test_responses_that_nobody_waits_for_are_dropped() -> None:
    connection = ClientConnection()
    connection.forget(call(connection))
    assert connection.receive(encode(1, Type.RESPONSE, 0, b"") + encode(8, Type.RESPONSE, 0, b"")) == [
        Dropped(1),
        Dropped(8),
    ]


def test_what_is_no_answer_to_a_unary_call_fails_just_that_call() -> None:
    connection = ClientConnection()
    first, second, third, fourth = (call(connection) for _ in range(4))
    length = MAX_DATA_BYTES + 1
    oversized = length.to_bytes(4, "big") + third.to_bytes(4, "big") + b"\2\0" + bytes(length)
    events = connection.receive(
        encode(first, Type.DATA, 0, b"")
        + encode(second, Type.RESPONSE, 0, b"\xff")
        + encode(fourth, 9, 0, b"")
        + oversized
    )
    assert [(event.stream_id, event.error.code) for event in events if isinstance(event, Failed)] == [
        (first, Code.INTERNAL),
        (second, Code.INTERNAL),
        (third, Code.RESOURCE_EXHAUSTED),
    ]
    assert connection.receive(encode(fourth, Type.RESPONSE, 0, b"")) == [Answered(fourth, b"")]


# Any bytes

frame_bytes = st.builds(
    encode,
    st.integers(0, 9) | st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 3]) | st.integers(0, 255),
    st.integers(0, 255),
    st.binary(max_size=30)
    | st.builds(lambda payload: Request(service="s", payload=payload).SerializeToString(), st.binary(max_size=9))
    | st.builds(lambda payload: Response(payload=payload).SerializeToString(), st.binary(max_size=9)),
)
any_bytes = st.lists(frame_bytes | st.binary(max_size=20), max_size=8).map(b"".join)


@given(any_bytes, st.lists(st.integers(0, 300), max_size=12))
def test_any_bytes_in_any_cuts_give_a_server_the_same_events(data: bytes, places: list[int]) -> None:
    whole, in_pieces = ServerConnection(), ServerConnection()
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
    events = whole.receive(data)
    assert [repr(event) for event in events] == [repr(e) for piece in pieces for e in in_pieces.receive(piece)]
    assert all(isinstance(event, Requested | Refused) for event in events)
    for connection in (whole, in_pieces):
        try:
            connection.decoder.end()
        except ProtocolError:
            assert connection.decoder.missing_bytes


@given(any_bytes, st.lists(st.integers(0, 300), max_size=12))
def test_any_bytes_in_any_cuts_give_a_client_the_same_events(data: bytes, places: list[int]) -> None:
    whole, in_pieces = ClientConnection(), ClientConnection()
    for connection in (whole, in_pieces):
        for _ in range(3):
            call(connection)
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
    events = whole.receive(data)
    assert [repr(event) for event in events] == [repr(e) for piece in pieces for e in in_pieces.receive(piece)]
    assert all(isinstance(event, Answered | Failed | Dropped) for event in events)
