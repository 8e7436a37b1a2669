"""The worker's side of the keeper: asks, and hears what happens. Nothing here blocks, and nothing waits in a thread."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dunnage import errors
from dunnage.keeper import messages
from dunnage.keeper.messages import Inherited
from dunnage.linux.attributes import Attributes

__all__ = ["Attributes", "Child", "Exit", "Inherited", "Keeper"]


class Exit(NamedTuple):
    """How a process ended: exactly one of both is set."""

    code: int | None
    signal: int | None

    @property
    def status(self) -> int:
        """The exit status as containerd has it: the code, or 128 + signal."""
        return self.code if self.code is not None else 128 + (self.signal or 0)


class Child(NamedTuple):
    """``pidfd`` belongs to the caller."""

    pid: int
    pidfd: int


class Unclaimed(NamedTuple):
    """Dead orphans; how many children were ever made for workers; and the number of the oldest of those that is not
    reaped yet, or of the next one to be made: what a runtime leaves behind is unclaimed until its caller has read the
    pid."""

    pids: frozenset[int]
    made: int
    oldest: int


class Keeper:
    """Made inside the running loop; notices come no sooner than the caller's next await, so set the callbacks first.

    Requests go out in the order of the calls, also those that await no answer. After ``on_closed`` those that await one
    raise `errors.Unavailable`, and the others do nothing.
    """

    def __init__(self, inherited: Inherited) -> None:
        self.fds: Mapping[str, int] = inherited.fds
        self.stored = set(inherited.fds)
        """The names that the store holds for this worker, as far as it knows."""
        self.children: Mapping[int, str] = inherited.children
        self.keeper_pid = inherited.keeper_pid
        self.name = inherited.name
        self.on_accept: Callable[[str, str, int], None] = lambda _listener, _name, fd: os.close(fd)
        self.on_given: Callable[[str, int], None] = lambda _name, fd: os.close(fd)
        self.on_child: Callable[[], None] = lambda: None
        self.on_closed: Callable[[], None] = lambda: None
        self._sock = inherited.sock
        self._sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._sock, self._on_readable)
        self._outgoing: deque[tuple[dict[str, Any], list[int]]] = deque()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._senders: list[asyncio.Future[None]] = []  # waiting for an empty queue
        self._retry: asyncio.TimerHandle | None = None  # the system had no room for a message
        self._calls = 0
        self._closed = False

    @property
    def unanswered(self) -> int:
        """How many requests wait for their answer."""
        return len(self._answers)

    @property
    def unsent(self) -> int:
        """How many requests wait for room in the socket."""
        return len(self._outgoing)

    # --- the verbs

    async def spawn(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | int,
        fds: Mapping[int, int],
        attributes: Attributes | None = None,
    ) -> Child:
        """Run a program as the keeper's child; ``fds`` maps its fds to ours, 0, 1 and 2 default to /dev/null.

        The command is looked up in the PATH of ``env``. Raises OSError of the exec's errno, whose ``strerror`` is what
        Go says in that case: ``exec: "no-runc": executable file not found in $PATH``.
        """
        targets, sources = list(fds.keys()), list(fds.values())
        message = {
            "verb": "spawn",
            "name": name,
            "argv": list(argv),
            "env": dict(env),
            "cwd": cwd if isinstance(cwd, str) else None,
            "targets": targets,
            "attributes": attributes.to_json() if attributes else None,
        }
        return await self._ask_child(message, sources if isinstance(cwd, str) else [*sources, cwd])

    async def fork(self, name: str, entry: str, argument: object, *, fds: Mapping[str, int] | None = None) -> Child:
        """Run ``entry(argument, fds)`` of the warm image in a child, whose exit status is its result."""
        named = fds or {}
        message = {"verb": "fork", "name": name, "entry": entry, "argument": argument, "fds": list(named.keys())}
        return await self._ask_child(message, list(named.values()))

    async def fork_worker(self, name: str, argument: object, *, entry: str | None = None) -> Child:
        """Make a further worker, which is forked again whenever it ends otherwise than with status 0.

        It inherits what has been stored with its name as the owner. ``entry`` defaults to the first worker's.
        """
        return await self._ask_child({"verb": "worker", "name": name, "entry": entry, "argument": argument}, [])

    def claim(self, name: str, pid: int) -> None:
        """An adopted orphan is this worker's: it is among the ``children`` until it is reaped."""
        self._say({"verb": "claim", "name": name, "pid": pid})

    async def unclaimed(self, *, in_flight_s: float) -> Unclaimed:
        """The dead children that no worker made or claimed; one made longer ago than ``in_flight_s`` is stuck."""
        answer = await self._ask({"verb": "unclaimed", "in_flight_s": in_flight_s}, [])
        return Unclaimed(frozenset(answer["pids"]), answer["made"], answer["oldest"])

    async def peek(self, pid: int) -> Exit | None:
        """How a child ended, as often as one asks; None while it runs.

        Raises ChildProcessError when the keeper has no such child.
        """
        answer = await self._ask({"verb": "peek", "pid": pid}, [])
        return Exit(*answer["exit"]) if "exit" in answer else None

    def reap(self, pid: int) -> None:
        """Let a dead child's pid go; nothing happens if that was done before, or if it still runs."""
        self._say({"verb": "reap", "pid": pid})

    def store(self, name: str, fd: int, *, owner: str | None = None) -> None:
        """Have a copy of ``fd`` kept for the next worker of our name, or given to another worker."""
        self._say({"verb": "store", "name": name, "owner": owner}, [fd])
        if owner is None:
            self.stored.add(name)

    def release(self, name: str, *, owner: str | None = None) -> None:
        """Have a stored fd closed; nothing happens if there is none."""
        self._say({"verb": "release", "name": name, "owner": owner})
        if owner is None:
            self.stored.discard(name)

    def accept_on(self, name: str) -> None:
        """Have connections accepted on a stored listener; each is stored as ``<name>#<n>``, and ``on_accept`` hears."""
        self._say({"verb": "accept_on", "name": name})

    def stop_accepting(self, name: str) -> None:
        self._say({"verb": "stop_accepting", "name": name})

    def idle(self, after_s: float | None) -> None:
        """Nothing is left here: the keeper may end in ``after_s`` seconds if nothing happens. None takes that back.

        So does any connection accepted meanwhile. A child made, an fd stored, and children that are still there put it
        off.
        """
        self._say({"verb": "idle", "after_s": after_s})

    async def wait_sent(self) -> None:
        """Until all that was asked for is in the socket: from then on it is done even if we die at once."""
        if self._outgoing:
            sent = self._loop.create_future()
            self._senders.append(sent)
            await sent

    # --- the socket

    async def _ask_child(self, message: dict[str, Any], fds: Sequence[int]) -> Child:
        room = os.dup(self._sock.fileno()) if not self._closed else -1  # for the pidfd: no child without one
        try:
            answer = await self._ask(message, fds)
        finally:
            if room >= 0:
                os.close(room)
        pid = answer["pid"]
        try:
            return Child(pid, os.pidfd_open(pid))
        except OSError as error:
            self._say({"verb": "kill", "pid": pid, "worker": message["name"] if message["verb"] == "worker" else None})
            reason = f"{message['name']}: process {pid} is killed, since it cannot be watched: {error.strerror}"
            raise OSError(error.errno, reason) from error

    async def _ask(self, message: dict[str, Any], fds: Sequence[int]) -> dict[str, Any]:
        if len(fds) > messages.MAX_FDS:
            raise errors.ResourceExhausted(f"{len(fds)} fds in one request, at most {messages.MAX_FDS} are possible")
        if self._closed:
            raise errors.Unavailable("the keeper is gone")
        self._calls += 1
        call = self._calls
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._answers[call] = answer
        try:
            self._say({**message, "call": call}, fds)
            return await answer
        finally:
            self._answers.pop(call, None)

    def _say(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send it now, or later in its turn. Raises OSError when it is not sent and ``fds`` can not be kept either."""
        if self._closed:
            return  # what it kept went with it
        if not self._outgoing and self._try_to_send(message, fds):
            return
        kept: list[int] = []
        try:
            for fd in fds:
                kept.append(os.dup(fd))
        except OSError:
            messages.close_all(kept)
            raise
        self._outgoing.append((message, kept))
        self._watch_writable()

    def _on_writable(self) -> None:
        while self._outgoing:
            message, fds = self._outgoing[0]
            failure: OSError | None = None
            try:
                if not self._try_to_send(message, fds):
                    return
            except OSError as error:  # the others are sent all the same
                failure = error
            messages.close_all(fds)
            self._outgoing.popleft()
            if failure is not None:
                answer = self._answers.pop(message.get("call", 0), None)
                if answer is None:
                    raise failure
                if not answer.done():
                    answer.set_exception(failure)
        self._loop.remove_writer(self._sock)
        self._wake_senders()

    def _try_to_send(self, message: dict[str, Any], fds: Sequence[int]) -> bool:
        """False when there is no room for it now, be it in the socket or in the system."""
        try:
            messages.send(self._sock, message, fds)
        except BlockingIOError:
            return False
        except ConnectionError:
            pass  # a broken connection is read as its end
        except OSError as error:
            if error.errno not in messages.PASSING:
                raise
            self._loop.remove_writer(self._sock)
            if self._retry is None:
                self._retry = self._loop.call_later(messages.RETRY_S, self._send_again)
            return False
        return True

    def _send_again(self) -> None:
        self._retry = None
        if self._outgoing:
            self._watch_writable()

    def _watch_writable(self) -> None:
        if self._retry is None:
            self._loop.add_writer(self._sock, self._on_writable)

    def _wake_senders(self) -> None:
        for sent in self._senders:
            if not sent.done():
                sent.set_result(None)
        self._senders.clear()

    def _on_readable(self) -> None:
        while not self._closed:
            try:
                packet = messages.receive(self._sock)
            except BlockingIOError:
                return
            except ConnectionError:
                packet = None
            if packet is None:
                self._close()
                return
            self._take(packet)

    def _take(self, packet: messages.Packet) -> None:
        message, fds = packet.message, packet.fds
        if "answer" in message:
            answer = self._answers.pop(message["answer"], None)
            if answer is None or answer.done():
                pass  # whoever asked has been cancelled
            elif "error" in message:
                answer.set_exception(OSError(message["error"]["errno"], message["error"]["text"]))
            elif packet.truncated:
                answer.set_exception(OSError(errno.EMFILE, "no room for a large answer"))
            else:
                answer.set_result(message)
        elif message["say"] == "died":
            self.on_child()
        elif packet.truncated:  # our table of open files is full; the keeper still has it
            self._loop.call_later(messages.RETRY_S, self._say, {"verb": "again", "notice": message})
        elif message["say"] == "accepted":
            self.stored.add(message["name"])
            self.on_accept(message["listener"], message["name"], fds[0])
        else:
            self.stored.add(message["name"])
            self.on_given(message["name"], fds[0])

    def _close(self) -> None:
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for _, fds in self._outgoing:
            messages.close_all(fds)
        self._outgoing.clear()
        self._wake_senders()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(errors.Unavailable("the keeper is gone"))
        self.on_closed()
