"""A worker's place: what outlives its deaths, and what it has not been told yet."""

from __future__ import annotations

import socket
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Slot:
    """``sock`` is None and ``pid`` is 0 while there is no worker; all moments are of the monotonic clock."""

    name: str
    entry: str
    argument: Any
    sock: socket.socket | None = None
    pid: int = 0
    pidfd: int = -1
    born: float = 0.0
    deaths: int = 0
    fork_at: float | None = None
    idle_at: float | None = None  # when it may be ended
    idle_after_s: float = 0.0
    ends: bool = False  # no further worker is forked for it
    queue: deque[dict[str, Any]] = field(default_factory=deque)
    told_death: bool = False  # a "died" waits in the queue
    held: bool = False  # its queue is full: it is not read from, and nothing is accepted for it
    retry_at: float | None = None  # the system had no room for the first of its queue

    def stir(self) -> None:
        """The worker had something done: if it is idle, its time begins anew."""
        if self.idle_at is not None:
            self.idle_at = time.monotonic() + self.idle_after_s
