"""Programs that mount and unmount for us: the helpers of FUSE.

They get what the container's launcher handed down, as containerd meant it, and are of the calling child's process
group, so that what is killed together with that child is all that a helper has left in the foreground.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Mapping

from dunnage.errors import Error
from dunnage.linux.mount_plan import Helper, quoted

_CHUNK_BYTES = 65536
_KEPT_BYTES = 16384  # of what a helper says
UNMOUNTERS = ("fusermount3", "fusermount")


def mount_by_helper(helper: Helper, target: str, env: Mapping[str, str]) -> None:
    """Raises Error with all that it said."""
    arguments = [helper.source, target, *helper.options]
    said = b""
    try:
        status, said = _run(helper.program, arguments, env)
        reason = f"exit status {status}" if status >= 0 else f"signal: {signal.strsignal(-status) or -status}".lower()
    except OSError as error:
        status, reason = -1, str(error.strerror)
    if status:
        command = " ".join([helper.program, f"[{' '.join(arguments)}]"])
        raise Error(f"mount helper [{command}] failed: {quoted(said.decode(errors='surrogateescape'))}: {reason}")


def unmount_by_helper(point: str, env: Mapping[str, str]) -> bool:
    """Whether one of them has unmounted the FUSE file system at ``point``."""
    for program in UNMOUNTERS:
        try:
            if _run(program, ["-u", point], env)[0] == 0:
                return True
        except OSError:
            continue  # it is not there: the next one, or else the system call
    return False


def _run(program: str, arguments: list[str], env: Mapping[str, str]) -> tuple[int, bytes]:
    """Its exit status, and what it said until it ended: a file system that it leaves running may keep the pipe."""
    found = shutil.which(program, path=env.get("PATH", ""))
    if found is None:
        raise OSError(0, f"exec: {quoted(program)}: executable file not found in $PATH")
    said = bytearray()
    reading, writing = os.pipe()
    try:
        try:
            child = subprocess.Popen(
                [program, *arguments],
                executable=found,
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                cwd="/",
                env=dict(env),
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"fork/exec {found}: {reason[:1].lower()}{reason[1:]}") from error
        finally:
            os.close(writing)
        try:
            pidfd = os.pidfd_open(child.pid)
            try:
                _read_until_end(reading, pidfd, said)
            finally:
                os.close(pidfd)
        except BaseException:
            child.kill()
            raise
        finally:
            status = child.wait()
        return status, bytes(said)
    finally:
        os.close(reading)


def _read_until_end(reading: int, pidfd: int, said: bytearray) -> None:
    """Take what comes until the process has ended and nothing more is there."""
    os.set_blocking(reading, False)
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    has_ended = False
    while True:
        ready = {fd for fd, _ in poll.poll()}
        has_ended = has_ended or pidfd in ready
        if reading in ready:
            chunk = os.read(reading, _CHUNK_BYTES)
            said += chunk[: _KEPT_BYTES - len(said)]
            if chunk:
                continue
            poll.unregister(reading)
            reading = -1
        if has_ended:
            return
