"""How containers ended that are gone: remembered for a while, by this worker and the next.

A launcher's ``delete`` (shim v2, §1.7) asks by the container's name and its bundle's directory: names are used again,
and so are inodes. A Delete that a former worker did, and could not answer any more, asks by the name.
"""

from __future__ import annotations

import json
import time
from typing import NamedTuple

from dunnage.container.facts import Ended
from dunnage.worker.journal import Journal

REMEMBER_S = 60.0
REMEMBERED = 10_000


class _Entry(NamedTuple):
    number: int  # in the journal
    at: float  # of the monotonic clock, which is the same for every process
    namespace: str
    container_id: str
    ended: Ended


class Ends:
    """``journal`` holds what is remembered."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._entries: dict[tuple[int, int], _Entry] = {}
        self._last: dict[tuple[str, str], tuple[int, int]] = {}
        for number, record in journal.live.items():
            at, namespace, container_id, device, inode, ended = json.loads(record)
            self._add((device, inode), _Entry(number, at, namespace, container_id, Ended(*ended)))
        self._drop_old()

    def remember(self, namespace: str, container_id: str, bundle: tuple[int, int], ended: Ended) -> None:
        """``bundle`` is the identity of its directory."""
        self._drop_old()
        self.forget(namespace, container_id, bundle)
        at = time.monotonic()
        number = self._journal.append(json.dumps([at, namespace, container_id, *bundle, ended]).encode())
        self._add(bundle, _Entry(number, at, namespace, container_id, ended))
        if len(self._entries) > REMEMBERED:
            self._drop(next(iter(self._entries)))

    def forget(self, namespace: str, container_id: str, bundle: tuple[int, int]) -> None:
        """A container of this name, or in a directory of this inode, begins: it is not the one that is gone."""
        self._last.pop((namespace, container_id), None)
        self._drop(bundle)

    def of_bundle(self, namespace: str, container_id: str, bundle: tuple[int, int]) -> Ended | None:
        self._drop_old()
        entry = self._entries.get(bundle)
        if entry is None or (entry.namespace, entry.container_id) != (namespace, container_id):
            return None
        return entry.ended

    def of_container(self, namespace: str, container_id: str) -> Ended | None:
        """How the last container of this name ended, if it is gone and no other of this name has begun."""
        bundle = self._last.get((namespace, container_id))
        return None if bundle is None else self._entries[bundle].ended

    def _add(self, bundle: tuple[int, int], entry: _Entry) -> None:
        self._entries[bundle] = entry
        self._last[entry.namespace, entry.container_id] = bundle

    def _drop_old(self) -> None:
        before = time.monotonic() - REMEMBER_S
        while self._entries:
            first = next(iter(self._entries))
            if self._entries[first].at >= before:
                return
            self._drop(first)

    def _drop(self, bundle: tuple[int, int]) -> None:
        entry = self._entries.pop(bundle, None)
        if entry is None:
            return
        name = entry.namespace, entry.container_id
        if self._last.get(name) == bundle:
            del self._last[name]
        self._journal.done(entry.number)
