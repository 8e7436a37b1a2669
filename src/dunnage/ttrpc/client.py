"""Calls a ttrpc server: many calls at once on one connection, each with its deadline; a closed one fails them all."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Self, TypeVar

from google.protobuf.message import DecodeError, Message

from dunnage.ttrpc.connection import Answered, ClientConnection, Dropped
from dunnage.ttrpc.errors import Code, ConnectionClosed, RpcError

Response = TypeVar("Response", bound=Message)

DIAL_RETRY_S: Final = 0.010  # containerd's own pause while the socket does not exist
RECEIVE_BYTES: Final = 64 << 10


class Client:
    """One connection. ``on_close`` is called once, when it has ended, whoever ended it."""

    def __init__(
        self, sock: socket.socket, *, log: logging.Logger | None = None, on_close: Callable[[], None] | None = None
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._log = log or logging.getLogger(__name__)
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._protocol = ClientConnection()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._output: deque[memoryview] = deque()
        self._closed = False
        self._loop.add_reader(sock, self._read)

    @classmethod
    async def connect(
        cls,
        address: str,
        *,
        timeout_s: float,
        log: logging.Logger | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> Self:
        """Dial a path, ``unix://`` path or abstract name (``@`` or NUL first), over and over for ``timeout_s``.

        ``OSError`` of the last attempt when nobody listens; 0 is one attempt.
        """
        return cls(await dial(address, timeout_s=timeout_s), log=log, on_close=on_close)

    @property
    def closed(self) -> bool:
        return self._closed

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_class: type[Response],
        *,
        timeout_s: float | None = None,
        metadata: Iterable[tuple[str, str]] = (),
    ) -> Response:
        """The answer. ``RpcError`` for a status (DEADLINE_EXCEEDED from this side too), ``ConnectionClosed``."""
        if self._closed:
            raise ConnectionClosed
        if timeout_s is not None and timeout_s <= 0:
            raise _deadline_exceeded()
        timeout_ns = 0 if timeout_s is None else min(math.ceil(timeout_s * 1e9), _MAX_TIMEOUT_NS)
        stream_id, frame = self._protocol.call(
            service, method, request.SerializeToString(), timeout_ns=timeout_ns, metadata=metadata
        )
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting[stream_id] = answer
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, _expire, answer)
        try:
            self._send(frame)
            payload = await answer
        finally:
            self._protocol.forget(stream_id)
            self._waiting.pop(stream_id, None)
            if timer is not None:
                timer.cancel()
        try:
            return response_class.FromString(payload)
        except DecodeError as error:
            raise RpcError(Code.INTERNAL, f"ttrpc: error unmarshalling payload: {error}") from error

    def close(self) -> None:
        """End the connection; every call that waits fails with ``ConnectionClosed``."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._output.clear()
        self._sock.close()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionClosed())
        self._waiting.clear()
        if self._on_close is not None:
            self._on_close()

    def _read(self) -> None:
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lost(error)
            return
        if not data:
            self.close()
            return
        for event in self._protocol.receive(data):
            if isinstance(event, Dropped):
                self._log.debug("ttrpc: received message on inactive stream %d", event.stream_id)
                continue
            answer = self._waiting.get(event.stream_id)
            if answer is None or answer.done():
                continue
            if isinstance(event, Answered):
                answer.set_result(event.payload)
            else:
                answer.set_exception(event.error)

    def _send(self, frame: bytes) -> None:
        sent = 0
        if not self._output:
            try:
                sent = self._sock.send(frame)
            except (BlockingIOError, InterruptedError):
                pass  # the kernel's buffer is full: the queue is for that
            except OSError as error:
                self._lost(error)
                return
            if sent == len(frame):
                return
            self._loop.add_writer(self._sock, self._write)
        self._output.append(memoryview(frame)[sent:])

    def _write(self) -> None:
        while self._output:
            data = self._output[0]
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._lost(error)
                return
            if sent < len(data):
                self._output[0] = data[sent:]
                return
            self._output.popleft()
        self._loop.remove_writer(self._sock)

    def _lost(self, error: OSError) -> None:
        if not isinstance(error, ConnectionError):
            self._log.error("connection is closed: %s", error)
        self.close()


class ReconnectingClient:
    """A client that dials when a call needs it: the first one, and the one after a connection has ended.

    A call under way when its connection ends fails with ``ConnectionClosed``: whether it was carried out is not known,
    so to call again is the caller's choice.
    """

    def __init__(self, address: str, *, dial_timeout_s: float, log: logging.Logger | None = None) -> None:
        self._address = address
        self._dial_timeout_s = dial_timeout_s
        self._log = log
        self._client: Client | None = None
        self._dialling = asyncio.Lock()
        self._closed = False

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_class: type[Response],
        *,
        timeout_s: float | None = None,
        metadata: Iterable[tuple[str, str]] = (),
    ) -> Response:
        """As ``Client.call``, and ``OSError`` when nobody listens; the time to dial is not part of ``timeout_s``."""
        client = await self._connected()
        return await client.call(service, method, request, response_class, timeout_s=timeout_s, metadata=metadata)

    def close(self) -> None:
        """End the connection for good."""
        self._closed = True
        if self._client is not None:
            self._client.close()

    async def _connected(self) -> Client:
        async with self._dialling:
            if self._closed:
                raise ConnectionClosed
            if self._client is None or self._client.closed:
                client = await Client.connect(self._address, timeout_s=self._dial_timeout_s, log=self._log)
                if self._closed:
                    client.close()
                self._client = client
            return self._client


async def dial(address: str, *, timeout_s: float) -> socket.socket:
    """A connected socket; tried again while nobody listens or the backlog is full, until ``timeout_s`` is over."""
    target = socket_address(address)
    give_up = time.monotonic() + timeout_s
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(target)  # at once for unix sockets: EAGAIN is a full backlog, not a connection under way
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            sock.close()
            if time.monotonic() + DIAL_RETRY_S > give_up:
                raise
        except BaseException:
            sock.close()
            raise
        else:
            return sock
        await asyncio.sleep(DIAL_RETRY_S)


def socket_address(address: str) -> str:
    """What connect(2) takes for an address as containerd writes them."""
    path = address.removeprefix("unix://")
    return "\0" + path[1:] if path[:1] == "@" else path


def _expire(answer: asyncio.Future[bytes]) -> None:
    if not answer.done():
        answer.set_exception(_deadline_exceeded())


def _deadline_exceeded() -> RpcError:
    return RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded")


_MAX_TIMEOUT_NS = (1 << 63) - 1  # int64 on the wire
