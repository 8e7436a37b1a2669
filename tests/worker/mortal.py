"""A worker that is killed just before its n-th effect: whatever others could see of it between two is thereby tried.

An effect is a message to the keeper, an answer, a read from a socket, a file or a journal written, a signal. ``n`` is
in the file that ``MORTAL`` names; who reads it removes it, so that the next worker lives.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from dunnage.worker import main as worker_main

FILE = "MORTAL"


def main(argument: Any, inherited: Any) -> int:
    path = os.environ[FILE]
    try:
        with open(path) as file:
            last = int(file.read())
    except FileNotFoundError:
        return worker_main.main(argument, inherited)
    os.unlink(path)
    done = 0

    def mortal(effect: Callable[..., Any]) -> Callable[..., Any]:
        def before(*args: Any, **settings: Any) -> Any:
            nonlocal done
            done += 1
            if done == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return effect(*args, **settings)

        return before

    for room, names in (
        (os, ("pwrite", "rename", "unlink", "mkdir", "ftruncate", "splice")),
        (socket.socket, ("send", "sendmsg", "recv", "recvmsg", "bind", "listen")),
        (signal, ("pidfd_send_signal",)),
    ):
        for name in names:
            if hasattr(room, name):
                setattr(room, name, mortal(getattr(room, name)))
    return worker_main.main(argument, inherited)
