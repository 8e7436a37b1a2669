"""Serves requests from accepted sockets, all of them at once, and answers each as it is done.

With ``Notes`` no request is lost when this process dies: a frame is peeked, noted, and only then consumed; it is
reported answered when the kernel has the whole answer. Who starts again hands the notes of a connection to ``attach``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from google.protobuf.message import DecodeError, Message

from dunnage.ttrpc.connection import Metadata, Refused, Requested, ServerConnection
from dunnage.ttrpc.errors import Code, ProtocolError, RpcError
from dunnage.ttrpc.frames import HEADER_BYTES, MAX_DATA_BYTES, Frame, Oversized, encode, first_frame_bytes, split

WINDOW_BYTES: Final = 64 << 10  # what one peek sees; a longer frame is collected in this process
LONGEST_FRAME_BYTES: Final = HEADER_BYTES + MAX_DATA_BYTES


class Notes(Protocol):
    """Where requests are written down so that they outlive this process. None of these may wait."""

    def note(self, connection: str, stream_id: int, frame: bytes) -> None:
        """This request is about to be consumed. It takes the place of what ``partial`` said of the connection."""

    def partial(self, connection: str, data: bytes) -> None:
        """These bytes, which continue an unfinished frame too long for a peek, are about to be consumed."""

    def answered(self, connection: str, stream_id: int) -> None:
        """The kernel has the whole answer."""

    def disconnected(self, connection: str) -> None:
        """Nobody waits for any answer of this connection any more."""


class Call:
    """What a handler may know of its call besides the message."""

    __slots__ = ("_event", "connection", "deadline", "pid", "replayed")

    def __init__(
        self, event: Requested, connection: str, pid: int, deadline: float | None, *, replayed: bool = False
    ) -> None:
        self._event = event
        self.connection = connection
        self.pid = pid
        """Of the peer's process, as it was when it connected."""
        self.deadline = deadline
        """In the time of ``time.monotonic``."""
        self.replayed = replayed
        """A process before this one took the request and died: what it asks for may have been done."""

    @property
    def metadata(self) -> Metadata:
        return self._event.metadata


Handler = Callable[[Any, Call], Awaitable[Message] | Message]


class Method(NamedTuple):
    """An RPC: the class of its request and who answers it.

    A handler that is a plain function is answered without a task of its own: for what never waits.
    """

    request_class: type[Message]
    handler: Handler


class Server:
    """Serves ``services`` (service name to method name to method) on every socket attached to it.

    ``peer`` is the uid and gid a client must have, this process's own where None. ``translate`` makes an ``RpcError``
    of any other exception of a handler; without it, the error is Unknown and logged. ``on_disconnect`` is told the name
    of each connection that has ended, whoever ended it.
    """

    def __init__(
        self,
        services: Mapping[str, Mapping[str, Method]],
        *,
        log: logging.Logger,
        peer: tuple[int, int] | None = None,
        notes: Notes | None = None,
        translate: Callable[[BaseException], RpcError] | None = None,
        on_disconnect: Callable[[str], None] | None = None,
    ) -> None:
        self.services = {
            service: {
                name: (method.request_class, method.handler, inspect.iscoroutinefunction(method.handler))
                for name, method in methods.items()
            }
            for service, methods in services.items()
        }
        self.log = log
        self.notes = notes
        self.translate = translate or self._unknown
        self._peer = (os.geteuid(), os.getegid()) if peer is None else peer
        self._on_disconnect = on_disconnect
        self._connections: dict[str, _Connection] = {}

    def attach(
        self,
        sock: socket.socket,
        name: str,
        *,
        replay: Sequence[bytes] = (),
        last_stream_id: int = 0,
        partial: Sequence[bytes] = (),
    ) -> None:
        """Serve an accepted socket, which is the server's from now on. Another user's is closed at once.

        ``replay`` are noted frames without an answer, ``last_stream_id`` the highest id known to be used, ``partial``
        the noted pieces of an unfinished frame: of the process that served the connection before.
        """
        if name in self._connections:
            raise ValueError(f"connection {name} is attached already")
        sock.setblocking(False)
        pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        connection = _Connection(self, sock, name, pid)
        self._connections[name] = connection
        if (uid, gid) != self._peer:
            self.log.error("connection %s is refused: its peer %d has uid %d and gid %d", name, pid, uid, gid)
            asyncio.get_running_loop().call_soon(connection.close)
            return
        connection.begin(replay, last_stream_id, partial)

    def attached(self, name: str) -> bool:
        return name in self._connections

    @property
    def names(self) -> Sequence[str]:
        """Of the connections that live."""
        return tuple(self._connections)

    async def disconnect(self, name: str, *, drain_s: float = 1.0) -> None:
        """Hand the kernel what has been answered, for ``drain_s`` at most, then cancel handlers and close."""
        connection = self._connections.get(name)
        if connection is None:
            return
        await connection.drain(drain_s)
        await connection.close_and_wait()

    async def close(self, *, drain_s: float = 1.0) -> None:
        """Disconnect all and wait for the ends of their handlers."""
        await asyncio.gather(*(self.disconnect(name, drain_s=drain_s) for name in self.names))

    def forget(self, name: str) -> None:
        """The connection is closed (said by the connection itself)."""
        del self._connections[name]
        if self.notes is not None:
            self.notes.disconnected(name)
        if self._on_disconnect is not None:
            self._on_disconnect(name)

    def _unknown(self, error: BaseException) -> RpcError:
        self.log.error("handler failed", exc_info=error)
        return RpcError(Code.UNKNOWN, str(error) or type(error).__name__)


