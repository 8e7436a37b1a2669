"""Connections are accepted here, and stored before a worker hears of them: its death never closes one."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from dunnage.keeper.messages import PASSING, RETRY_S, Refused
from dunnage.keeper.poll import Poll
from dunnage.keeper.post import Post
from dunnage.keeper.slots import Slot
from dunnage.keeper.store import Store


@dataclass(frozen=True)
class Listener:
    """``sock`` is a view of the stored fd: let go of with ``detach``, never closed."""

    owner: str
    name: str
    sock: socket.socket


class Accepting:
    def __init__(
        self, poll: Poll, slots: dict[str, Slot], store: Store, post: Post, *, log: Callable[[str], None]
    ) -> None:
        self._poll = poll
        self._slots = slots
        self._store = store
        self._post = post
        self._log = log
        self._listeners: dict[tuple[str, str], Listener] = {}
        self._accepted = 0
        self._resume_at: float | None = None
        self._full = False  # said once: the fd table is full
        store.on_drop = self._on_drop

    def begin(self, owner: str, name: str) -> None:
        if (owner, name) in self._listeners:
            return
        fd = self._store.get(owner, name)
        if fd is None:
            raise Refused(errno.ENOENT, f"{name} is not in the store")
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        self._listeners[owner, name] = Listener(owner, name, sock)
        self._watch(self._listeners[owner, name])

    def end(self, owner: str, name: str) -> None:
        """Nothing happens if nothing is accepted there."""
        listener = self._listeners.pop((owner, name), None)
        if listener is not None:
            self._poll.unwatch(listener.sock.fileno())
            listener.sock.detach()

    def watch_all(self) -> None:
        for listener in self._listeners.values():
            self._watch(listener)

    def next_at(self) -> float | None:
        return self._resume_at

    def on_time(self, now: float) -> None:
        if self._resume_at is not None and self._resume_at <= now:
            self._resume()

    def _on_drop(self, owner: str, name: str) -> None:
        self.end(owner, name)
        if self._resume_at is not None:
            self._resume()  # in the next round: then there is room

    def _resume(self) -> None:
        self._resume_at = None
        self.watch_all()

    def _watch(self, listener: Listener) -> None:
        fd, slot = listener.sock.fileno(), self._slots.get(listener.owner)
        if self._resume_at is not None or (slot is not None and slot.held):
            self._poll.unwatch(fd)
        elif not self._poll.is_watched(fd):
            self._poll.watch(fd, select.POLLIN, lambda events: self._accept(listener, events))

    def _accept(self, listener: Listener, events: int) -> None:
        owner, name = listener.owner, listener.name
        if events & select.POLLHUP:  # somebody has shut it down: it would be ready for ever, and give nothing
            self._log(f"nothing more is accepted on {name}")
            self.end(owner, name)
            return
        try:
            connection, _ = listener.sock.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in PASSING:
                if not self._full:
                    self._log(f"accept on {name}: {error.strerror}; tried again every {RETRY_S} s")
                self._full = True
                self._resume_at = time.monotonic() + RETRY_S
                self.watch_all()
            return  # else it was gone before it was accepted
        self._full = False
        self._accepted += 1
        stored = f"{name}#{self._accepted}"
        self._store.put(owner, stored, connection.detach())
        slot = self._slots.get(owner)
        if slot is not None:
            slot.idle_at = None
            self._post.tell(slot, {"say": "accepted", "listener": name, "name": stored})
