"""Out-of-memory kills in containers, told once each, also across the deaths of workers.

`OomWatch` is what the two kinds of cgroups have in common. What has been told lives in a descriptor, not in the worker:
in v1 the eventfd that the kernel counts up, in v2 a memfd with the count. Its owner puts a copy into the keeper's store
and hands it in again when it recovers. It is told first and noted after: a death in between tells twice, never not at
all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dunnage.cgroups.files import key_values, read
from dunnage.cgroups.inotify import Inotify
from dunnage.cgroups.paths import Cgroup, V1Cgroup, V2Cgroup, is_unified
from dunnage.errors import Error, NotFound

OnOom = Callable[[], None]

_COUNT_BYTES = 8


class OomWatch(Protocol):
    """Watches the cgroups of any number of containers; ``on_oom`` is called in the loop, once for each growth."""

    def watch(self, name: str, cgroup: Cgroup, on_oom: OnOom, *, fd: int | None = None) -> int:
        """Begin; gives the fd to be stored, owned by the watch. ``fd``: that of before, now the watch's own.

        What was not told before may be told at once, in this call. Raises NotFound where the memory controller is not
        there, and Error where the kernel refuses.
        """

    def final(self, name: str) -> int:
        """Look a last time, before the init's exit is told: how many kills (calls ``on_oom`` once if any) were new."""

    def unwatch(self, name: str) -> None:
        """End, and close the fd; nothing is told any more. Idempotent."""

    def close(self) -> None:
        """End all."""


def open_oom_watch(*, log: logging.Logger, unified: bool | None = None) -> OomWatch:
    """The one that fits this host; needs the running loop."""
    return V2OomWatch(log=log) if (is_unified() if unified is None else unified) else V1OomWatch(log=log)


@dataclass(slots=True)
class _V1:
    directory: str
    on_oom: OnOom
    fd: int
    is_read: bool = True


class V1OomWatch:
    """An eventfd for each container, which the kernel signals before it kills, and once when the cgroup is removed."""

    def __init__(self, *, log: logging.Logger) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._watched: dict[str, _V1] = {}

    def watch(self, name: str, cgroup: Cgroup, on_oom: OnOom, *, fd: int | None = None) -> int:
        assert isinstance(cgroup, V1Cgroup)
        directory = cgroup.directories.get("memory")
        if directory is None:
            raise NotFound("memory cgroup not supported on this system")
        self.unwatch(name)
        watched = _V1(directory, on_oom, _registered_eventfd(directory) if fd is None else fd)
        self._watched[name] = watched
        self._loop.add_reader(watched.fd, self._look, name)
        return watched.fd

    def final(self, name: str) -> int:
        return self._look(name)

    def unwatch(self, name: str) -> None:
        watched = self._watched.pop(name, None)
        if watched is not None:
            self._stop_reading(watched)
            os.close(watched.fd)

    def close(self) -> None:
        for name in list(self._watched):
            self.unwatch(name)

    def _look(self, name: str) -> int:
        watched = self._watched.get(name)
        if watched is None:
            return 0
        if not os.path.isdir(watched.directory):
            # the removal itself has counted one up
            kills = max(_count(watched.fd) - 1, 0)
            self._stop_reading(watched)
            if kills:
                watched.on_oom()
            return kills
        if not _is_readable(watched.fd):
            return 0
        try:
            watched.on_oom()
        finally:
            kills = _count(watched.fd)
        return kills

    def _stop_reading(self, watched: _V1) -> None:
        if watched.is_read:
            watched.is_read = False
            self._loop.remove_reader(watched.fd)


@dataclass(slots=True)
class _V2:
    directory: str
    on_oom: OnOom
    fd: int
    watch: int


class V2OomWatch:
    """One inotify instance for the ``memory.events`` of all containers; ``oom_kill`` in it counts."""

    def __init__(self, *, log: logging.Logger) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._inotify = Inotify()
        self._watched: dict[str, _V2] = {}
        self._loop.add_reader(self._inotify.fd, self._changed)

    def watch(self, name: str, cgroup: Cgroup, on_oom: OnOom, *, fd: int | None = None) -> int:
        assert isinstance(cgroup, V2Cgroup)
        self.unwatch(name)
        try:
            watch = self._inotify.add(f"{cgroup.directory}/memory.events")
        except FileNotFoundError as error:
            raise NotFound(f"{cgroup.directory} has no memory.events") from error
        except OSError as error:
            raise Error(f"watch {cgroup.directory}/memory.events: {error.strerror}") from error
        if fd is None:
            fd = os.memfd_create("oom")
        self._watched[name] = _V2(cgroup.directory, on_oom, fd, watch)
        self._look(name)
        return fd

    def final(self, name: str) -> int:
        return self._look(name)

    def unwatch(self, name: str) -> None:
        watched = self._watched.pop(name, None)
        if watched is None:
            return
        # two containers may share a cgroup, and then have one watch
        if all(other.watch != watched.watch for other in self._watched.values()):
            self._inotify.remove(watched.watch)
        os.close(watched.fd)

    def close(self) -> None:
        for name in list(self._watched):
            self.unwatch(name)
        self._loop.remove_reader(self._inotify.fd)
        self._inotify.close()

    def _changed(self) -> None:
        watches = self._inotify.changed()
        for name, watched in list(self._watched.items()):
            if watches is None or watched.watch in watches:
                self._look(name)

    def _look(self, name: str) -> int:
        watched = self._watched.get(name)
        if watched is None:
            return 0
        try:
            count = key_values("memory.events", read(watched.directory, "memory.events")).get("oom_kill", 0)
        except FileNotFoundError:
            return 0
        except Error as error:
            self._log.warning("out-of-memory kills of %s are unknown: %s", name, error)
            return 0
        told = int.from_bytes(os.pread(watched.fd, _COUNT_BYTES, 0), "little")
        if count <= told:
            return 0
        try:
            watched.on_oom()
        finally:
            os.pwrite(watched.fd, count.to_bytes(_COUNT_BYTES, "little"), 0)
        return count - told


def _registered_eventfd(directory: str) -> int:
    """An eventfd that the kernel signals when the cgroup is out of memory (cgroup-v1/memory.rst, section 10)."""
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with open(f"{directory}/cgroup.event_control", "w", encoding="ascii") as registry:
                registry.write(f"{eventfd} {control}")
        finally:
            os.close(control)
    except FileNotFoundError as error:
        os.close(eventfd)
        raise NotFound(f"{error.filename} does not exist") from error
    except OSError as error:
        os.close(eventfd)
        raise Error(f"watch {directory} for out-of-memory kills: {error.strerror}") from error
    return eventfd


def _count(eventfd: int) -> int:
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
