"""Workers: forked from the warm image, told by a socket, and forked again when they die."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import NoReturn

from dunnage.keeper import children, messages
from dunnage.keeper.ledger import Ledger
from dunnage.keeper.poll import Poll
from dunnage.keeper.post import Post
from dunnage.keeper.slots import Slot
from dunnage.keeper.store import Store
from dunnage.linux.attributes import Attributes

NODE = "node"  # the first worker, which is forked again however it ends
PAUSES_S = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)  # before a worker that died young is forked again
YOUNG_S = 10.0
WORKER_END_S = 1.0  # for a worker to end by itself when all is over, and again for it to end when it is killed


class Workers:
    """``take`` does one request of a worker, and says whether there was one."""

    def __init__(
        self,
        poll: Poll,
        slots: dict[str, Slot],
        store: Store,
        ledger: Ledger,
        post: Post,
        *,
        take: Callable[[Slot], bool],
        inherited: Attributes,
        log: Callable[[str], None],
    ) -> None:
        self._poll = poll
        self._slots = slots
        self._store = store
        self._ledger = ledger
        self._post = post
        self._take = take
        self._inherited = inherited
        self._log = log

    def fork(self, slot: Slot) -> None:
        """If it can not be done, it is tried again later."""
        slot.fork_at = slot.idle_at = None
        ours = theirs = None
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            slot.pid = children.fork(lambda: self._become_worker(slot, theirs))
            theirs.close()  # which makes room for the pidfd
            slot.pidfd = os.pidfd_open(slot.pid)
        except OSError as error:
            if slot.pid:
                os.kill(slot.pid, signal.SIGKILL)
                os.waitpid(slot.pid, 0)
                slot.pid = 0
            if ours is not None and theirs is not None:
                ours.close()
                theirs.close()
            slot.deaths += 1
            slot.fork_at = time.monotonic() + PAUSES_S[-1]
            self._log(f"worker {slot.name} can not be forked: {error}")
            return
        slot.sock, slot.born = ours, time.monotonic()
        self._poll.watch(ours.fileno(), select.POLLIN, lambda events: self._on_ready(slot, events))
        self._poll.watch(slot.pidfd, select.POLLIN, lambda _events: self._on_death(slot))

    def hang_up(self, slot: Slot) -> None:
        """A worker that has closed its socket, or is not wanted, is no use: its pidfd tells when it is dead."""
        self._close(slot)
        if slot.pid:
            signal.pidfd_send_signal(slot.pidfd, signal.SIGKILL)

    def end(self, slot: Slot) -> None:
        """Have no worker of this name any more."""
        slot.ends = True
        self.hang_up(slot)
        if not slot.pid:
            self._end_slot(slot)

    def end_all(self) -> None:
        """Close their sockets, which tells them; kill whoever has not ended a moment later."""
        for slot in self._slots.values():
            self._close(slot)
        living = [slot for slot in self._slots.values() if slot.pid]
        for number in (0, signal.SIGKILL):
            deadline = time.monotonic() + WORKER_END_S
            for slot in living:
                signal.pidfd_send_signal(slot.pidfd, number)
                ending = select.poll()
                ending.register(slot.pidfd, select.POLLIN)
                ending.poll(max(0.0, deadline - time.monotonic()) * 1000)
        for slot in living:
            os.waitpid(slot.pid, os.WNOHANG)  # one that even this did not end is left to init

    def pids(self) -> set[int]:
        return {slot.pid for slot in self._slots.values() if slot.pid}

    def next_at(self) -> float | None:
        return min((slot.fork_at for slot in self._slots.values() if slot.fork_at is not None), default=None)

    def on_time(self, now: float) -> None:
        for slot in list(self._slots.values()):
            if slot.fork_at is not None and slot.fork_at <= now:
                self.fork(slot)

    def _become_worker(self, slot: Slot, sock: socket.socket) -> NoReturn:
        fds = self._store.of(slot.name)
        birth = messages.Inherited(sock, fds, self._ledger.of(slot.name), os.getppid(), slot.name)
        children.become_python(
            f"worker {slot.name}",
            lambda: children.load(slot.entry)(slot.argument, birth),
            keep=[sock.fileno(), *fds.values()],
            attributes=self._inherited._replace(rlimits={}),  # its own limit of fds is ours: it holds those of a node
            blocked=[signal.SIGUSR1],  # which asks it for its state (worker/dump.py)
        )

    def _on_ready(self, slot: Slot, events: int) -> None:
        if events & select.POLLOUT:
            self._post.flush(slot)
        if events & ~select.POLLOUT and slot.sock is not None:
            self._take(slot)

    def _on_death(self, slot: Slot) -> None:
        if os.waitid(os.P_PID, slot.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        while slot.sock is not None and self._take(slot):
            pass  # what it asked for before it died is done
        _, status = os.waitpid(slot.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        lived_s = time.monotonic() - slot.born
        self._poll.unwatch(slot.pidfd)
        os.close(slot.pidfd)
        self._close(slot)
        slot.pid, slot.pidfd, slot.idle_at = 0, -1, None
        if slot.ends or (code == 0 and slot.name != NODE):
            self._end_slot(slot)
            return
        slot.deaths = 0 if lived_s >= YOUNG_S else slot.deaths + 1
        pause_s = PAUSES_S[min(max(slot.deaths - 1, 0), len(PAUSES_S) - 1)]
        slot.fork_at = time.monotonic() + pause_s
        self._log(f"worker {slot.name} ended with {code} after {lived_s:.3f} s; the next is forked in {pause_s} s")

    def _close(self, slot: Slot) -> None:
        if slot.sock is not None:
            self._poll.unwatch(slot.sock.fileno())
            slot.sock.close()
            slot.sock = None
        self._post.forget(slot)

    def _end_slot(self, slot: Slot) -> None:
        """A worker other than the first has finished: its fds close, its children are nobody's."""
        del self._slots[slot.name]
        self._store.drop_all(slot.name)
        self._ledger.disown(slot.name)
