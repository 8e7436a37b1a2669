"""The control socket: every question has one answer, and no peer holds up another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunnage.errors import InvalidArgument
from dunnage.worker.control import (
    LIMIT_BYTES,
    ControlServer,
    Kind,
    LaunchAnswer,
    LaunchRequest,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    refusal,
)

LOG = logging.getLogger("test.control")
PATHS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0="), max_size=10)
REQUEST = LaunchRequest(
    argv=("shim", "-id", "c1", "start"),
    env={"PATH": "/bin", "ODD": "a=b", "RAW": os.fsdecode(b"\xff\xfe")},
    cwd="/run/b c",
    stdin=b"\0\x0a\0tail",
    pid=os.getpid(),
    uid=os.getuid(),
)


async def echo(request: LaunchRequest) -> LaunchAnswer:
    return LaunchAnswer(Kind.ANSWER, 7, request.stdin, os.fsencode(request.cwd))


@contextlib.asynccontextmanager
async def serving(
    path: Path,
    handle: Callable[[LaunchRequest], Awaitable[LaunchAnswer]] = echo,
    peer_timeout_s: float = 5.0,
) -> AsyncIterator[ControlServer]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    server = ControlServer(listener, handle, LOG, peer_timeout_s=peer_timeout_s)
    try:
        yield server
    finally:
        server.close()
        await server.wait_answered()


async def ask(path: Path, text: bytes) -> bytes:
    """All that comes back; a peer that closes with bytes of ours unread resets the connection after its answer."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.setblocking(False)
        await loop.sock_connect(peer, str(path))
        await loop.sock_sendall(peer, text)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := await loop.sock_recv(peer, 65536):
                got += chunk
        return got


@given(st.lists(PATHS, max_size=5), st.dictionaries(NAMES, PATHS, max_size=5), PATHS, st.binary(max_size=50))
def test_a_request_survives_the_wire(argv: list[str], env: dict[str, str], cwd: str, stdin: bytes) -> None:
    request = LaunchRequest(tuple(argv), env, cwd, stdin, 1, 2)
    assert decode_request(encode_request(request)[5:], pid=1, uid=2) == request


@given(st.binary(max_size=200))
def test_any_body_is_a_request_or_refused(body: bytes) -> None:
    with contextlib.suppress(InvalidArgument):
        decode_request(body, pid=1, uid=2)


@given(st.sampled_from(Kind), st.integers(0, 255), st.binary(max_size=50), st.binary(max_size=50), st.integers(0, 120))
def test_an_answer_is_nothing_until_it_is_whole(kind: Kind, status: int, out: bytes, err: bytes, cut: int) -> None:
    answer = LaunchAnswer(kind, status, out, err)
    text = encode_answer(answer)
    assert decode_answer(text) == answer
    if cut < len(text):
        assert decode_answer(text[:cut]) is None


def test_an_answer_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="unknown kind of answer"):
        decode_answer(b"Z" + bytes(9))


def test_the_handler_sees_what_the_launcher_said_and_the_kernel_s_word_of_who_it_is(tmp_path: Path) -> None:
    seen: list[LaunchRequest] = []

    async def handle(request: LaunchRequest) -> LaunchAnswer:
        seen.append(request)
        return await echo(request)

    async def scenario() -> bytes:
        async with serving(tmp_path / "s", handle):
            return await ask(tmp_path / "s", encode_request(REQUEST._replace(pid=1, uid=77)))

    answer = decode_answer(asyncio.run(scenario()))
    assert answer == LaunchAnswer(Kind.ANSWER, 7, REQUEST.stdin, b"/run/b c")
    assert seen == [REQUEST]


def test_a_request_in_single_bytes_is_one_request(tmp_path: Path) -> None:
    async def scenario() -> bytes:
        async with serving(tmp_path / "s"):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            for byte in encode_request(REQUEST):
                writer.write(bytes([byte]))
                await writer.drain()
            text = await reader.read()
            writer.close()
            return text

    assert decode_answer(asyncio.run(scenario())) == LaunchAnswer(Kind.ANSWER, 7, REQUEST.stdin, b"/run/b c")


