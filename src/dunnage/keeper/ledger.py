"""The ledger of children: whose each is, how it ended, and when it is let go.

A dead child stays a zombie until a worker asks for its reaping; nobody ever waits for just any child.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass

from dunnage.keeper.messages import Refused


@dataclass
class Child:
    name: str
    owner: str
    made: float | None  # when; None: an orphan that the owner has claimed
    number: int  # of those that were made, from 1


class Ledger:
    """Workers are not in it: `dunnage.keeper.workers` waits for those."""

    def __init__(self) -> None:
        self._children: dict[int, Child] = {}
        self._unwanted: set[int] = set()  # nobody will ask for them: they are reaped as soon as they are dead
        self.made = 0  # how many children were made for workers
        try:  # once: when the fd table is full, is no time to learn whether there are children
            self._listing = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN: unclaimed orphans are not known
            self._listing = -1

    def record(self, pid: int, name: str, owner: str) -> None:
        self.made += 1
        self._children[pid] = Child(name, owner, time.monotonic(), self.made)

    def claim(self, pid: int, name: str, owner: str) -> None:
        self._children[pid] = Child(name, owner, None, 0)

    def disown(self, owner: str) -> None:
        """What was this worker's is nobody's."""
        self._children = {pid: child for pid, child in self._children.items() if child.owner != owner}

    def of(self, owner: str) -> dict[int, str]:
        return {pid: child.name for pid, child in self._children.items() if child.owner == owner}

    def oldest_in_flight(self, since: float) -> int:
        """Its number; the next one's where nothing is in flight."""
        numbers = (child.number for child in self._children.values() if child.made is not None and child.made > since)
        return min(numbers, default=self.made + 1)

    def all_pids(self) -> set[int]:
        """Every child, dead or alive, asked for or adopted; workers too."""
        # the list can miss one while a sibling of it is being reaped
        return self._listed() | self._children.keys()

    def dead_orphans(self) -> list[int]:
        """The dead among those that no worker made or claimed."""
        return [pid for pid in self._listed() - self._children.keys() if _look(pid) is not None]

    def peek(self, pid: int) -> list[int | None] | None:
        """How it ended: exit code, signal; None while it runs. Refused if it is no child."""
        try:
            seen = _look(pid)
        except ChildProcessError:
            raise Refused(errno.ECHILD, f"process {pid} is no child of the keeper") from None
        if seen is None:
            return None
        return [seen.si_status, None] if seen.si_code == os.CLD_EXITED else [None, seen.si_status]

    def reap(self, pid: int) -> None:
        """Let it go, if it is dead or no child (any more)."""
        try:
            is_gone = os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:
            is_gone = True  # reaped before
        if is_gone:
            self._children.pop(pid, None)
            self._unwanted.discard(pid)

    def reap_when_dead(self, pid: int) -> None:
        """Now or later: a child may be long about its exit (closing a file on a dead server)."""
        self._unwanted.add(pid)
        self.reap(pid)

    def kill(self, pid: int, owner: str) -> None:
        """End a child that was made for ``owner``, and reap it."""
        child = self._children.get(pid)
        if child is None or child.owner != owner or child.made is None:
            raise Refused(errno.ECHILD, f"process {pid} was not made for worker {owner}")
        os.kill(pid, signal.SIGKILL)
        self.reap_when_dead(pid)

    def reap_unwanted(self) -> None:
        """Some child has died."""
        for pid in list(self._unwanted):
            self.reap(pid)

    def _listed(self) -> set[int]:
        if self._listing < 0:
            return set()
        os.lseek(self._listing, 0, os.SEEK_SET)
        text = b""
        while chunk := os.read(self._listing, 1 << 16):
            text += chunk
        return {int(pid) for pid in text.split()}


def _look(pid: int) -> os.waitid_result | None:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
