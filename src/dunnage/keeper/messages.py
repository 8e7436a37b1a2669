"""The wire between keeper and worker: one JSON object and its fds per packet of a SOCK_SEQPACKET socketpair.

An object too large for a packet travels in a memfd, the last of its packet's fds; the packet itself then keeps the keys
that say what it is (``HEAD``). Fds received belong to the receiver, and are close-on-exec.

Worker to keeper: ``verb`` (and ``call``, where an answer is awaited).
Keeper to worker: ``answer`` (to that call; ``error`` when it failed), or ``say``: died, accepted, given. Only those two
last carry an fd.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

INLINE_BYTES = 60 * 1024  # well below the default net.core.wmem_default
MAX_FDS = 250  # the kernel takes 253 per packet (SCM_MAX_FD); one may be the memfd
HEAD = ("verb", "call", "answer", "say", "name")

# no room in a table or in memory: what needs room is tried again after RETRY_S
PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
RETRY_S = 0.1


class Packet(NamedTuple):
    """``truncated``: fds were lost (the table is full), the others are closed; of a large message this is the head."""

    message: dict[str, Any]
    fds: list[int]
    truncated: bool


class Inherited(NamedTuple):
    """What a worker is born with: the socket to its keeper; its stored fds by name; its unreaped children by pid."""

    sock: socket.socket
    fds: Mapping[str, int]
    children: Mapping[int, str]
    keeper_pid: int
    name: str


class Refused(Exception):
    """The answer to a request that can not be done: errno (0 for none) and text."""


class TooManyFds(ValueError):
    """More fds than one packet carries."""


def send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one packet; raises BlockingIOError when the socket is full. The fds stay the sender's."""
    if len(fds) > MAX_FDS:
        raise TooManyFds(f"{len(fds)} fds in one message, at most {MAX_FDS} can be carried")
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(body) <= INLINE_BYTES:
        _send_packet(sock, body, fds)
        return
    head = {key: message[key] for key in HEAD if key in message}
    with os.fdopen(os.memfd_create("dunnage-message"), "wb", buffering=0) as memfd:
        memfd.write(body)
        _send_packet(sock, json.dumps({**head, "memfd": True}).encode("ascii"), [*fds, memfd.fileno()])


def _send_packet(sock: socket.socket, body: bytes, fds: Sequence[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([body], ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> Packet | None:
    """The next packet; None at the end; raises BlockingIOError when there is none yet, ValueError when it is none of
    ours."""
    space = socket.CMSG_SPACE((MAX_FDS + 3) * array.array("i").itemsize)
    body, ancillary, flags, _ = sock.recvmsg(INLINE_BYTES + 4096, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not body:
        return None
    received = list(fds)
    try:
        message: dict[str, Any] = json.loads(body)
        if flags & socket.MSG_CTRUNC:
            close_all(received)
            return Packet(message, [], True)
        if message.get("memfd"):
            with os.fdopen(received.pop(), "rb") as memfd:
                memfd.seek(0)
                message = json.loads(memfd.read())
    except ValueError:
        close_all(received)
        raise
    return Packet(message, received, False)


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
