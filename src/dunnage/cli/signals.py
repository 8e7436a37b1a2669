"""What our signals mean to a command that makes a container or a process, and waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Self

SIGNALLED = 128

_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
INTERRUPTS_THAT_KILL = 3
"""Whoever presses Ctrl-C this often wants it to end: an init without a handler never sees it (pid_namespaces(7))."""


class Signals:
    """What our signals mean, from the first moment to the last: a context manager in the task that does the work.

    Those that our caller ignores (`nohup`) stay ignored, and go to nobody.

    Until a process is started, the first one cancels that task, which then leaves nothing behind. From then on they are
    the process's own. After its end they wait until what is left is tidied up. Ctrl-C three times always gets through.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The signal that cancelled the task."""
        self._receive: Callable[[signal.Signals, int], object] = self._cancel
        self._interrupts = 0
        self._caught: list[signal.Signals] = []

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._caught = [number for number in _CAUGHT if signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._caught:
            asyncio.get_running_loop().add_signal_handler(number, self._got, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._caught:
            asyncio.get_running_loop().remove_signal_handler(number)

    @contextlib.contextmanager
    def going_to(self, receive: Callable[[signal.Signals, int], object]) -> Iterator[None]:
        """Signals are `receive`'s meanwhile, with how often Ctrl-C has come; afterwards whatever ran has ended."""
        self._receive = receive
        self._interrupts = 0
        try:
            yield
        finally:
            self.begin_tidying()

    def begin_tidying(self) -> None:
        """From here on only the third Ctrl-C is heard."""
        self._receive = self._ignore
        self._interrupts = 0

    def cancel(self, number: signal.Signals) -> None:
        """Cancel the task, which is then said to have been ended by this signal."""
        assert self._task is not None
        self.received = number
        self._task.cancel()

    def _got(self, number: signal.Signals) -> None:
        self._interrupts += number == signal.SIGINT
        self._receive(number, self._interrupts)

    def _cancel(self, number: signal.Signals, interrupts: int) -> None:
        self.begin_tidying()
        self.cancel(number)

    def _ignore(self, number: signal.Signals, interrupts: int) -> None:
        if interrupts >= INTERRUPTS_THAT_KILL:
            self.cancel(number)


def run_with_signals(work: Callable[[Signals], Coroutine[Any, Any, int]]) -> int:
    """Run a coroutine to its end; its exit status, or that of a program ended by the signal that cancelled it."""
    signals = Signals()

    async def whole() -> int:
        with signals:
            return await work(signals)

    try:
        return asyncio.run(whole())
    except asyncio.CancelledError:
        if signals.received is None:
            raise
        return SIGNALLED + signals.received
