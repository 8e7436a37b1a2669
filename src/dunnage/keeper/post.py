"""What is told to workers: in order, none of it lost while there is a worker, and nothing waits for a slow one."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any

from dunnage.keeper import messages
from dunnage.keeper.poll import Poll
from dunnage.keeper.slots import Slot
from dunnage.keeper.store import Store

QUEUE = 256  # notices and answers that a worker has not taken; beyond it, its requests and connections wait


class Post:
    """``on_hold`` hears when a worker's queue gets full, and when it is so no longer."""

    def __init__(
        self,
        poll: Poll,
        slots: dict[str, Slot],
        store: Store,
        *,
        on_hold: Callable[[], None],
        log: Callable[[str], None],
    ) -> None:
        self._poll = poll
        self._slots = slots
        self._store = store
        self._on_hold = on_hold
        self._log = log

    def tell(self, slot: Slot, message: dict[str, Any]) -> None:
        """Nothing happens if there is no worker: the next one inherits what it must know."""
        if slot.sock is not None:
            slot.queue.append(message)
            self.flush(slot)

    def tell_death(self) -> None:
        """One notice for any number of deaths (and for a signal that was none): a worker looks at its own pidfds."""
        for slot in self._slots.values():
            if slot.sock is not None and not slot.told_death:
                slot.told_death = True
                self.tell(slot, {"say": "died"})

    def flush(self, slot: Slot) -> None:
        while slot.queue and slot.sock is not None:
            message = slot.queue[0]
            fds = []
            if "say" in message and "name" in message:  # a stored fd: as it is now, and not at all if it is released
                stored = self._store.get(slot.name, message["name"])
                if stored is None:
                    slot.queue.popleft()
                    continue
                fds = [stored]
            try:
                messages.send(slot.sock, message, fds)
            except BlockingIOError:
                break
            except ConnectionError:
                break  # it is dying
            except OSError as error:
                if slot.retry_at is None:
                    self._log(f"worker {slot.name} can not be told {message}: {error}")
                if error.errno in messages.PASSING:
                    slot.retry_at = time.monotonic() + messages.RETRY_S
                    break
            slot.queue.popleft()
            slot.retry_at = None
            if message.get("say") == "died":
                slot.told_death = False
        self._rewatch(slot)

    def forget(self, slot: Slot) -> None:
        """Its worker is gone."""
        slot.queue.clear()
        slot.told_death = False
        slot.retry_at = None
        self._hold(slot, False)

    def next_at(self) -> float | None:
        return min((slot.retry_at for slot in self._slots.values() if slot.retry_at is not None), default=None)

    def on_time(self, now: float) -> None:
        for slot in self._slots.values():
            if slot.retry_at is not None and slot.retry_at <= now:
                self.flush(slot)

    def _rewatch(self, slot: Slot) -> None:
        if slot.sock is None:
            return
        held = len(slot.queue) >= QUEUE
        writes = slot.queue and slot.retry_at is None
        self._poll.change(slot.sock.fileno(), (0 if held else select.POLLIN) | (select.POLLOUT if writes else 0))
        self._hold(slot, held)

    def _hold(self, slot: Slot, held: bool) -> None:
        if held != slot.held:
            slot.held = held
            self._on_hold()
