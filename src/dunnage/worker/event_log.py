"""The last events of this worker, for whoever asks at the node's socket: they are numbered, and can be waited for."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import NamedTuple

from dunnage.api.forward_pb2 import Envelope

KEPT = 4096


class NumberedEvent(NamedTuple):
    sequence: int
    envelope: Envelope


class EventLog:
    """Keeps the last ``KEPT`` events. A worker's numbers begin at its start in nanoseconds, so they go on growing."""

    def __init__(self) -> None:
        self._events: deque[NumberedEvent] = deque(maxlen=KEPT)
        self._next = time.time_ns()
        self._changed = asyncio.Event()

    def add(self, envelope: Envelope) -> None:
        self._events.append(NumberedEvent(self._next, envelope))
        self._next += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def after(self, sequence: int, wait_s: float) -> list[NumberedEvent]:
        """The events after ``sequence``; waits for the first one for at most ``wait_s``."""
        found = self._since(sequence)
        if found or wait_s <= 0:
            return found
        try:
            async with asyncio.timeout(wait_s):
                await self._changed.wait()
        except TimeoutError:
            return []
        return self._since(sequence)

    def _since(self, sequence: int) -> list[NumberedEvent]:
        return [event for event in self._events if event.sequence > sequence]
