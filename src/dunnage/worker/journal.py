"""Records that outlive this process: appended to a memfd in the keeper's store, until they are said to be done.

One record is one write, so a death in between leaves all of it or nothing that counts. Records that are done are thrown
out when they are most of a large file; their numbers are never used again.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

_HEADER = struct.Struct("<IBQ")  # length of the data, kind, number of the record
_APPENDED, _DONE = 1, 2
_COMPACT_BYTES = 64 << 10


class Journal:
    """``store`` is called with each memfd that is to be kept from then on; it takes the place of the one before."""

    def __init__(self, name: str, store: Callable[[str, int], None], fd: int | None = None) -> None:
        self.name = name
        self._store = store
        self._next = 1
        self._live: dict[int, bytes] = {}
        self._live_bytes = 0
        if fd is None:
            self._fd = self._make()
            self._size = 0
        else:
            self._fd = fd
            self._size = self._load()

    @property
    def written(self) -> int:
        """How many records were ever appended, by all workers."""
        return self._next - 1

    @property
    def live(self) -> dict[int, bytes]:
        """The records that are not done, by number, in the order in which they were appended."""
        return dict(self._live)

    def append(self, data: bytes) -> int:
        """Write a record down; its number. Raises OSError when it could not be written: then it is not there."""
        number = self._next
        self._next += 1
        self._write(_HEADER.pack(len(data), _APPENDED, number) + data)
        self._live[number] = data
        self._live_bytes += len(data)
        return number

    def done(self, number: int) -> None:
        """A record is not needed any more. Idempotent."""
        data = self._live.pop(number, None)
        if data is None:
            return
        self._live_bytes -= len(data)
        self._write(_HEADER.pack(0, _DONE, number))
        if self._size > _COMPACT_BYTES and self._size > 2 * self._live_bytes:
            self._compact()

    def for_one(self, label: str) -> LabelledJournal:
        """The part of this journal whose records carry ``label``."""
        return LabelledJournal(self, label)

    def live_by_label(self) -> dict[str, list[tuple[int, bytes]]]:
        """The records of the parts made by ``for_one``, each part in its order."""
        found: dict[str, list[tuple[int, bytes]]] = {}
        for number, record in self._live.items():
            label, _, data = record.partition(b"\0")
            found.setdefault(label.decode(), []).append((number, data))
        return found

    def _write(self, data: bytes) -> None:
        written = os.pwrite(self._fd, data, self._size)
        if written < len(data):
            os.ftruncate(self._fd, self._size)
            raise OSError(errno.ENOSPC, f"{self.name}: {os.strerror(errno.ENOSPC)}")
        self._size += written

    def _compact(self) -> None:
        compact = self._make(keep=False)
        data = _HEADER.pack(0, _DONE, self.written)  # says how many there were; what is live comes behind it
        data += b"".join(_HEADER.pack(len(data), _APPENDED, number) + data for number, data in self._live.items())
        os.pwrite(compact, data, 0)
        self._store(self.name, compact)
        os.close(self._fd)
        self._fd, self._size = compact, len(data)

    def _make(self, keep: bool = True) -> int:
        fd = os.memfd_create(f"dunnage {self.name}", os.MFD_CLOEXEC)
        if keep:
            self._store(self.name, fd)
        return fd

    def _load(self) -> int:
        data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, number = _HEADER.unpack_from(data, at)
            end = at + _HEADER.size + length
            if end > len(data):
                break  # the write that a death cut short
            if kind == _APPENDED:
                self._live[number] = data[at + _HEADER.size : end]
            else:
                self._live.pop(number, None)
            self._next = max(self._next, number + 1)
            at = end
        self._live_bytes = sum(map(len, self._live.values()))
        os.ftruncate(self._fd, at)  # else the rest of a cut write could be read as records behind a shorter one
        return at


class LabelledJournal:
    """One of several writers to a journal; its records are told from the others' by their label."""

    def __init__(self, journal: Journal, label: str) -> None:
        self._journal = journal
        self._label = label.encode() + b"\0"

    def append(self, data: bytes) -> int:
        return self._journal.append(self._label + data)

    def done(self, number: int) -> None:
        self._journal.done(number)
