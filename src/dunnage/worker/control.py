"""The control socket: one launcher's question per connection, one answer, never a word more.

Request: the byte ``1``, a 4-byte little-endian length, and a body of NUL-joined fields: number of arguments, the
arguments, number of environment entries, the entries as ``K=V``, the working directory, and last stdin as it came (it
may hold NULs). Answer: the kind (one byte), the exit status (one byte), two 4-byte little-endian lengths, stdout,
stderr.

A connection that ends without a whole answer means: ask again. So whatever is wrong with the *question* is answered,
and only a worker that goes away leaves a launcher without an answer.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import NamedTuple

from dunnage.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted

VERSION = b"1"
LIMIT_BYTES = 16 * 1024 * 1024
"""Of a request's body; containerd's stdin is limited to 10 MiB upstream, the rest is arguments and environment."""

PEER_TIMEOUT_S = 10.0
"""How long a peer may take to say its question, and to take its answer."""

_ERROR_PREFIX = "io.containerd.dunnage.v2: "
_REQUEST_HEAD = struct.Struct("<cI")
_ANSWER_HEAD = struct.Struct("<cBII")
_PEERCRED = struct.Struct("3i")
_ACCEPTS_PER_WAKE = 64
_ACCEPT_PAUSE_S = 0.1


class Kind(Enum):
    """What an answer is: the answer, or the reason why another must be asked."""

    ANSWER = b"A"
    OTHER_NAMESPACES = b"N"
    UNSPOKEN_VERSION = b"V"


class LaunchRequest(NamedTuple):
    """What containerd ran the launcher with; ``pid`` and ``uid`` are the kernel's word (SO_PEERCRED)."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    stdin: bytes
    pid: int
    uid: int


class LaunchAnswer(NamedTuple):
    """What the launcher is to print, and to exit with."""

    kind: Kind = Kind.ANSWER
    status: int = 0
    stdout: bytes = b""
    stderr: bytes = b""


def refusal(error: BaseException | str, status: int = 1) -> LaunchAnswer:
    """The answer to what cannot be done, in the form of every shim: ``<runtime>: <error>`` on stderr."""
    return LaunchAnswer(Kind.ANSWER, status, b"", os.fsencode(f"{_ERROR_PREFIX}{error}"))


def encode_request(request: LaunchRequest) -> bytes:
    """The whole request with its head; ``pid`` and ``uid`` do not travel."""
    fields = [str(len(request.argv)), *request.argv, str(len(request.env))]
    fields += [f"{name}={value}" for name, value in request.env.items()]
    fields += [request.cwd, ""]
    body = os.fsencode("\0".join(fields)) + request.stdin
    return _REQUEST_HEAD.pack(VERSION, len(body)) + body


def decode_request(body: bytes, *, pid: int, uid: int) -> LaunchRequest:
    """Read a body (without its head); raises InvalidArgument for one that is not whole."""
    argv, at = _read_list(body, 0, "arguments")
    entries, at = _read_list(body, at, "environment entries")
    cwd, at = _read_field(body, at)
    env: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if equals:
            env.setdefault(name, value)  # of two entries of one name getenv(3) finds the first
    return LaunchRequest(tuple(argv), env, cwd, body[at:], pid, uid)


def encode_answer(answer: LaunchAnswer) -> bytes:
    """The whole answer."""
    head = _ANSWER_HEAD.pack(answer.kind.value, answer.status & 0xFF, len(answer.stdout), len(answer.stderr))
    return head + answer.stdout + answer.stderr


def decode_answer(text: bytes) -> LaunchAnswer | None:
    """Read an answer; None while it is not whole, InvalidArgument where it can never be one."""
    if len(text) < _ANSWER_HEAD.size:
        return None
    kind, status, stdout_bytes, stderr_bytes = _ANSWER_HEAD.unpack_from(text)
    if kind not in {known.value for known in Kind}:
        raise InvalidArgument(f"unknown kind of answer {kind!r}")
    middle = _ANSWER_HEAD.size + stdout_bytes
    end = middle + stderr_bytes
    if len(text) < end:
        return None
    return LaunchAnswer(Kind(kind), status, text[_ANSWER_HEAD.size : middle], text[middle:end])


