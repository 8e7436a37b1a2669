"""A container's state on disk: taken by criu through the runtime, and a container made of it again.

criu works in a directory of its own, and logs there: beside the image, where the options name one, else in the bundle
for as long as the call lasts (shim v2, §5.3).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

from dunnage.container.bundle import Bundle
from dunnage.container.facts import Checkpoint, CheckpointOptions, Options
from dunnage.container.means import Means
from dunnage.errors import DeadlineExceeded, Error
from dunnage.runtime import arguments

DUMP_LOG = "dump.log"
KEPT_LOG = "criu-dump.log"
TIDY = "dunnage.container.checkpoint:tidy"


async def take(means: Means, path: str, options: CheckpointOptions) -> None:
    """Have the runtime write the container's state to the directory ``path``; on failure criu's log is in the bundle.
    ``tidy_up`` is to be called after success, when that is written down. Raises Error."""
    means.bundle.make_work()
    criu = arguments.Criu(
        path,
        work_path=_work_path(means.bundle, options),
        parent_path=options.parent_path,
        open_tcp=options.open_tcp,
        external_unix_sockets=options.external_unix_sockets,
        terminal=options.terminal,
        file_locks=options.file_locks,
        empty_namespaces=options.empty_namespaces,
    )
    try:
        await means.runtime.checkpoint(means.id, arguments.Checkpoint(criu, leave_running=not options.exit))
    except DeadlineExceeded:
        await tidy_up(means, options, keep_log=True)
        raise
    except Error as error:
        await tidy_up(means, options, keep_log=True)
        kept = os.path.join(means.bundle.path, KEPT_LOG)
        raise Error(f"{str(error).partition(chr(10))[0]} path= {kept}") from error


async def tidy_up(means: Means, options: CheckpointOptions, *, keep_log: bool) -> None:
    """Remove criu's own directory, unless the client named one; keep its log first, where that is asked for."""
    argument = {
        "work": _work_path(means.bundle, options),
        "log": os.path.join(means.bundle.path, KEPT_LOG) if keep_log else None,
        "remove": not options.work_path,
    }
    try:
        await means.host.run_elsewhere(f"tidy:{means.name}", TIDY, argument, "tidying up after criu")
    except Error as error:
        means.log.error("after a checkpoint of container %s: %s", means.id, error)


def tidy(argument: Any, fds: Mapping[str, int]) -> int:
    """What the child of ``tidy_up`` runs; what failed goes, in words, to ``fds["error"]``."""
    failures = []
    if argument["log"] is not None:
        try:
            shutil.copyfile(os.path.join(argument["work"], DUMP_LOG), argument["log"])
        except OSError as error:
            failures.append(f"criu's log is not kept: {error}")
    if argument["remove"] and os.path.lexists(argument["work"]):
        shutil.rmtree(argument["work"], onerror=lambda _, path, error: failures.append(f"{path}: {error[1]}"))
    os.write(fds["error"], "; ".join(failures).encode(errors="replace"))
    return 1 if failures else 0


def restore_arguments(
    bundle: Bundle, options: Options, checkpoint: Checkpoint, console_socket: str | None
) -> arguments.Restore:
    """How the runtime makes a container of ``checkpoint``."""
    criu = arguments.Criu(
        checkpoint.path,
        work_path=options.criu_work_path or bundle.work,
        parent_path=checkpoint.parent,
    )
    return arguments.Restore(criu, bundle.path, bundle.init_pid_path, console_socket, no_pivot=options.no_pivot_root)


def _work_path(bundle: Bundle, options: CheckpointOptions) -> str:
    return options.work_path or os.path.join(bundle.work, "criu-work")