class _Running:
    """A handler at work: its task, and the timer of its deadline."""

    __slots__ = ("task", "timer")

    def __init__(self, task: asyncio.Task[None], timer: asyncio.TimerHandle | None) -> None:
        self.task = task
        self.timer = timer


class _Connection:
    """One attached socket. It owns the socket, the tasks of the requests, and the answers that wait for the kernel."""

    def __init__(self, server: Server, sock: socket.socket, name: str, pid: int) -> None:
        self._server = server
        self._notes = server.notes
        self._log = server.log
        self._sock = sock
        self._name = name
        self._pid = pid
        self._loop = asyncio.get_running_loop()
        self._protocol = ServerConnection()
        self._running: dict[int, _Running] = {}
        self._output: deque[tuple[memoryview, int | None]] = deque()
        self._drained: asyncio.Future[None] | None = None
        self._replayed: dict[int, Frame] = {}
        self._stalls = 0
        self._stalled_bytes = 0
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False

    def begin(self, replay: Sequence[bytes], last_stream_id: int, partial: Sequence[bytes]) -> None:
        """Serve: first what was noted, then what comes."""
        noted = sorted(frame for raw in replay for frame in split(raw)[0])
        self._replayed = {frame.stream_id: frame for frame in noted}
        events = [self._protocol.judge(frame) for frame in noted]
        self._protocol.streams.skip_to(last_stream_id)
        self._loop.add_reader(self._sock, self._read if self._notes is None else self._read_noted)
        for event in events:
            if event is not None:
                self._act(event, replayed=True)
        if partial and not self._closed:
            self._go_on_from(partial)

    # Reading

    def _read(self) -> None:
        try:
            data = self._sock.recv(WINDOW_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lost(error)
            return
        if not data:
            self._ended()
            return
        for frame in self._protocol.decoder.receive(data):
            event = None if self._is_replayed(frame) else self._protocol.judge(frame)
            if event is not None:
                self._act(event)

    def _read_noted(self) -> None:
        decoder = self._protocol.decoder
        try:
            # never past the end of a frame that is collected here: what follows it must be noted before it is consumed
            data = self._sock.recv(min(decoder.missing_bytes or WINDOW_BYTES, WINDOW_BYTES), socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lost(error)
            return
        if not data:
            self._ended()
        elif decoder.missing_bytes:
            self._collect(data)
        else:
            self._take_whole_frames(data)

    def _take_whole_frames(self, data: bytes) -> None:
        frames, used = split(data)
        if not frames:
            self._wait_for_whole_frame(data)
            return
        self._stalls = 0
        events = []
        for frame in frames:
            event = None if self._is_replayed(frame) else self._protocol.judge(frame)
            if event is None:
                continue
            events.append(event)
            if isinstance(event, Requested):
                self._note(frame)
        if self._consume(used):
            for event in events:
                self._act(event)

    def _wait_for_whole_frame(self, data: bytes) -> None:
        """The front frame is not whole: let it grow in the socket, or collect it where a peek can't see it all."""
        frame_bytes = first_frame_bytes(data)
        if frame_bytes is not None and frame_bytes > WINDOW_BYTES:
            self._collect(data)
            return
        if len(data) == self._stalled_bytes and self._stalls and _hung_up(self._sock):
            self._ended()
            return
        self._stalls = 1 if len(data) != self._stalled_bytes else self._stalls + 1
        self._stalled_bytes = len(data)
        if self._stalls > 1:  # the rest usually comes within the next turn of the loop; a timer only where it has not
            self._loop.remove_reader(self._sock)
            delay_s = min(_RETRY_FIRST_S * 2 ** (self._stalls - 2), _RETRY_LAST_S)
            self._retry = self._loop.call_later(delay_s, self._read_again)

    def _read_again(self) -> None:
        self._retry = None
        self._loop.add_reader(self._sock, self._read_noted)
        self._read_noted()

    def _collect(self, data: bytes) -> None:
        """Consume a piece of a frame too long for a peek, which is noted as a piece, and when it is whole as that."""
        decoder = self._protocol.decoder
        if not decoder.discarding and (first_frame_bytes(decoder.unfinished or data) or 0) <= LONGEST_FRAME_BYTES:
            self._note_partial(data)
        if self._consume(len(data)):
            self._take_collected(data)

    def _take_collected(self, data: bytes) -> None:
        for frame in self._protocol.decoder.receive(data):
            event = self._protocol.judge(frame)
            if isinstance(event, Requested) and isinstance(frame, Frame):
                self._note(frame)
            if event is not None:
                self._act(event)

    def _go_on_from(self, partial: Sequence[bytes]) -> None:
        """Collect on where the process before us stopped; the last piece it noted may still be in the socket."""
        last = partial[-1]
        try:
            if self._sock.recv(len(last), socket.MSG_PEEK) == last:
                self._consume(len(last))
        except (BlockingIOError, InterruptedError):
            pass  # nothing is in the socket: it was consumed
        except OSError as error:
            self._lost(error)
        if not self._closed:
            self._take_collected(b"".join(partial))

    def _consume(self, size: int) -> bool:
        """Take what was peeked out of the socket; False where the connection broke just now."""
        try:
            taken = self._sock.recv(size)
        except OSError as error:
            self._lost(error)
            return False
        if len(taken) != size:
            self._lost(ProtocolError(f"{size} bytes were peeked and {len(taken)} are left"))
            return False
        return True

    def _is_replayed(self, frame: Frame | Oversized) -> bool:
        """Whether this is a request that was noted, but not yet consumed, when the process before us died."""
        if not self._replayed:
            return False
        if frame.stream_id > self._protocol.streams.last_id:
            self._replayed.clear()  # ids rise: what was noted is behind us
            return False
        if self._replayed.get(frame.stream_id) != frame:
            return False
        del self._replayed[frame.stream_id]
        return True

    def _note(self, frame: Frame) -> None:
        if self._notes is None:
            return
        try:
            self._notes.note(self._name, frame.stream_id, encode(*frame))
        except Exception:  # noqa: BLE001 - whatever keeps a request from being noted, it is better served without
            self._log.exception("request %d of connection %s is not noted", frame.stream_id, self._name)

    def _note_partial(self, data: bytes) -> None:
        if self._notes is None:
            return
        try:
            self._notes.partial(self._name, data)
        except Exception:  # noqa: BLE001 - as for a whole request
            self._log.exception("bytes of connection %s are not noted", self._name)

    # Serving

    def _act(self, event: Requested | Refused, *, replayed: bool = False) -> None:
        if self._closed:
            return
        if isinstance(event, Refused):
            self._log.debug("connection %s, stream %d: %s", self._name, event.stream_id, event.error)
            self._send(event.frame, None)
            return
        stream_id, request, streaming = event
        methods = self._server.services.get(request.service)
        if methods is None:
            self._fail(stream_id, RpcError(Code.UNIMPLEMENTED, f"service {request.service}"))
            return
        method = methods.get(request.method)
        if method is None or streaming:  # there is no streaming method of any name
            self._fail(stream_id, RpcError(Code.UNIMPLEMENTED, f"method {request.method}"))
            return
        request_class, handler, is_coroutine_function = method
        try:
            message = request_class.FromString(request.payload)
        except DecodeError as error:
            self._fail(stream_id, RpcError(Code.INTERNAL, f"ttrpc: error unmarshalling payload: {error}"))
            return
        timeout_ns = request.timeout_nano
        if timeout_ns < 0:
            self._expire(stream_id)
            return
        deadline = self._loop.time() + timeout_ns / 1e9 if timeout_ns else None
        call = Call(event, self._name, self._pid, deadline, replayed=replayed)
        if is_coroutine_function:
            self._start(stream_id, self._serve(stream_id, handler, message, call), deadline)
            return
        try:
            answer = handler(message, call)
            payload = answer.SerializeToString() if isinstance(answer, Message) else None
        except Exception as error:  # noqa: BLE001 - a handler's any error is an answer
            self._fail(stream_id, self._error(error))
            return
        if payload is not None:
            self._answer(stream_id, payload)
        else:
            self._start(stream_id, self._wait(stream_id, answer), deadline)

    def _start(self, stream_id: int, work: Any, deadline: float | None) -> None:
        timer = None if deadline is None else self._loop.call_at(deadline, self._expire, stream_id)
        self._running[stream_id] = _Running(self._loop.create_task(work), timer)

    async def _serve(self, stream_id: int, handler: Handler, message: Message, call: Call) -> None:
        # called in here, not before: a task that is cancelled before its first step leaves no coroutine unawaited
        await self._wait(stream_id, handler(message, call))

    async def _wait(self, stream_id: int, answer: Any) -> None:
        try:
            payload = (await answer).SerializeToString()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # by us, after its answer; or by the end of the loop: then whoever has the notes answers
            self._fail(stream_id, RpcError(Code.CANCELED, "context canceled"))
        except Exception as error:  # noqa: BLE001 - a handler's any error is an answer
            self._fail(stream_id, self._error(error))
        else:
            self._answer(stream_id, payload)
        finally:
            running = self._running.pop(stream_id, None)
            if running is not None and running.timer is not None:
                running.timer.cancel()

    def _expire(self, stream_id: int) -> None:
        """The deadline is over: say so now, whatever the handler does with its cancellation."""
        self._fail(stream_id, RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded"))
        running = self._running.get(stream_id)
        if running is not None:
            running.task.add_done_callback(lambda _: self._running.pop(stream_id, None))
            running.task.cancel()

    def _error(self, error: Exception) -> RpcError:
        if isinstance(error, RpcError):
            return error
        try:
            return self._server.translate(error)
        except Exception:  # noqa: BLE001 - a caller must have an answer, even where the translation fails
            self._log.exception("error %r has no translation", error)
            return RpcError(Code.UNKNOWN, str(error))

    def _answer(self, stream_id: int, payload: bytes) -> None:
        frame = self._protocol.answer(stream_id, payload)
        if frame is not None:
            self._send(frame, stream_id)

    def _fail(self, stream_id: int, error: RpcError) -> None:
        frame = self._protocol.refuse(stream_id, error)
        if frame is not None:
            self._send(frame, stream_id)

    # Writing

    def _send(self, frame: bytes, stream_id: int | None) -> None:
        """Hand a frame to the kernel, or what it does not take to the queue; ``stream_id`` of a noted request.

        Up to 32 KiB (one buffer of unix_stream_sendmsg) the kernel takes a frame whole or not at all. Only a longer one
        (the pids of thousands of processes, a runtime's very long error) can be torn by the death of this process.
        """
        if self._closed:
            return
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
                self._sent(stream_id)
                return
            self._loop.add_writer(self._sock, self._write)
        self._output.append((memoryview(frame)[sent:], stream_id))

    def _write(self) -> None:
        while self._output:
            data, stream_id = self._output[0]
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._lost(error)
                return
            if sent < len(data):
                self._output[0] = (data[sent:], stream_id)
                return
            self._output.popleft()
            self._sent(stream_id)
        self._loop.remove_writer(self._sock)
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _sent(self, stream_id: int | None) -> None:
        if stream_id is not None and self._notes is not None:
            self._notes.answered(self._name, stream_id)

    # Ending

    async def drain(self, limit_s: float) -> None:
        if self._output and not self._closed:
            self._drained = self._loop.create_future()
            await asyncio.wait((self._drained,), timeout=limit_s)

    async def close_and_wait(self) -> None:
        current = asyncio.current_task()
        tasks = [running.task for running in self._running.values() if running.task is not current]
        self.close()
        if tasks:
            await asyncio.wait(tasks)

    def _ended(self) -> None:
        try:
            self._protocol.decoder.end()
        except ProtocolError as error:
            self._log.warning("connection %s: %s", self._name, error)
        self.close()

    def _lost(self, error: Exception) -> None:
        if not isinstance(error, ConnectionError):
            self._log.error("connection %s is closed: %s", self._name, error)
        self.close()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        if self._retry is not None:
            self._retry.cancel()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._output.clear()
        current = asyncio.current_task()
        for running in self._running.values():
            if running.timer is not None:
                running.timer.cancel()
            if running.task is not current:  # a handler may close its own connection, and goes on
                running.task.cancel()
        try:
            self._sock.shutdown(socket.SHUT_RDWR)  # others may hold copies of the socket: it has to end all the same
        except OSError:
            pass  # the other side was first
        self._sock.close()
        self._server.forget(self._name)


def _hung_up(sock: socket.socket) -> bool:
    """Whether nothing will follow the bytes in the socket: a peek shows an end only when it is at the front."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_RETRY_FIRST_S = 0.001
_RETRY_LAST_S = 0.010
