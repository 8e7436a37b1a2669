"""A machine for a test: a mount namespace with an empty /run/dunnage, and the installed `dunnage` in it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BUSYBOX = Path("/bin/busybox")
DUNNAGE = Path(sys.executable).with_name("dunnage")
LIMIT_S = 60.0


class Machine:
    """Commands run in a mount namespace of their own, so that its keeper is nobody else's."""

    def __init__(self) -> None:
        Path("/run/dunnage").mkdir(mode=0o700, exist_ok=True)
        script = "mount -t tmpfs tmpfs /run/dunnage && echo ready && exec cat"
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", f"--wd={os.getcwd()}", *command]

    def command(self, *arguments: str) -> list[str]:
        return self.inside(str(DUNNAGE), *arguments)

    def dunnage(
        self, *arguments: str, stdin: bytes = b"", status: int | None = 0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `dunnage`; its exit status must be `status`, unless that is None."""
        done = subprocess.run(self.command(*arguments), input=stdin, capture_output=True, timeout=LIMIT_S)
        if status is not None and done.returncode != status:
            raise AssertionError(f"dunnage {' '.join(arguments)}: {done.returncode}\n{done.stdout!r}\n{done.stderr!r}")
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.dunnage(*arguments).stdout)

    def begin(self, *arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(*arguments), **streams)

    def mounts(self) -> list[str]:
        """What is mounted below /run/dunnage there."""
        points = [line.split()[4] for line in Path(f"/proc/{self._holder.pid}/mountinfo").read_text().splitlines()]
        return [point for point in points if point.startswith("/run/dunnage/")]

    def end(self) -> None:
        try:
            self.dunnage("stop", "--all")
            left = self.mounts()
            assert not left, left
            keepers = json.loads(self.dunnage("status", "--json").stdout)
            assert keepers == []
        finally:
            assert self._holder.stdin is not None
            self._holder.stdin.close()
            self._holder.wait(LIMIT_S)
            assert self._holder.stdout is not None
            self._holder.stdout.close()


class Terminal:
    """A `dunnage` that has a terminal, which we hold the other end of."""

    def __init__(self, command: Sequence[str], *, columns: int = 90, rows: int = 30) -> None:
        self._master, slave = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(slave)

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, preexec_fn=take_terminal, close_fds=True
        )
        self._slave = slave
        self.seen = b""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def signal_resize(self, columns: int, rows: int) -> None:
        self.resize(columns, rows)
        self.process.send_signal(signal.SIGWINCH)

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def wait_for(self, text: bytes) -> None:
        """Read until `text` has come."""
        while text not in self.seen:
            ready, _, _ = select.select([self._master], [], [], LIMIT_S)
            assert ready, f"{text!r} did not come: {self.seen!r}"
            self.seen += os.read(self._master, 65536)

    def forget(self) -> None:
        self.seen = b""

    def wait(self) -> int:
        status = self.process.wait(LIMIT_S)
        assert termios.tcgetattr(self._slave) == self.before, "the terminal was not put back"
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)


def make_rootfs(root: Path) -> Path:
    """A root with busybox in it, and nothing else."""
    for name in ("bin", "dev", "etc", "proc", "root", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for applet in subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nsomebody:x:1234:1235::/tmp:/bin/sh\n")
    (root / "bin/not-a-program").write_text("no")
    return root
