"""Who was killed for lack of memory: an exit status of 137 alone does not say it."""

from __future__ import annotations

import signal

from dunnage import errors
from dunnage.cli.main import say
from dunnage.cli.signals import SIGNALLED
from dunnage.cli.sizes import size_text
from dunnage.client import Container

_KILLED = SIGNALLED + signal.SIGKILL


async def say_if_out_of_memory(container: Container, status: int) -> None:
    """Say on stderr that a container which ended so, and is not removed yet, ran out of memory, where it did."""
    if status != _KILLED:
        return
    try:
        memory = (await container.stats()).memory
    except errors.Error:
        return  # its exit status is all that is known then
    if memory.oom_kills:
        limit = "" if memory.limit_bytes is None else f" (limit {size_text(memory.limit_bytes)})"
        killed = "one process" if memory.oom_kills == 1 else f"{memory.oom_kills} processes"
        say(f"container {container.id} ran out of memory{limit}: the kernel killed {killed} of it")
