"""Events reach containerd in the order they were published, each at least once, however long containerd is away.

Order holds because one task sends them, one at a time, and tries the same one again until containerd has it, or has
refused it `REFUSALS` times. What waits is bounded: of too many the oldest goes, but never an exit or a delete, without
which a client waits for ever for what has ended. A journal, where there is one, holds each event until containerd has
acknowledged it, so that a process that starts again goes on where the last one stopped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from dunnage import errors
from dunnage.api import events_pb2
from dunnage.api.anys import pack_bare, unpack
from dunnage.api.forward_pb2 import Envelope, ForwardRequest
from dunnage.events.topics import TOPICS, topic_of
from dunnage.ttrpc.client import ReconnectingClient
from dunnage.ttrpc.errors import Code, RpcError

SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"
METHOD: Final = "Forward"
NAMESPACE_KEY: Final = "containerd-namespace-ttrpc"

LIMIT: Final = 10_000  # events that wait for one containerd, but for exits and deletes, which may be more
CALL_TIMEOUT_S: Final = 5.0  # containerd's own shim's
REFUSALS: Final = 5  # how often containerd may refuse an event before it is given up
FIRST_PAUSE_S: Final = 0.010
LAST_PAUSE_S: Final = 1.0


class Journal(Protocol):
    """Where events are written down until containerd has them. Neither may wait."""

    def append(self, record: bytes) -> int:
        """Hold a record; the number by which ``done`` and ``Publisher.recover`` know it."""

    def done(self, entry: int) -> None:
        """The record need not be held any longer."""


class Publisher:
    """The events of one namespace on their way to one containerd (``address``), or, without one, to listeners alone."""

    def __init__(
        self,
        address: str | None,
        namespace: str,
        *,
        journal: Journal | None,
        log: logging.Logger,
        limit: int = LIMIT,
        call_timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        self._namespace = namespace
        self._journal = journal
        self._log = log
        self._limit = limit
        self._call_timeout_s = call_timeout_s
        # one attempt a dial: the pauses between two are those of this module
        self._client = None if address is None else ReconnectingClient(address, dial_timeout_s=0, log=log)
        self._waiting: deque[_Event] = deque()
        self._listeners: list[Callable[[Envelope], None]] = []
        self._sender: asyncio.Task[None] | None = None
        self._away = False
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many events containerd has not acknowledged yet."""
        return len(self._waiting)

    def publish(self, message: Message) -> None:
        """Queue an event, its time being now. Never waits; ``ValueError`` where the message is no event."""
        envelope = Envelope(namespace=self._namespace, topic=topic_of(message), event=pack_bare(message))
        envelope.timestamp.seconds, envelope.timestamp.nanos = divmod(time.time_ns(), 1_000_000_000)
        self._tell_listeners(envelope)
        if self._client is None:
            return
        event = _Event(envelope, self._entry(envelope))
        if self._closed:
            self._log.warning("event %s is published after the end: it waits in the journal, if there is one", event)
            return
        self._waiting.append(event)
        self._drop_beyond_limit()
        self._start()

    def recover(self, records: Sequence[tuple[int, bytes]]) -> None:
        """Queue what a journal still held, oldest first, ahead of everything: to be called before ``publish``."""
        events = []
        for entry, record in records:
            try:
                events.append(_Event(Envelope.FromString(record), entry))
            except DecodeError as error:
                self._log.error("record %d of the journal is no event: %s", entry, error)
                self._done(entry)
        if self._client is None or self._closed:
            return
        self._waiting.extendleft(reversed(events))
        self._drop_beyond_limit()
        self._start()

    def subscribe(self, listener: Callable[[Envelope], None]) -> Callable[[], None]:
        """Call ``listener`` with every event from now on, as it is published; what is returned ends that."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    async def flush(self, timeout_s: float) -> bool:
        """Wait until containerd has every event, ``timeout_s`` at most; whether it has."""
        if self._sender is not None:
            await asyncio.wait((self._sender,), timeout=timeout_s)
        return not self._waiting

    async def close(self) -> None:
        """Send nothing more. What waits stays in the journal."""
        self._closed = True
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait((self._sender,))
        if self._client is not None:
            self._client.close()

    def _tell_listeners(self, envelope: Envelope) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(envelope)
            except Exception:  # noqa: BLE001 - a listener's fault is not the event's
                self._log.exception("listener failed on event %s", envelope.topic)

    def _start(self) -> None:
        if self._waiting and (self._sender is None or self._sender.done()):
            self._sender = asyncio.get_running_loop().create_task(self._send_waiting())

    async def _send_waiting(self) -> None:
        """Send the first of those that wait, again and again, until none does."""
        pause_s = FIRST_PAUSE_S
        while self._waiting:
            event = self._waiting[0]
            error = await self._forward(event)
            if isinstance(error, RpcError) and error.code not in _AWAY:
                event.refusals += 1
                if event.refusals == REFUSALS:
                    self._log.error("event %s is dropped: containerd refuses it: %s", event, error)
                    error = None
            elif error is not None:
                self._note_outage(error)
            if error is None:
                self._settle(event)
                pause_s = FIRST_PAUSE_S
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, LAST_PAUSE_S)

    async def _forward(self, event: _Event) -> RpcError | OSError | None:
        """One attempt: None when containerd has the event."""
        assert self._client is not None  # nothing is queued without an address
        request = ForwardRequest(envelope=event.envelope)
        metadata = ((NAMESPACE_KEY, event.envelope.namespace),)
        try:
            await self._client.call(SERVICE, METHOD, request, Empty, timeout_s=self._call_timeout_s, metadata=metadata)
        except (RpcError, OSError) as error:
            return error
        if self._away:
            self._away = False
            self._log.info("containerd is back: %d events go to it", len(self._waiting))
        return None

    def _note_outage(self, error: RpcError | OSError) -> None:
        """Said once for an outage, not for each attempt."""
        if not self._away:
            self._away = True
            self._log.warning("containerd takes no events: %s; they wait", error)

    def _settle(self, event: _Event) -> None:
        """Nothing more is to be done for an event, which may have been dropped meanwhile."""
        try:
            self._waiting.remove(event)
        except ValueError:
            return  # dropped for being the oldest of too many, and settled then
        self._done(event.entry)

    def _drop_beyond_limit(self) -> None:
        while len(self._waiting) > self._limit:
            event = next((event for event in self._waiting if event.envelope.topic not in _NEVER_DROPPED), None)
            if event is None:
                return
            self._waiting.remove(event)
            self._log.error("event %s is dropped: more than %d wait for containerd", event, self._limit)
            self._done(event.entry)

    def _entry(self, envelope: Envelope) -> int | None:
        if self._journal is None:
            return None
        try:
            return self._journal.append(envelope.SerializeToString())
        except Exception:  # noqa: BLE001 - whatever keeps an event from being written down, it is better sent without
            self._log.exception("event %s is not in the journal", envelope.topic)
            return None

    def _done(self, entry: int | None) -> None:
        if self._journal is None or entry is None:
            return
        try:
            self._journal.done(entry)
        except Exception:  # noqa: BLE001 - the events behind it must go on; the next worker sends this one once more
            self._log.exception("record %d stays in the journal", entry)


class _Event:
    """An event that waits; equal only to itself."""

    __slots__ = ("entry", "envelope", "refusals")

    def __init__(self, envelope: Envelope, entry: int | None) -> None:
        self.envelope = envelope
        self.entry = entry
        self.refusals = 0

    def __str__(self) -> str:
        """The name of the event in the log: its topic, container and exec."""
        try:
            message = unpack(self.envelope.event, TOPICS)
        except errors.InvalidArgument:
            return self.envelope.topic  # of a journal that another version wrote
        ids = [getattr(message, field, "") for field in ("container_id", "exec_id", "id")]
        return " ".join([self.envelope.topic, *dict.fromkeys(filter(None, ids))])


_AWAY = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})
_NEVER_DROPPED = frozenset({TOPICS[events_pb2.TaskExit], TOPICS[events_pb2.TaskDelete]})
