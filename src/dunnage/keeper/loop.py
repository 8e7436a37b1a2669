"""The keeper: one thread, one poll, and the tables of what it keeps. Nothing in here waits for anybody.

It owns: every child (nobody else may wait for them, and it reaps one only when a worker asks), every fd in the store,
the listeners it accepts on, and one slot per worker, in which the next worker is forked when one dies.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from dunnage.keeper import children, messages
from dunnage.linux.attributes import Attributes

QUEUE = 256  # notices and answers that a worker has not taken; beyond it, its requests and connections wait
RETRY_S = 0.1  # after a full fd table
PAUSES_S = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)  # before a worker that died young is forked again
YOUNG_S = 10.0
WORKER_END_S = 1.0  # for a worker to end by itself when all is over


class Refused(Exception):
    """The answer to a request that can not be done: errno (0 for none) and text."""


@dataclass
class Slot:
    """A worker's place: what outlives its deaths."""

    name: str
    entry: str
    argument: Any
    sock: socket.socket | None = None
    pid: int = 0
    pidfd: int = -1
    queue: deque[tuple[dict[str, Any], int]] = field(default_factory=deque)  # message, fd that is the keeper's to close
    born: float = 0.0
    deaths: int = 0
    fork_at: float | None = None
    idle_at: float | None = None  # when it may be ended
    told_death: bool = False  # a "died" waits in the queue
    held: bool = False  # its queue is full: it is not read from, and nothing is accepted for it


@dataclass
class Child:
    name: str
    owner: str
    made: float | None  # when; None: an orphan that the owner has claimed


@dataclass(frozen=True)
class Listener:
    owner: str
    name: str
    sock: socket.socket