def test_another_version_is_told_so(tmp_path: Path) -> None:
    async def scenario() -> bytes:
        async with serving(tmp_path / "s"):
            return await ask(tmp_path / "s", b"2 whatever comes then")

    assert decode_answer(asyncio.run(scenario())) == LaunchAnswer(Kind.UNSPOKEN_VERSION)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"1" + struct.pack("<I", LIMIT_BYTES + 1), b"is over the limit of 16777216"),
        (b"1" + struct.pack("<I", 7) + b"garbage", b"request is cut short"),
        (b"1" + struct.pack("<I", 4) + b"-1\0\0", b"number of arguments is '-1'"),
        (b"1" + struct.pack("<I", 11) + b"99999999\0a\0", b"request is cut short"),
        (b"1" + struct.pack("<I", 0), b"request is cut short"),
    ],
)
def test_a_question_that_is_none_is_answered_with_the_reason(tmp_path: Path, text: bytes, words: bytes) -> None:
    async def scenario() -> bytes:
        async with serving(tmp_path / "s"):
            return await ask(tmp_path / "s", text)

    answer = decode_answer(asyncio.run(scenario()))
    assert answer is not None
    assert (answer.kind, answer.status, answer.stdout) == (Kind.ANSWER, 1, b"")
    assert answer.stderr.startswith(b"io.containerd.dunnage.v2: ")
    assert words in answer.stderr


def test_a_failed_handler_is_answered_and_its_traceback_logged(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handle(request: LaunchRequest) -> LaunchAnswer:
        raise InvalidArgument("no such thing")

    async def scenario() -> bytes:
        async with serving(tmp_path / "s", handle):
            return await ask(tmp_path / "s", encode_request(REQUEST))

    assert decode_answer(asyncio.run(scenario())) == refusal("no such thing")
    assert "Traceback" in caplog.text


def test_a_hung_peer_blocks_nobody_and_is_let_go(tmp_path: Path) -> None:
    async def scenario() -> tuple[bytes, bytes]:
        async with serving(tmp_path / "s", peer_timeout_s=0.5) as server:
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            writer.write(encode_request(REQUEST)[:9])
            await writer.drain()
            quick = await ask(tmp_path / "s", encode_request(REQUEST))
            assert server.asking == 1
            hung = await reader.read()
            writer.close()
            return quick, hung

    quick, hung = (decode_answer(text) for text in asyncio.run(scenario()))
    assert quick is not None
    assert quick.status == 7
    assert hung is not None
    assert hung.status == 1
    assert b"did not send a whole request within 0.5 s" in hung.stderr


def test_a_peer_that_does_not_take_its_answer_is_let_go(tmp_path: Path) -> None:
    async def handle(request: LaunchRequest) -> LaunchAnswer:
        return LaunchAnswer(stdout=bytes(4 << 20))

    async def scenario() -> None:
        async with serving(tmp_path / "s", handle, peer_timeout_s=0.3) as server:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.setblocking(False)
                peer.connect(str(tmp_path / "s"))
                peer.sendall(encode_request(REQUEST))
                async with asyncio.timeout(10):
                    await asyncio.get_running_loop().sock_recv(peer, 1)
                    await server.wait_answered()
            assert server.asking == 0

    asyncio.run(scenario())


def test_a_peer_that_goes_away_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entered = asyncio.Event()
    gone = asyncio.Event()

    async def handle(request: LaunchRequest) -> LaunchAnswer:
        entered.set()
        await gone.wait()
        return LaunchAnswer()

    async def scenario() -> None:
        async with serving(tmp_path / "s", handle) as server:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(tmp_path / "s"))
                peer.sendall(encode_request(REQUEST))
                await entered.wait()
            gone.set()
            await server.wait_answered()

    asyncio.run(scenario())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_closed_server_leaves_its_launchers_without_an_answer(tmp_path: Path) -> None:
    async def scenario() -> bytes:
        entered = asyncio.Event()

        async def handle(request: LaunchRequest) -> LaunchAnswer:
            entered.set()
            return await asyncio.Future()

        async with serving(tmp_path / "s", handle) as server:
            asking = asyncio.create_task(ask(tmp_path / "s", encode_request(REQUEST)))
            await entered.wait()
            server.close()
            server.close()
            return await asking

    assert asyncio.run(scenario()) == b""


def test_another_user_is_refused(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root to become another user")
    path = Path(f"\0dunnage-test-{os.getpid()}")

    async def scenario() -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(1)
        server = ControlServer(listener, echo, LOG)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.setblocking(False)
            os.seteuid(65534)
            try:
                peer.connect(str(path))
            finally:
                os.seteuid(0)
            async with asyncio.timeout(10):
                try:
                    got = await asyncio.get_running_loop().sock_recv(peer, 100)
                except ConnectionResetError:
                    got = b""
        server.close()
        assert got == b""

    asyncio.run(scenario())
