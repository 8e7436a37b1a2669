"""A launcher as `dunnage install` writes it, with a state root of its own and a stub in the keeper's place."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from dunnage.cli.install import LAUNCHER, write_launchers

STUB_KEEPER = """#!/usr/bin/python3 -ISE
import os, socket, sys, time
given = dict(zip(sys.argv[4:-1:2], sys.argv[5:-1:2]))
with open(given["--state"] + "/starts", "a") as file:
    file.write(f"{os.getpid()} {os.getppid()} {os.getsid(0)} {os.getcwd()} {sorted(os.listdir('/proc/self/fd'))}\\n")
listener = socket.socket(fileno=int(given["--control-fd"]))
while True:
    peer, _ = listener.accept()
    with peer:
        size = int.from_bytes(peer.recv(5, socket.MSG_WAITALL)[1:], "little")
        peer.recv(size, socket.MSG_WAITALL)
        words = b"unix:///run/stub"
        peer.sendall(b"A\\0" + len(words).to_bytes(4, "little") + bytes(4) + words)
"""


def answer(kind: bytes = b"A", status: int = 0, stdout: bytes = b"", stderr: bytes = b"") -> bytes:
    """An answer's bytes, spelt out: the wire is the contract."""
    return (
        kind + bytes([status]) + len(stdout).to_bytes(4, "little") + len(stderr).to_bytes(4, "little") + stdout + stderr
    )


class Room:
    """A directory with a launcher, its state root and a bundle."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.state = top / "state"
        self.bundle = top / "tasks" / "c1"
        self.bundle.mkdir(parents=True)
        self.python = top / "python"
        self.install(STUB_KEEPER)
        self._listeners: list[socket.socket] = []

    def install(self, keeper: str) -> None:
        """Write the launcher anew, with this script in the place of the keeper's interpreter."""
        self.python.write_text(keeper)
        self.python.chmod(0o755)
        (self.launcher,) = write_launchers(self.top, python=str(self.python), state_root=str(self.state))
        assert self.launcher.name == LAUNCHER

    def argv(self, action: str, *more: str) -> list[str]:
        return [str(self.launcher), "-namespace", "default", *more, "-id", "c1", action]

    def launch(
        self,
        action: str = "start",
        *more: str,
        stdin: bytes = b"",
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.argv(action, *more),
            input=stdin,
            cwd=self.bundle,
            env={**os.environ, **(env or {})},
            capture_output=True,
            timeout=60,
        )

    def listen(self, key: str = "local", backlog: int = 16) -> socket.socket:
        """The control socket of a key, in the test's hands."""
        (self.state / key).mkdir(parents=True, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        self._listeners.append(listener)
        listener.bind(str(self.state / key / "control"))
        listener.listen(backlog)
        return listener

    def serve(self, behave: Sequence[Callable[[socket.socket], None]], key: str = "local") -> None:
        """Answer connections one after another, each by the next of these; the last serves all that follow."""
        listener = self.listen(key)

        def run() -> None:
            remaining = list(behave)
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer, contextlib.suppress(BrokenPipeError):  # who only looks whether somebody listens says nothing
                    if peer.recv(1, socket.MSG_PEEK):
                        (remaining.pop(0) if len(remaining) > 1 else remaining[0])(peer)

        threading.Thread(target=run, daemon=True).start()

    def starts(self, key: str = "local") -> list[list[str]]:
        """What each stub keeper of a key wrote about itself: pid, parent, session, working directory, descriptors."""
        path = self.state / key / "starts"
        return [line.split(" ", 4) for line in path.read_text().splitlines()] if path.exists() else []

    def close(self) -> None:
        for listener in self._listeners:
            if listener.fileno() >= 0:
                listener.shutdown(socket.SHUT_RDWR)  # which ends an accept that another thread waits in
                listener.close()
        for path in self.state.glob("*/starts"):
            for pid, *_ in self.starts(path.parent.name):
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass


def read_request(peer: socket.socket) -> bytes:
    """A request's body."""
    head = peer.recv(5, socket.MSG_WAITALL)
    return peer.recv(int.from_bytes(head[1:], "little"), socket.MSG_WAITALL)


def answering(text: bytes) -> Callable[[socket.socket], None]:
    """Takes the request and says this."""

    def behave(peer: socket.socket) -> None:
        read_request(peer)
        peer.sendall(text)

    return behave
