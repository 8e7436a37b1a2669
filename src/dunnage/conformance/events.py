"""containerd's side of the events: a ttrpc socket that takes what shims forward and keeps it by namespace, in order."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.empty_pb2 import Empty

from dunnage.api import events_pb2
from dunnage.api.forward_pb2 import Envelope, ForwardRequest
from dunnage.conformance.check import Failed, limit
from dunnage.ttrpc.server import Call, Method, Server

SERVICE = "containerd.services.events.ttrpc.v1.Events"


class Told(NamedTuple):
    topic: str
    message: Any
    envelope: Envelope

    @property
    def subject(self) -> str:
        """What it is about: the exec's id, or the container's."""
        for field in ("exec_id", "id", "container_id"):
            value = str(getattr(self.message, field, ""))
            if value:
                return value
        return ""

    def __str__(self) -> str:
        return f"{self.topic.removeprefix('/tasks/')} {self.subject}"


class Events:
    """Those of one namespace."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self._more = asyncio.Event()

    def add(self, told: Told) -> None:
        self.told.append(told)
        self._more.set()

    def __iter__(self) -> Any:
        return iter(self.told)

    @property
    def lines(self) -> Sequence[str]:
        return [str(told) for told in self.told]

    def of(self, topic: str, subject: str | None = None) -> Sequence[Told]:
        return [
            told
            for told in self.told
            if told.topic == f"/tasks/{topic}" and (subject is None or told.subject == subject)
        ]

    async def wait_for(self, topic: str, subject: str | None = None, *, count: int = 1) -> Told:
        """The event number `count` of this topic and subject."""
        await self.wait_until(lambda: len(self.of(topic, subject)) >= count, f"{topic} {subject or ''} × {count}")
        return self.of(topic, subject)[count - 1]

    async def wait_until(self, holds: Callable[[], bool], fact: str, limit_s: float | None = None) -> None:
        limit_s = limit(limit_s)
        try:
            async with asyncio.timeout(limit_s):
                while not holds():
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise Failed(f"no event {fact} within {limit_s:g} s; told: {', '.join(self.lines)}") from None


class EventsService:
    """Listens at `path`; refuses while it is told to."""

    def __init__(self, path: Path, log: logging.Logger) -> None:
        self.path = path
        self._log = log
        self._of: defaultdict[str, Events] = defaultdict(Events)
        self._server = Server({SERVICE: {"Forward": Method(ForwardRequest, self._forward)}}, log=log)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._accepted = 0
        self.listen()

    def of(self, namespace: str) -> Events:
        return self._of[namespace]

    def listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(os.fspath(self.path))
        self._listener.listen(128)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        self.path.unlink(missing_ok=True)
        await self._server.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        self._accepted += 1
        self._server.attach(connection, f"publisher {self._accepted}")

    def _forward(self, request: ForwardRequest, call: Call) -> Empty:
        envelope = request.envelope
        name = envelope.event.type_url.rpartition(".")[2]
        message_class = getattr(events_pb2, name, None)
        if message_class is None:
            raise ValueError(f"an event of type {envelope.event.type_url}")
        message = message_class.FromString(envelope.event.value)
        self._of[envelope.namespace].add(Told(envelope.topic, message, envelope))
        return Empty()