class ControlServer:
    """Serves a listening control socket on the running loop; owns the connections, and the listener until ``close``."""

    def __init__(
        self,
        listener: socket.socket,
        handle: Callable[[LaunchRequest], Awaitable[LaunchAnswer]],
        log: logging.Logger,
        *,
        peer_timeout_s: float = PEER_TIMEOUT_S,
    ) -> None:
        self._listener = listener
        self._handle = handle
        self._log = log
        self._peer_timeout_s = peer_timeout_s
        self._loop = asyncio.get_running_loop()
        self._connections: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept)

    @property
    def asking(self) -> int:
        """How many launchers are connected."""
        return len(self._connections)

    def adopt(self, connection: socket.socket) -> None:
        """Serve a connection that another process accepted; owns it."""
        connection.setblocking(False)
        task = self._loop.create_task(self._serve(connection), name="launcher")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def wait_answered(self) -> None:
        """Wait until every launcher that is connected now has its answer or is gone."""
        if self._connections:
            await asyncio.wait(set(self._connections))

    def close(self) -> None:
        """Stop, idempotently; who still waits sees its connection end, and asks again."""
        if self._closed:
            return
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for task in self._connections:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_WAKE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # out of descriptors or memory: the listener stays readable, so look away for a moment, not to spin
                self._log.error("control socket cannot accept: %s", error)
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(_ACCEPT_PAUSE_S, self._resume)
                return
            self.adopt(connection)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            pid, uid, _ = _PEERCRED.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size),
            )
            if uid != os.geteuid():
                self._log.warning("control socket refuses pid %d of uid %d", pid, uid)
                return
            answer = await self._answer(connection, pid, uid)
            if answer is None:
                return
            try:
                async with asyncio.timeout(self._peer_timeout_s):
                    await self._loop.sock_sendall(connection, encode_answer(answer))
            except TimeoutError:
                self._log.warning("launcher %d did not take its answer within %g s", pid, self._peer_timeout_s)
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                    raise
                self._log.debug("launcher %d went away before its answer", pid)

    async def _answer(self, connection: socket.socket, pid: int, uid: int) -> LaunchAnswer | None:
        try:
            async with asyncio.timeout(self._peer_timeout_s):
                body = await self._read_request(connection)
            if body is None:
                return LaunchAnswer(Kind.UNSPOKEN_VERSION)
            request = decode_request(body, pid=pid, uid=uid)
        except TimeoutError:
            error = DeadlineExceeded(f"launcher {pid} did not send a whole request within {self._peer_timeout_s:g} s")
            self._log.warning("%s", error)
            return refusal(error)
        except (InvalidArgument, ResourceExhausted) as error:
            self._log.warning("launcher %d sent a request that is none: %s", pid, error)
            return refusal(error)
        except OSError as error:
            self._log.debug("launcher %d went away before its request was whole: %s", pid, error)
            return None
        try:
            return await self._handle(request)
        except Exception as error:  # noqa: BLE001 - the launcher must have an answer, and the traceback goes to the log
            self._log.exception("request of launcher %d failed", pid)
            return refusal(error)

    async def _read_request(self, connection: socket.socket) -> bytes | None:
        """The body; None for a version that is not spoken."""
        version = await self._read(connection, 1)
        if version != VERSION:
            return None
        (length,) = struct.unpack("<I", await self._read(connection, 4))
        if length > LIMIT_BYTES:
            raise ResourceExhausted(f"a request of {length} bytes is over the limit of {LIMIT_BYTES}")
        return await self._read(connection, length)

    async def _read(self, connection: socket.socket, size: int) -> bytes:
        got = bytearray()
        while len(got) < size:
            chunk = await self._loop.sock_recv(connection, min(size - len(got), 1 << 18))
            if not chunk:
                raise ConnectionResetError(errno.ECONNRESET, f"{len(got)} of {size} bytes")
            got += chunk
        return bytes(got)


def _read_list(body: bytes, at: int, what: str) -> tuple[list[str], int]:
    word, at = _read_field(body, at)
    if not (word.isascii() and word.isdecimal() and len(word) <= 8):
        raise InvalidArgument(f"number of {what} is {word[:20]!r}")
    fields = []
    for _ in range(int(word)):
        field, at = _read_field(body, at)
        fields.append(field)
    return fields, at


def _read_field(body: bytes, at: int) -> tuple[str, int]:
    end = body.find(b"\0", at)
    if end < 0:
        raise InvalidArgument("request is cut short")
    return os.fsdecode(body[at:end]), end + 1
