"""What a container needs of the worker it lives in: to be handed in, never imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from dunnage.cgroups import OomWatch
from dunnage.container.facts import Mount
from dunnage.stdio import Keep, PipeBudget


class Death(NamedTuple):
    """A process was seen dead. ``status``: exit code, or 128 + signal; ``seen_at``: nanoseconds since the epoch."""

    status: int
    seen_at: int


class Watch(Protocol):
    """A process being watched; its pid cannot be reused while the watch lives."""

    pid: int

    def signal(self, number: int) -> None:
        """Send a signal. Raises ProcessLookupError when the process has ended."""

    def close(self) -> None:
        """Stop watching, and let nothing be told any more. Idempotent."""


class Host(Protocol):
    """The worker, as its containers see it."""

    @property
    def keep(self) -> Keep: ...

    @property
    def pipe_budget(self) -> PipeBudget: ...

    @property
    def oom(self) -> OomWatch: ...

    def watch(self, pid: int, on_death: Callable[[Death], None]) -> Watch:
        """Watch a child of the keeper. ``on_death`` is called once, and what it wrote down is safe when it returns:
        only then is the process reaped."""

    async def wait_inherited(self, call: str) -> int | None:
        """Wait for the end of a runtime call of this name that a former worker began and nobody has waited for yet; its
        status. None: there is none, or it hangs and was killed."""

    async def open_elsewhere(self, path: str, make: bool) -> int:
        """Open a log file, which is made where ``make`` says so, or what a client has made, where it may sleep in the
        kernel (``stdio.file``). Raises Error naming the file."""

    async def run_elsewhere(self, name: str, entry: str, argument: object, what: str) -> None:
        """Run ``entry`` (``module:function``, given ``argument`` and ``fds["error"]``) in a child, as what may sleep in
        the kernel must be. Raises Error with what it wrote there, or, naming ``what``, why there is nothing."""

    async def mount(self, name: str, rootfs: str, mounts: Sequence[Mount]) -> None:
        """Make the mounts in order, all or none. Raises Error with the text of the one that failed."""

    async def unmount(self, name: str, rootfs: str) -> None:
        """Unmount all at and below ``rootfs``. Raises Error naming what stays mounted."""
