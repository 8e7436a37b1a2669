"""Frames: literals, and the properties that hold for any bytes and any cuts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunnage.ttrpc.errors import Code, ProtocolError, RpcError
from dunnage.ttrpc.frames import MAX_DATA_BYTES, Decoder, Flag, Frame, Oversized, Type, encode, first_frame_bytes, split

REQUEST = bytes.fromhex("00000003 00000005 01 00") + b"abc"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def received(decoder: Decoder, pieces: list[bytes]) -> list[Frame | Oversized]:
    return [frame for piece in pieces for frame in decoder.receive(piece)]


def test_a_frame_is_a_big_endian_header_and_its_data() -> None:
    assert encode(5, Type.REQUEST, 0, b"abc") == REQUEST
    assert split(REQUEST) == ([Frame(5, 1, 0, b"abc")], 13)


def test_a_frame_may_have_no_data_and_any_flags_and_type() -> None:
    raw = bytes.fromhex("00000000 00000001 03 05 00000000 00000003 ff ff")
    assert Decoder().receive(raw) == [
        Frame(1, Type.DATA, Flag.REMOTE_CLOSED | Flag.NO_DATA, b""),
        Frame(3, 255, 255, b""),
    ]


def test_split_leaves_what_is_not_whole() -> None:
    assert split(REQUEST + REQUEST[:-1]) == ([Frame(5, 1, 0, b"abc")], 13)
    assert split(REQUEST[:9]) == ([], 0)
    assert first_frame_bytes(REQUEST[:10]) == 13
    assert first_frame_bytes(REQUEST[:9]) is None


def test_data_of_exactly_the_maximum_is_a_frame() -> None:
    raw = encode(1, Type.RESPONSE, 0, bytes(MAX_DATA_BYTES))
    decoder = Decoder()
    frames = received(decoder, [raw[:100], raw[100:65536], raw[65536:]])
    assert [(type(frame), len(frame.data)) for frame in frames if isinstance(frame, Frame)] == [(Frame, MAX_DATA_BYTES)]


def test_data_over_the_maximum_is_not_sent() -> None:
    with pytest.raises(RpcError, match="message length 4194305 exceed maximum message size of 4194304") as refused:
        encode(1, Type.RESPONSE, 0, bytes(MAX_DATA_BYTES + 1))
    assert refused.value.code is Code.RESOURCE_EXHAUSTED


def test_an_oversized_frame_is_discarded_to_its_end_and_the_next_one_is_read() -> None:
    length = MAX_DATA_BYTES + 1
    decoder = Decoder()
    assert decoder.receive(length.to_bytes(4, "big") + bytes.fromhex("00000007 01 00")) == []
    assert decoder.discarding
    assert decoder.receive(bytes(length - 1)) == []
    assert decoder.missing_bytes == 1
    assert decoder.receive(b"\0" + REQUEST) == [Oversized(7, 1, 0, length), Frame(5, 1, 0, b"abc")]
    assert not decoder.discarding
    decoder.end()


def test_missing_bytes_are_those_of_the_frame_under_way() -> None:
    decoder = Decoder()
    assert decoder.missing_bytes == 0
    decoder.receive(REQUEST[:4])
    assert decoder.missing_bytes == 6
    decoder.receive(REQUEST[4:11])
    assert (decoder.missing_bytes, decoder.unfinished) == (2, REQUEST[:11])
    decoder.receive(REQUEST[11:])
    assert (decoder.missing_bytes, decoder.unfinished) == (0, b"")


def test_an_end_inside_a_frame_is_a_protocol_error() -> None:
    decoder = Decoder()
    decoder.receive(REQUEST[:-2])
    with pytest.raises(ProtocolError, match="2 bytes before the end of a frame"):
        decoder.end()


frames = st.builds(
    Frame,
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 3]) | st.integers(0, 255),
    st.integers(0, 255),
    st.binary(max_size=40),
)


@given(st.lists(frames, max_size=6), st.lists(st.integers(0, 400), max_size=12))
def test_any_cut_of_the_bytes_gives_the_same_frames(sent: list[Frame], places: list[int]) -> None:
    raw = b"".join(encode(*frame) for frame in sent)
    decoder = Decoder()
    assert received(decoder, cut(raw, places)) == sent
    assert decoder.missing_bytes == 0


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=12))
def test_any_bytes_are_frames_or_a_protocol_error(data: bytes, places: list[int]) -> None:
    whole, in_pieces = Decoder(), Decoder()
    assert whole.receive(data) == received(in_pieces, cut(data, places))
    assert whole.missing_bytes == in_pieces.missing_bytes
    try:
        whole.end()
    except ProtocolError:
        assert in_pieces.missing_bytes
