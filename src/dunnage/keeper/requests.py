"""What workers ask of the keeper: one method per verb, and nothing in it waits for anybody."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from dunnage.keeper import children, messages
from dunnage.keeper.accepting import Accepting
from dunnage.keeper.ledger import Ledger
from dunnage.keeper.messages import Refused
from dunnage.keeper.poll import Poll
from dunnage.keeper.post import Post
from dunnage.keeper.slots import Slot
from dunnage.keeper.store import Store
from dunnage.keeper.workers import NODE, Workers
from dunnage.linux.attributes import Attributes


class Requests:
    def __init__(
        self,
        poll: Poll,
        slots: dict[str, Slot],
        store: Store,
        ledger: Ledger,
        post: Post,
        accepting: Accepting,
        workers: Workers,
        *,
        first: str,
        inherited: Attributes,
        log: Callable[[str], None],
    ) -> None:
        self._poll = poll
        self._slots = slots
        self._store = store
        self._ledger = ledger
        self._post = post
        self._accepting = accepting
        self._workers = workers
        self._first = first
        self._inherited = inherited  # what children get when the request does not say
        self._log = log

    def take(self, slot: Slot) -> bool:
        """Do one request; false when there is none (now, or ever again)."""
        assert slot.sock is not None
        try:
            packet = messages.receive(slot.sock)
        except BlockingIOError:
            return False
        except ConnectionError:
            packet = None
        except ValueError as error:
            self._log(f"worker {slot.name} is not understood: {error}")
            packet = None
        if packet is None:
            self._workers.hang_up(slot)
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
        except Exception as error:  # noqa: BLE001 - a mistake here costs one request, which is answered all the same
            self._log(traceback.format_exc())
            self._refuse(slot, message, errno.EINVAL, f"{message.get('verb')}: {type(error).__name__}: {error}")
        finally:
            messages.close_all(fds)
        return True

    def _refuse(self, slot: Slot, message: dict[str, Any], number: int, text: str) -> None:
        if "call" in message:
            self._post.tell(slot, {"answer": message["call"], "error": {"errno": number, "text": text}})
        else:
            self._log(f"{slot.name}: {message.get('verb')} {message.get('name', '')}: {text}")

    # --- verbs: each takes the worker's slot, its message and its fds (closed afterwards). Nothing that can fail comes
    # after a fork: a child is there and known, or there is none.

    def _spawn(self, slot: Slot, message: dict[str, Any], fds: list[int]) -> None:
        attributes = Attributes.from_json(message["attributes"]) if message["attributes"] else self._inherited
        cwd = fds[-1] if message["cwd"] is None else message["cwd"]
        targets = dict(zip(message["targets"], fds, strict=False))
        call, name, argv, env = message["call"], message["name"], message["argv"], message["env"]
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            pid = children.fork(
                lambda: children.become_program(
                    argv, env=env, cwd=cwd, fds=targets, attributes=attributes, failure=writing
                )
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._record(slot, pid, name)
        asker = slot.sock
        # it ends at exec; a program on a dead file system keeps only its own caller waiting
        self._poll.watch(reading, select.POLLIN, lambda _events: self._on_exec(slot, asker, call, pid, reading))

    def _on_exec(self, slot: Slot, asker: socket.socket | None, call: int, pid: int, reading: int) -> None:
        try:
            told = os.read(reading, select.PIPE_BUF)
        except BlockingIOError:
            return
        self._poll.unwatch(reading)
        os.close(reading)
        if slot.sock is not asker:
            return  # the next worker was born with this child, and will see its end
        if not told:
            self._post.tell(slot, {"answer": call, "pid": pid})
            return
        self._ledger.reap_when_dead(pid)
        self._post.tell(slot, {"answer": call, "error": json.loads(told)})

    def _fork(self, slot: Slot, message: dict[str, Any], fds: list[int]) -> None:
        call, name, entry, argument = message["call"], message["name"], message["entry"], message["argument"]
        named = dict(zip(message["fds"], fds, strict=True))
        pid = children.fork(
            lambda: children.become_python(
                name, lambda: children.load(entry)(argument, named), keep=fds, attributes=self._inherited
            )
        )
        self._record(slot, pid, name)
        self._post.tell(slot, {"answer": call, "pid": pid})

    def _record(self, slot: Slot, pid: int, name: str) -> None:
        self._ledger.record(pid, name, slot.name)
        slot.stir()

    def _worker(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        call, name = message["call"], message["name"]
        if name in self._slots:
            raise Refused(errno.EEXIST, f"worker {name} exists")
        other = self._slots[name] = Slot(name, message["entry"] or self._first, message["argument"])
        self._workers.fork(other)
        if not other.pid:
            del self._slots[name]
            raise Refused(errno.EAGAIN, f"worker {name} can not be forked")
        self._post.tell(slot, {"answer": call, "pid": other.pid})

    def _kill(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        """The worker could not take what it had asked for."""
        name = message["worker"]
        if name is None:
            self._ledger.kill(message["pid"], slot.name)
        elif name != NODE and name in self._slots:
            self._workers.end(self._slots[name])

    def _claim(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        self._ledger.claim(message["pid"], message["name"], slot.name)

    def _unclaimed(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        dead = [pid for pid in self._ledger.dead_orphans() if pid not in self._workers.pids()]
        since = time.monotonic() - message["in_flight_s"]
        answer = {
            "answer": message["call"],
            "pids": dead,
            "made": self._ledger.made,
            "oldest": self._ledger.oldest_in_flight(since),
        }
        self._post.tell(slot, answer)

    def _peek(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        pid = message["pid"]
        if pid in self._workers.pids():
            raise Refused(errno.ECHILD, f"process {pid} is a worker")
        exit = self._ledger.peek(pid)
        self._post.tell(slot, {"answer": message["call"], **({} if exit is None else {"exit": exit})})

    def _reap(self, _slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        pid = message["pid"]
        if pid <= 0 or pid in self._workers.pids():
            raise Refused(errno.ECHILD, f"process {pid} is not to be reaped")
        self._ledger.reap(pid)

    def _store_fd(self, slot: Slot, message: dict[str, Any], fds: list[int]) -> None:
        owner, name = message["owner"] or slot.name, message["name"]
        self._store.put(owner, name, fds.pop())
        slot.stir()
        if owner != slot.name and owner in self._slots:
            self._post.tell(self._slots[owner], {"say": "given", "name": name})

    def _release(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        self._store.drop(message["owner"] or slot.name, message["name"])

    def _again(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        """The worker had no room for the fd of this notice."""
        self._post.tell(slot, message["notice"])

    def _accept_on(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        self._accepting.begin(slot.name, message["name"])

    def _stop_accepting(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        self._accepting.end(slot.name, message["name"])

    def _idle(self, slot: Slot, message: dict[str, Any], _fds: list[int]) -> None:
        after_s = message["after_s"]
        slot.idle_after_s = after_s or 0.0
        slot.idle_at = None if after_s is None else time.monotonic() + after_s

    _verbs: Mapping[str, Callable[[Requests, Slot, dict[str, Any], list[int]], None]] = {
        "spawn": _spawn,
        "fork": _fork,
        "worker": _worker,
        "kill": _kill,
        "claim": _claim,
        "unclaimed": _unclaimed,
        "peek": _peek,
        "reap": _reap,
        "store": _store_fd,
        "release": _release,
        "again": _again,
        "accept_on": _accept_on,
        "stop_accepting": _stop_accepting,
        "idle": _idle,
    }
