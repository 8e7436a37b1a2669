"""A worker that is asked for its state (SIGUSR1) from its first breath on, and before each of its effects."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from dunnage.worker import main as worker_main


def main(argument: Any, inherited: Any) -> int:
    os.kill(os.getpid(), signal.SIGUSR1)  # before there is a handler

    def asked(effect: Callable[..., Any]) -> Callable[..., Any]:
        def before(*args: Any, **settings: Any) -> Any:
            os.kill(os.getpid(), signal.SIGUSR1)
            return effect(*args, **settings)

        return before

    for room, names in (
        (os, ("pwrite", "rename", "unlink", "splice")),
        (socket.socket, ("send", "sendmsg", "recv", "recvmsg", "bind", "listen")),
    ):
        for name in names:
            setattr(room, name, asked(getattr(room, name)))
    return worker_main.main(argument, inherited)
