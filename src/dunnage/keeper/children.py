"""A new child of the keeper: its `fork`, and what happens then until its own life: `become_program`, `become_python`.

In a child nothing here returns: it ends in exec or in ``os._exit``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import json
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from dunnage.linux import process
from dunnage.linux.attributes import Attributes

TITLE = "containerd-shim-dunnage-v2"
COMM = "containerd-shim"  # what node tools look for


def load(entry: str) -> Callable[..., Any]:
    """The function that ``module:function`` names."""
    module, _, function = entry.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def fork(become: Callable[[], NoReturn]) -> int:
    """Fork with every signal blocked: the child lifts that when none of the keeper's handlers is left in it."""
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


def become_program(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | int,
    fds: Mapping[int, int],
    attributes: Attributes,
    failure: int,
) -> NoReturn:
    """Run ``argv``; ``fds`` maps target to source, every other fd is closed and 0, 1, 2 default to /dev/null.

    What goes wrong is written to ``failure`` (close-on-exec) as JSON: errno and text.
    """
    status = 127
    try:
        close_all_but([*fds.values(), failure, *([cwd] if isinstance(cwd, int) else [])])
        failure = _lift(failure, fds)
        try:
            os.chdir(cwd)
        except OSError as error:
            raise _worded(error, f"chdir {cwd}") from error
        _place(fds)
        attributes.apply()
        _reset_signals()
        _exec(argv, env)
    except OSError as error:
        _tell(failure, error.errno or 0, error.strerror or str(error))
    except BaseException as error:  # noqa: BLE001 - the keeper answers with it, and this process ends here
        _tell(failure, 0, f"{type(error).__name__}: {error}")
        status = 126
    finally:
        os._exit(status)


def become_python(
    name: str,
    run: Callable[[], int | None],
    *,
    keep: Iterable[int],
    attributes: Attributes,
    blocked: Iterable[int] = (),
) -> NoReturn:
    """Run a function of the warm image with no fds but 0, 1, 2 and ``keep``; its result is the exit status.

    The signals ``blocked`` stay so: for those that would end it, were they to come before it has its handlers."""
    status = 1
    try:
        close_all_but(keep)  # first: the rest takes an fd for a moment, and the keeper may have none left
        attributes.apply()
        signal.set_wakeup_fd(-1)
        _reset_signals(blocked)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as in every Python process
        process.set_name(COMM)
        process.set_title([TITLE, *name.split(" ")])
        status = run() or 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1 if leaving.code else 0
    except BaseException:  # noqa: BLE001 - the end of this process, and its log is stderr
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # nobody is left to tell
                stream.flush()
        os._exit(status & 0xFF)


def close_all_but(keep: Iterable[int]) -> None:
    """Close every fd of this process except 0, 1, 2 and ``keep``."""
    low = 3
    for fd in sorted({fd for fd in keep if fd > 2}):
        os.closerange(low, fd)
        low = fd + 1
    try:
        last = max(map(int, os.listdir("/proc/self/fd")))
    except OSError:  # not one is left for the list: they reach up to the limit
        last = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.closerange(low, max(low, last) + 1)


def _lift(fd: int, fds: Mapping[int, int]) -> int:
    """A copy of ``fd`` above every target, so that placing the others can not overwrite it."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(fds, default=2) + 3)


def _place(fds: Mapping[int, int]) -> None:
    wanted = dict(fds)
    if any(target not in wanted for target in (0, 1, 2)):
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for target in (0, 1, 2):
            wanted.setdefault(target, null)
    lifted = {target: _lift(source, wanted) for target, source in wanted.items()}
    for target, source in lifted.items():
        os.dup2(source, target, inheritable=True)


def _reset_signals(blocked: Iterable[int] = ()) -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _exec(argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    command = argv[0]
    if "/" in command:
        try:
            os.execve(command, list(argv), dict(env))
        except OSError as error:
            raise _worded(error, f"fork/exec {command}") from error
    for directory in env.get("PATH", "").split(":"):
        path = f"{directory}/{command}"
        if not directory.startswith("/") or not os.access(path, os.X_OK) or os.path.isdir(path):
            continue
        try:
            os.execve(path, list(argv), dict(env))
        except OSError as error:
            raise _worded(error, f"fork/exec {path}") from error
    raise OSError(errno.ENOENT, f"exec: {json.dumps(command)}: executable file not found in $PATH")


def _worded(error: OSError, action: str) -> OSError:
    """The same error in the words that Go's os/exec has for it, which clients know."""
    reason = error.strerror or str(error)
    return OSError(error.errno, f"{action}: {reason[:1].lower()}{reason[1:]}")


def _tell(failure: int, number: int, text: str) -> None:
    with contextlib.suppress(OSError):  # the keeper is gone, and with it whoever asked
        while len(told := json.dumps({"errno": number, "text": text}).encode("ascii")) > select.PIPE_BUF:
            text = text[: len(text) // 2]  # a path may be as long: what is told is told in one piece
        os.write(failure, told)
