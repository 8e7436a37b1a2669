"""Which fds are waited for, and what is done when one is ready."""

from __future__ import annotations

import select
import time
import traceback
from collections.abc import Callable


class Poll:
    """A mistake in what is done costs one request, and not every container of the node: it is logged."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._poll = select.poll()
        self._ready: dict[int, Callable[[int], object]] = {}

    def watch(self, fd: int, events: int, ready: Callable[[int], object]) -> None:
        self._poll.register(fd, events)
        self._ready[fd] = ready

    def change(self, fd: int, events: int) -> None:
        self._poll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Before ``fd`` is closed; nothing happens if it is not watched."""
        if self._ready.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def is_watched(self, fd: int) -> bool:
        return fd in self._ready

    def wait(self, until: float | None) -> None:
        """Do what is ready, once something is or at the moment ``until`` (of the monotonic clock; None: never)."""
        timeout_ms = None if until is None else max(0, int((until - time.monotonic()) * 1000) + 1)
        for fd, events in self._poll.poll(timeout_ms):
            if fd in self._ready:  # not closed by an earlier one of this round
                self.attempt(self._ready[fd], events)

    def attempt(self, do: Callable[..., object], *arguments: object) -> None:
        try:
            do(*arguments)
        except Exception:  # noqa: BLE001 - see above
            self._log(traceback.format_exc())