class Keeper:
    """Serve until nothing is left; ``first`` is the entry of the first worker, called "node"."""

    def __init__(self, *, first: str, argument: Any, inherited: Attributes, log: Callable[[str], None]) -> None:
        self._first = first
        self._argument = argument
        self._inherited = inherited  # what children get when the request does not say
        self._log = log
        self._poll = select.poll()
        self._ready: dict[int, Callable[[int], None]] = {}
        self.slots: dict[str, Slot] = {}
        self.children: dict[int, Child] = {}
        self._made = 0  # how many children were made for workers
        self.store: dict[tuple[str, str], int] = {}  # (owner, name)
        self._listeners: dict[tuple[str, str], Listener] = {}
        self._resume_at: float | None = None
        self._accepted = 0
        self._full = False  # said once: the fd table is full
        self._failed: set[int] = set()  # children that told of a failed exec, and are in their exit
        self._stop = False
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.terminate = False  # set by SIGTERM's handler

    # --- the loop

    def serve(self, *, may_end: Callable[[], bool]) -> None:
        """Until every worker has been idle for long enough, or a SIGTERM comes without children or if ``may_end()``."""
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        self._watch(self._wake, select.POLLIN, self._on_signal)
        self.slots["node"] = Slot("node", self._first, self._argument, fork_at=time.monotonic())
        while not self._stop:
            self._on_time()
            for fd, events in self._poll.poll(self._timeout_ms()):
                if fd in self._ready:  # not closed by an earlier one of this round
                    self._do(self._ready[fd], events)
            if self.terminate:
                self.terminate = False
                self._stop = may_end() or not self.has_children()
        self._end_workers()

    def _end_workers(self) -> None:
        """Close their sockets, which tells them; kill whoever has not ended a moment later."""
        deadline = time.monotonic() + WORKER_END_S
        for slot in self.slots.values():
            self._close_worker(slot)
        for slot in self.slots.values():
            if slot.pid:
                ending = select.poll()
                ending.register(slot.pidfd, select.POLLIN)
                ending.poll(max(0.0, deadline - time.monotonic()) * 1000)
                signal.pidfd_send_signal(slot.pidfd, signal.SIGKILL)
                os.waitpid(slot.pid, 0)

    def _do(self, ready: Callable[[int], None], events: int) -> None:
        try:
            ready(events)
        except Exception:  # noqa: BLE001 - a mistake here costs one request, and not every container of the node
            self._log(traceback.format_exc())

    def has_children(self) -> bool:
        """Whether anything but workers is the keeper's child, dead or alive, asked for or adopted."""
        return bool(self._all_children())

    def _all_children(self) -> set[int]:
        try:
            with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
                listed = {int(pid) for pid in file.read().split()}
        except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN: unclaimed orphans are not known
            listed = set()
        # the list can miss one while a sibling of it is being reaped
        return (listed | self.children.keys()) - {slot.pid for slot in self.slots.values()}

    def _on_signal(self, _events: int) -> None:
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            return
        for pid in list(self._failed):
            self._reap_failed(pid)
        # one notice for any number of deaths (and for a signal that was none): a worker looks at its own pidfds
        for slot in self.slots.values():
            if slot.sock is not None and not slot.told_death:
                slot.told_death = True
                self._tell(slot, {"say": "died"})

    def _timeout_ms(self) -> int | None:
        moments = [moment for slot in self.slots.values() if (moment := slot.fork_at) is not None]
        if self._resume_at is not None:
            moments.append(self._resume_at)
        if (end := self._idle_end()) is not None:
            moments.append(end)
        return max(0, int((min(moments) - time.monotonic()) * 1000) + 1) if moments else None

    def _on_time(self) -> None:
        now = time.monotonic()
        for slot in list(self.slots.values()):
            if slot.fork_at is not None and slot.fork_at <= now:
                self._fork_worker(slot)
        if self._resume_at is not None and self._resume_at <= now:
            self._resume_accepting()
        if (end := self._idle_end()) is not None and end <= now:
            if self.has_children():
                for slot in self.slots.values():
                    slot.idle_at = None  # a worker that has seen to them says so again
            else:
                self._stop = True

    def _idle_end(self) -> float | None:
        ends = [slot.idle_at for slot in self.slots.values()]
        return None if None in ends or not ends else max(end for end in ends if end is not None)

    def _watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        self._poll.register(fd, events)
        self._ready[fd] = ready

    def _unwatch(self, fd: int) -> None:
        if self._ready.pop(fd, None) is not None:
            self._poll.unregister(fd)

    # --- workers

    def _fork_worker(self, slot: Slot) -> None:
        slot.fork_at = slot.idle_at = None
        ours = theirs = None
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            slot.pid = self._fork(lambda: self._become_worker(slot, theirs))
            slot.pidfd = os.pidfd_open(slot.pid)
        except OSError as error:
            if slot.pid:
                os.kill(slot.pid, signal.SIGKILL)
                os.waitpid(slot.pid, 0)
                slot.pid = 0
            if ours is not None:
                ours.close()
            slot.deaths += 1
            slot.fork_at = time.monotonic() + PAUSES_S[-1]
            self._log(f"worker {slot.name} can not be forked: {error}")
            return
        finally:
            if theirs is not None:
                theirs.close()
        slot.sock, slot.born = ours, time.monotonic()
        self._watch(ours.fileno(), select.POLLIN, lambda events: self._on_worker(slot, events))
        self._watch(slot.pidfd, select.POLLIN, lambda _events: self._on_worker_death(slot))

    def _become_worker(self, slot: Slot, sock: socket.socket) -> NoReturn:
        fds = {name: fd for (owner, name), fd in self.store.items() if owner == slot.name}
        mine = {pid: child.name for pid, child in self.children.items() if child.owner == slot.name}
        birth = messages.Inherited(sock, fds, mine, os.getppid(), slot.name)
        children.become_python(
            f"worker {slot.name}",
            lambda: children.load(slot.entry)(slot.argument, birth),
            keep=[sock.fileno(), *fds.values()],
            attributes=self._inherited._replace(rlimits={}),  # its own limit of fds is ours: it holds those of a node
        )

    def _fork(self, become: Callable[[], NoReturn]) -> int:
        """Fork with every signal blocked: the child lifts that when none of our handlers is left in it."""
        before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        pid = -1
        try:
            pid = os.fork()
            if pid == 0:
                become()
        finally:
            if pid == 0:
                os._exit(125)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid

    def _on_worker_death(self, slot: Slot) -> None:
        if os.waitid(os.P_PID, slot.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        while slot.sock is not None and self._take_request(slot):
            pass  # what it asked for before it died is done
        _, status = os.waitpid(slot.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        lived_s = time.monotonic() - slot.born
        self._unwatch(slot.pidfd)
        os.close(slot.pidfd)
        self._close_worker(slot)
        slot.pid, slot.pidfd, slot.idle_at = 0, -1, None
        if code == 0 and slot.name != "node":
            self._end_slot(slot)
            return
        slot.deaths = 0 if lived_s >= YOUNG_S else slot.deaths + 1
        pause_s = PAUSES_S[min(max(slot.deaths - 1, 0), len(PAUSES_S) - 1)]
        slot.fork_at = time.monotonic() + pause_s
        self._log(f"worker {slot.name} ended with {code} after {lived_s:.3f} s; the next is forked in {pause_s} s")

    def _close_worker(self, slot: Slot) -> None:
        if slot.sock is not None:
            self._unwatch(slot.sock.fileno())
            slot.sock.close()
            slot.sock = None
        messages.close_all(fd for _, fd in slot.queue if fd >= 0)
        slot.queue.clear()
        slot.told_death = False
        self._hold(slot, False)

    def _end_slot(self, slot: Slot) -> None:
        """A worker other than the first has finished: its fds close, its children are nobody's."""
        del self.slots[slot.name]
        for owner, name in [key for key in self.store if key[0] == slot.name]:
            self._drop(owner, name)
        self.children = {pid: child for pid, child in self.children.items() if child.owner != slot.name}

    # --- messages

    def _on_worker(self, slot: Slot, events: int) -> None:
        if events & select.POLLOUT:
            self._flush(slot)
        if events & ~select.POLLOUT and slot.sock is not None:
            self._take_request(slot)

    def _take_request(self, slot: Slot) -> bool:
        """Do one request; false when there is none (now, or ever again)."""
        assert slot.sock is not None
        try:
            packet = messages.receive(slot.sock)
        except BlockingIOError:
            return False
        except ConnectionError:
            packet = None
        if packet is None:
            self._close_worker(slot)  # its pidfd tells when it is dead; one that only closed its socket is no use
            if slot.pid:
                signal.pidfd_send_signal(slot.pidfd, signal.SIGKILL)
            return False
        message, fds = packet.message, packet.fds
        try:
            if packet.truncated:
                raise Refused(errno.EMFILE, f"{message.get('verb')}: the keeper's table of open files is full")
            self._verbs[message["verb"]](self, slot, message, fds)
        except Refused as refusal:
            self._refuse(slot, message, refusal.args[0], refusal.args[1])
        except OSError as error:
            self._refuse(slot, message, error.errno or 0, error.strerror or str(error))
        except (LookupError, TypeError, ValueError) as error:
            self._refuse(slot, message, errno.EINVAL, f"{message.get('verb')}: {type(error).__name__}: {error}")
        finally:
            messages.close_all(fds)
        return True

    def _refuse(self, slot: Slot, message: dict[str, Any], number: int, text: str) -> None:
        if "call" in message:
            self._tell(slot, {"answer": message["call"], "error": {"errno": number, "text": text}})
        else:
            self._log(f"{slot.name}: {message.get('verb')} {message.get('name', '')}: {text}")

    def _tell(self, slot: Slot, message: dict[str, Any], fd: int = -1) -> None:
        """Queue a message to a worker; ``fd`` is closed when it is sent or can not be any more."""
        if slot.sock is None:
            if fd >= 0:
                os.close(fd)
            return
        slot.queue.append((message, fd))
        self._flush(slot)

    def _flush(self, slot: Slot) -> None:
        while slot.queue and slot.sock is not None:
            message, fd = slot.queue[0]
            fds = [fd] if fd >= 0 else []
            if "say" in message and "name" in message:  # a stored fd: as it is now, and not at all if it is released
                stored = self.store.get((slot.name, message["name"]))
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
            except OSError as error:  # too many fds on their way in the system; what is stored, the next one inherits
                self._log(f"worker {slot.name} can not be told {message}: {error}")
                if "answer" in message:
                    failed = {"errno": error.errno, "text": error.strerror}
                    slot.queue[0] = ({**message, "error": failed}, -1)
                    if fd >= 0:
                        os.close(fd)
                        continue
            slot.queue.popleft()
            if fd >= 0:
                os.close(fd)
            if message.get("say") == "died":
                slot.told_death = False
        self._rewatch(slot)

    def _rewatch(self, slot: Slot) -> None:
        if slot.sock is None:
            return
        held = len(slot.queue) >= QUEUE
        self._poll.modify(slot.sock.fileno(), (0 if held else select.POLLIN) | (select.POLLOUT if slot.queue else 0))
        self._hold(slot, held)

    def _hold(self, slot: Slot, held: bool) -> None:
        if held != slot.held:
            slot.held = held
            for listener in self._listeners.values():
                self._watch_listener(listener)

    # --- verbs: each takes the worker's slot, its message and its fds (closed afterwards)

    def _spawn(self, slot: Slot, message: dict[str, Any], fds: list[int]) -> None:
        attributes = Attributes.from_json(message["attributes"]) if message["attributes"] else self._inherited
        cwd = fds[-1] if message["cwd"] is None else message["cwd"]
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            pid = self._fork(
                lambda: children.become_program(
                    message["argv"],
                    env=message["env"],
                    cwd=cwd,
                    fds=dict(zip(message["targets"], fds, strict=False)),
                    attributes=attributes,
                    failure=writing,
                )
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._record(slot, pid, message["name"])
        asker = slot.pid
        # it ends at exec; a program on a dead file system keeps only its own caller waiting
        self._watch(reading, select.POLLIN, lambda _events: self._on_exec(slot, asker, message["call"], pid, reading))

    def _on_exec(self, slot: Slot, asker: int, call: int, pid: int, reading: int) -> None:
        try:
            told = os.read(reading, 65536)
        except BlockingIOError:
            return
        self._unwatch(reading)
        os.close(reading)
        if slot.pid != asker:
            return  # the next worker was born with this child, and will see its end
        if not told:
            self._answer_child(slot, call, pid)
            return
        self._reap_failed(pid)
        self._tell(slot, {"answer": call, "error": json.loads(told)})

    def _reap_failed(self, pid: int) -> None:
        """Reap a child that is in its exit, later if it is long about it (closing a file on a dead server)."""
        self._failed.add(pid)
        if os.waitpid(pid, os.WNOHANG)[0]:
            self._failed.discard(pid)
            self.children.pop(pid, None)

    def _fork_child(self, slot: Slot, message: dict[str, Any], fds: list[int]) -> None:
        named = dict(zip(message["fds"], fds, strict=True))
        pid = self._fork(
            lambda: children.become_python(
                message["name"],
                lambda: children.load(message["entry"])(message["argument"], named),
                keep=fds,
                attributes=self._inherited,
            )
        )
        self._record(slot, pid, message["name"])
        self._answer_child(slot, message["call"], pid)

    def _fork_other(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        name = message["name"]
        if name in self.slots:
            raise Refused(errno.EEXIST, f"worker {name} exists")
        other = self.slots[name] = Slot(name, message["entry"] or self._first, message["argument"])
        self._fork_worker(other)
        if not other.pid:
            del self.slots[name]
            raise Refused(errno.EAGAIN, f"worker {name} can not be forked")
        self._tell(slot, {"answer": message["call"], "pid": other.pid}, os.pidfd_open(other.pid))

    def _record(self, slot: Slot, pid: int, name: str) -> None:
        self.children[pid] = Child(name, slot.name, time.monotonic())
        self._made += 1
        slot.idle_at = None

    def _answer_child(self, slot: Slot, call: int, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:  # the fd table is full: the child lives, and its worker must know its pid
            self._tell(slot, {"answer": call, "pid": pid, "error": {"errno": error.errno, "text": "no pidfd"}})
            return
        self._tell(slot, {"answer": call, "pid": pid}, pidfd)

    def _claim(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        self.children[message["pid"]] = Child(message["name"], slot.name, None)

    def _unclaimed(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        dead = [
            pid
            for pid in self._all_children() - self.children.keys()
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        ]
        since = time.monotonic() - message["in_flight_s"]
        in_flight = sum(child.made is not None and child.made > since for child in self.children.values())
        self._tell(slot, {"answer": message["call"], "pids": dead, "made": self._made, "in_flight": in_flight})

    def _peek(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        pid = message["pid"]
        if self._is_worker(pid):
            raise Refused(errno.ECHILD, f"process {pid} is a worker")
        try:
            seen = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            raise Refused(errno.ECHILD, f"process {pid} is no child of the keeper") from None
        answer: dict[str, Any] = {"answer": message["call"]}
        if seen is not None:
            answer["exit"] = [seen.si_status, None] if seen.si_code == os.CLD_EXITED else [None, seen.si_status]
        self._tell(slot, answer)

    def _reap(self, _slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        pid = message["pid"]
        if pid <= 0 or self._is_worker(pid):
            raise Refused(errno.ECHILD, f"process {pid} is not to be reaped")
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                self.children.pop(pid, None)
        except ChildProcessError:
            self.children.pop(pid, None)  # reaped before

    def _is_worker(self, pid: int) -> bool:
        return any(slot.pid == pid for slot in self.slots.values())

    def _store(self, slot: Slot, message: dict[str, Any], fds: list[int]) -> None:
        owner, name = message["owner"] or slot.name, message["name"]
        self._drop(owner, name)
        self.store[owner, name] = fds.pop()
        slot.idle_at = None
        if owner != slot.name and owner in self.slots:
            self._tell(self.slots[owner], {"say": "given", "name": name})

    def _release(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        self._drop(message["owner"] or slot.name, message["name"])

    def _drop(self, owner: str, name: str) -> None:
        self._forget_listener(owner, name)
        fd = self.store.pop((owner, name), None)
        if fd is not None:
            os.close(fd)
            if self._resume_at is not None:
                self._resume_accepting()

    def _idle(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        after_s = message["after_s"]
        slot.idle_at = None if after_s is None else time.monotonic() + after_s

    # --- accepting

    def _accept_on(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        key = (slot.name, message["name"])
        if key in self._listeners:
            return
        if key not in self.store:
            raise Refused(errno.ENOENT, f"{message['name']} is not in the store")
        sock = socket.socket(fileno=os.dup(self.store[key]))
        sock.setblocking(False)
        self._listeners[key] = Listener(slot.name, message["name"], sock)
        self._watch_listener(self._listeners[key])

    def _stop_accepting(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        self._forget_listener(slot.name, message["name"])

    def _forget_listener(self, owner: str, name: str) -> None:
        listener = self._listeners.pop((owner, name), None)
        if listener is not None:
            self._unwatch(listener.sock.fileno())
            listener.sock.close()

    def _watch_listener(self, listener: Listener) -> None:
        fd, slot = listener.sock.fileno(), self.slots.get(listener.owner)
        if self._resume_at is not None or (slot is not None and slot.held):
            self._unwatch(fd)
        elif fd not in self._ready:
            self._watch(fd, select.POLLIN, lambda events: self._accept(listener, events))

    def _accept(self, listener: Listener, events: int) -> None:
        owner, name = listener.owner, listener.name
        if events & select.POLLHUP:  # somebody has shut it down: it would be ready for ever, and give nothing
            self._log(f"nothing more is accepted on {name}")
            self._forget_listener(owner, name)
            return
        try:
            connection, _ = listener.sock.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                if not self._full:
                    self._log(f"accept on {name}: {error.strerror}; tried again every {RETRY_S} s")
                self._full = True
                self._resume_at = time.monotonic() + RETRY_S
                for other in self._listeners.values():
                    self._unwatch(other.sock.fileno())
            return  # else it was gone before it was accepted
        self._full = False
        self._accepted += 1
        stored = f"{name}#{self._accepted}"
        self.store[owner, stored] = connection.detach()
        slot = self.slots.get(owner)
        if slot is not None:
            slot.idle_at = None
            self._tell(slot, {"say": "accepted", "listener": name, "name": stored})

    def _resume_accepting(self) -> None:
        self._resume_at = None
        for listener in self._listeners.values():
            self._watch_listener(listener)

    _verbs: Mapping[str, Callable[[Keeper, Slot, dict[str, Any], list[int]], None]] = {
        "spawn": _spawn,
        "fork": _fork_child,
        "worker": _fork_other,
        "claim": _claim,
        "unclaimed": _unclaimed,
        "peek": _peek,
        "reap": _reap,
        "store": _store,
        "release": _release,
        "accept_on": _accept_on,
        "stop_accepting": _stop_accepting,
        "idle": _idle,
    }
