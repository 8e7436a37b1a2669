"""``python -m dunnage.keeper --state DIR --lock-fd N --control-fd N``: what the launcher executes, once per state.

The launcher has locked ``DIR/lock`` and listens on ``DIR/control`` already (so that others queue in its backlog), has
left its session, and has put stderr onto ``DIR/log``. The lock is held for as long as this process lives, and by nobody
else.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import signal
import stat
import sys
import time
from collections.abc import Sequence

from dunnage.keeper import children
from dunnage.keeper.loop import Keeper
from dunnage.keeper.workers import NODE
from dunnage.linux import process
from dunnage.linux.attributes import Attributes, set_oom_score_adj

LOG_BYTES = 1 << 20

# the kernel sends these for our own mistakes: a handler would return into the fault for ever
FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    children.close_all_but([options.lock_fd, options.control_fd])
    process.set_child_subreaper()
    process.leave_terminal()
    for fd in (options.lock_fd, options.control_fd):
        os.set_inheritable(fd, False)
    inherited = Attributes.of(os.getpid())
    _raise_own_limits()
    sys.modules["ssl"] = None  # type: ignore[assignment]  # asyncio then does without: 4 MB and 10 ms for nothing
    children.load(options.worker)  # the warm image
    keeper = Keeper(first=options.worker, argument=json.loads(options.argument), inherited=inherited, log=log)
    os.set_blocking(options.control_fd, False)
    keeper.store.put(NODE, "control", options.control_fd)
    _handle_signals(keeper)
    process.set_name(children.COMM)
    process.set_title([children.TITLE, "keeper", options.state])
    os.ftruncate(options.lock_fd, 0)
    os.pwrite(options.lock_fd, f"{os.getpid()}\n".encode(), 0)
    gc.collect()
    gc.freeze()
    keeper.serve(may_end=is_machine_going_down)
    # The path goes first, then the listener (and who waits in its backlog sees the connection end, which means "ask
    # again"), then the lock: whoever finds no socket waits for the lock and starts a keeper.
    try:
        os.unlink(f"{options.state}/control")
    except FileNotFoundError:
        log(f"{options.state}/control was removed by someone else")
    os.ftruncate(options.lock_fd, 0)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dunnage.keeper")
    parser.add_argument("--state", required=True, help="directory of the control socket, the lock and the log")
    parser.add_argument("--lock-fd", type=int, required=True, help="the state's lock, held exclusively")
    parser.add_argument("--control-fd", type=int, required=True, help="the listening control socket")
    parser.add_argument("--worker", default="dunnage.worker.main:main", help="module:function that a worker runs")
    parser.add_argument("--argument", default="null", help="JSON handed to the worker")
    parser.add_argument("padding", nargs="*", help="room for the process title")
    options = parser.parse_args(arguments)
    options.state = os.path.abspath(options.state)
    return options


def log(text: str) -> None:
    """Write a line to stderr, which is ``DIR/log``: emptied when it has become long, since it lies in memory."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f'time="{moment}" level=warning msg={json.dumps(f"keeper: {text}")}\n'
    try:
        status = os.fstat(2)
        if stat.S_ISREG(status.st_mode) and status.st_size > LOG_BYTES:
            os.ftruncate(2, 0)
        os.write(2, line.encode())
    except OSError:
        pass  # a full /run: there is nowhere to say so, and a keeper does not die of it


def is_machine_going_down() -> bool:
    """Whether systemd is ending everything; see docs/decisions/keeper-sigterm.md."""
    try:
        with open("/proc/1/comm", encoding="ascii", errors="replace") as file:
            if file.read().startswith("systemd-shutdow"):
                return True
    except OSError:
        pass  # a /proc with hidepid: the other signs remain
    if not os.path.isdir("/run/systemd/system") or not os.path.exists("/run/nologin"):
        return False
    try:
        with open("/run/systemd/shutdown/scheduled", encoding="ascii", errors="replace") as file:
            moments = [int(line[5:]) for line in file if line.startswith("USEC=")]
    except (FileNotFoundError, ValueError):
        return True  # nologin with nothing scheduled: the shutdown is on
    except OSError:
        return False  # it can not be known now (the fd table is full, perhaps)
    return any(moment <= time.time() * 1e6 for moment in moments)


def _raise_own_limits() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for score in (-1000, -999):
        try:
            set_oom_score_adj(score)
            return
        except OSError:
            continue  # it takes CAP_SYS_RESOURCE: then we stay what we were started as


def _handle_signals(keeper: Keeper) -> None:
    """Let no signal end or stop us. Handlers, not SIG_IGN: exec resets those by itself, and children start clean."""

    def ignore(_number: int, _frame: object) -> None:
        pass

    def terminate(_number: int, _frame: object) -> None:
        keeper.terminate = True

    for number in signal.valid_signals() - FAULTS - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, ignore)
    signal.signal(signal.SIGTERM, terminate)
