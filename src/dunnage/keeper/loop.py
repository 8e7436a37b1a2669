"""The keeper: one thread and one poll, in which nothing waits for anybody. Each file beside this one is a part of it.

It owns every child (nobody else may wait for them, and it reaps one only when a worker asks: `ledger`), every fd in the
`store`, the listeners it is `accepting` on, and one of the `slots` per `workers` process, which it forks again when it
dies. What a worker asks is in `requests`, what it is told in `post`.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from dunnage.keeper.accepting import Accepting
from dunnage.keeper.ledger import Ledger
from dunnage.keeper.poll import Poll
from dunnage.keeper.post import Post
from dunnage.keeper.requests import Requests
from dunnage.keeper.slots import Slot
from dunnage.keeper.store import Store
from dunnage.keeper.workers import NODE, Workers
from dunnage.linux.attributes import Attributes

LOOK_AGAIN_S = 1.0  # for the children of an idle keeper


class Keeper:
    """Serve until nothing is left; ``first`` is the entry of the first worker, called "node"."""

    def __init__(self, *, first: str, argument: Any, inherited: Attributes, log: Callable[[str], None]) -> None:
        self.store = Store()
        self._slots: dict[str, Slot] = {NODE: Slot(NODE, first, argument, fork_at=time.monotonic())}
        self._poll = Poll(log)
        self._ledger = Ledger()
        self._post = Post(self._poll, self._slots, self.store, on_hold=lambda: self._accepting.watch_all(), log=log)
        self._accepting = Accepting(self._poll, self._slots, self.store, self._post, log=log)
        self._workers = Workers(
            self._poll, self._slots, self.store, self._ledger, self._post,
            take=lambda slot: self._requests.take(slot), inherited=inherited, log=log,
        )  # fmt: skip
        self._requests = Requests(
            self._poll, self._slots, self.store, self._ledger, self._post, self._accepting, self._workers,
            first=first, inherited=inherited, log=log,
        )  # fmt: skip
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._is_over = False
        self.terminate = False  # set by SIGTERM's handler

    def serve(self, *, may_end: Callable[[], bool]) -> None:
        """Until every worker has been idle for long enough, or a SIGTERM comes without children or if ``may_end()``."""
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        self._poll.watch(self._wake, select.POLLIN, self._on_signal)
        while True:
            self._poll.attempt(self._on_terminate, may_end)
            self._poll.attempt(self._on_time)
            if self._is_over:
                break
            self._poll.wait(self._next_at())
        self._workers.end_all()

    def _on_terminate(self, may_end: Callable[[], bool]) -> None:
        if self.terminate:
            self.terminate = False
            self._is_over = may_end() or not self._has_children()

    def _on_signal(self, _events: int) -> None:
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            return
        self._ledger.reap_unwanted()
        self._post.tell_death()

    def _on_time(self) -> None:
        now = time.monotonic()
        for part in (self._workers, self._post, self._accepting):
            part.on_time(now)
        if (end := self._idle_end()) is not None and end <= now:
            if self._has_children():
                for slot in self._slots.values():  # nothing else has happened: once they are gone, it may end
                    slot.idle_at = now + max(slot.idle_after_s, LOOK_AGAIN_S)
            else:
                self._is_over = True

    def _next_at(self) -> float | None:
        moments = [self._workers.next_at(), self._post.next_at(), self._accepting.next_at(), self._idle_end()]
        return min((moment for moment in moments if moment is not None), default=None)

    def _idle_end(self) -> float | None:
        ends = [slot.idle_at for slot in self._slots.values()]
        return None if None in ends or not ends else max(end for end in ends if end is not None)

    def _has_children(self) -> bool:
        """Whether anything but workers is the keeper's child, dead or alive, asked for or adopted."""
        return bool(self._ledger.all_pids() - self._workers.pids())
