"""Out-of-memory kills in containers, each growth of the kernel's count told once, also across the deaths of workers.

The kernel counts the kills of a cgroup before it sends the signal, so that a look at the count after an exit misses
none. How much of it was told is the owner's to remember beyond a worker's death: it gets each count, and hands the last
one in again when it recovers.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from dunnage.cgroups.files import key_values, read
from dunnage.cgroups.inotify import Inotify
from dunnage.cgroups.paths import Cgroup, V1Cgroup, V2Cgroup, is_unified
from dunnage.errors import Error, NotFound

OnOom = Callable[[int], None]
"""Gets the kernel's count of all kills so far."""

LOOK_AGAIN_S = (0.01, 0.1, 1.0)
"""After v1's signal: it comes before the kill is counted, and between the two the kernel reports on its console."""


class OomWatch(Protocol):
    """Watches the cgroups of any number of containers; ``on_oom`` is called in the loop, once for each growth."""

    @property
    def unified(self) -> bool:
        """Whether it is v2's."""

    def watch(self, name: str, cgroup: Cgroup, on_oom: OnOom, *, told: int = 0) -> None:
        """Begin. ``told``: the last count that was told; kills that were not are told at once, in this call.

        Raises NotFound where the memory controller is not there, and Error where the kernel refuses.
        """

    def final(self, name: str) -> int:
        """Look a last time, before the init's exit is told: how many kills were new; ``on_oom`` was called if any."""

    def unwatch(self, name: str) -> None:
        """End; nothing is told any more. Idempotent."""

    def close(self) -> None:
        """End all."""


def open_oom_watch(*, log: logging.Logger, unified: bool | None = None) -> OomWatch:
    """The one that fits this host; needs the running loop."""
    return V2OomWatch(log=log) if (is_unified() if unified is None else unified) else V1OomWatch(log=log)


class V1OomWatch:
    """An eventfd for each container. It signals that a kill is due, often twice for one, and also when a cgroup above
    ran out of memory and the victim is elsewhere: so it only says when to look at the count.
    """

    unified = False

    def __init__(self, *, log: logging.Logger) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._watched: dict[str, _V1] = {}

    def watch(self, name: str, cgroup: Cgroup, on_oom: OnOom, *, told: int = 0) -> None:
        assert isinstance(cgroup, V1Cgroup)
        directory = cgroup.directories.get("memory")
        if directory is None:
            raise NotFound("memory cgroup not supported on this system")
        self.unwatch(name)
        watched = _V1(directory, on_oom, told, _registered_eventfd(directory))
        self._watched[name] = watched
        self._loop.add_reader(watched.eventfd, self._signalled, name)
        self._look(name)

    def final(self, name: str) -> int:
        return self._look(name)

    def unwatch(self, name: str) -> None:
        watched = self._watched.pop(name, None)
        if watched is None:
            return
        if watched.again is not None:
            watched.again.cancel()
        self._loop.remove_reader(watched.eventfd)
        os.close(watched.eventfd)

    def close(self) -> None:
        for name in list(self._watched):
            self.unwatch(name)

    def _signalled(self, name: str) -> None:
        watched = self._watched[name]
        os.eventfd_read(watched.eventfd)
        try:
            kills_nothing = _control(watched.directory).get("oom_kill_disable", 0)
        except (FileNotFoundError, Error):
            return  # the cgroup was removed, which signals as well
        if kills_nothing:
            watched.on_oom(watched.told)
        else:
            self._look_until_counted(name, watched, iter(LOOK_AGAIN_S))

    def _look_until_counted(self, name: str, watched: _V1, pauses_s: Iterator[float]) -> None:
        if watched.again is not None:
            watched.again.cancel()
            watched.again = None
        if not self._look(name) and (pause_s := next(pauses_s, None)) is not None:
            watched.again = self._loop.call_later(pause_s, self._look_until_counted, name, watched, pauses_s)

    def _look(self, name: str) -> int:
        watched = self._watched.get(name)
        if watched is None:
            return 0
        try:
            return watched.tell(_v1_kills(watched.directory))
        except FileNotFoundError:
            return 0
        except Error as error:
            self._log.warning("out-of-memory kills of %s are unknown: %s", name, error)
            return 0


class V2OomWatch:
    """One inotify instance for the ``memory.events`` of all containers; ``oom_kill`` in it counts."""

    unified = True

    def __init__(self, *, log: logging.Logger) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._inotify = Inotify()
        self._watched: dict[str, _V2] = {}
        self._loop.add_reader(self._inotify.fd, self._changed)

    def watch(self, name: str, cgroup: Cgroup, on_oom: OnOom, *, told: int = 0) -> None:
        assert isinstance(cgroup, V2Cgroup)
        self.unwatch(name)
        try:
            watch = self._inotify.add(f"{cgroup.directory}/memory.events")
        except FileNotFoundError as error:
            raise NotFound(f"{cgroup.directory} has no memory.events") from error
        except OSError as error:
            raise Error(f"watch {cgroup.directory}/memory.events: {error.strerror}") from error
        watched = _V2(cgroup.directory, on_oom, told, watch)
        self._watched[name] = watched
        self._look(name)

    def final(self, name: str) -> int:
        return self._look(name)

    def unwatch(self, name: str) -> None:
        watched = self._watched.pop(name, None)
        if watched is None:
            return
        # two containers may share a cgroup, and then have one watch
        if all(other.watch != watched.watch for other in self._watched.values()):
            self._inotify.remove(watched.watch)

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
            events = key_values("memory.events", read(watched.directory, "memory.events"))
        except FileNotFoundError:
            return 0
        except Error as error:
            self._log.warning("out-of-memory kills of %s are unknown: %s", name, error)
            return 0
        return watched.tell(events.get("oom_kill", 0))


@dataclass(slots=True)
class _Watched:
    directory: str
    on_oom: OnOom
    told: int

    def tell(self, count: int) -> int:
        """Tell if there are more kills than were told; how many more."""
        # less than told: a v1 cgroup below, whose kills are in the sum, is gone
        more, self.told = max(count - self.told, 0), count
        if more:
            self.on_oom(count)
        return more


@dataclass(slots=True)
class _V1(_Watched):
    eventfd: int
    again: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _V2(_Watched):
    watch: int


def _v1_kills(directory: str) -> int:
    """v1 counts a kill in the victim's own cgroup alone, so those below a container's belong to it. FileNotFoundError:
    it is gone.
    """
    kills = _control(directory).get("oom_kill", 0)
    for below, _, _ in os.walk(directory):
        if below != directory:
            try:
                kills += _control(below).get("oom_kill", 0)
            except FileNotFoundError:
                continue
    return kills


def _control(directory: str) -> dict[str, int]:
    return key_values("memory.oom_control", read(directory, "memory.oom_control"))


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
