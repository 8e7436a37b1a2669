"""Whose a signal is while a command runs a process in the foreground."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import cast

from dunnage.cli.foreground import run_in_foreground
from dunnage.cli.signals import Signals, run_with_signals
from dunnage.client import Process, Stdio


class Streams:
    """Of a process that says nothing."""

    def __init__(self) -> None:
        self.stdio = Stdio()
        self.broken = asyncio.Event()
        self.failures: dict[str, OSError] = {}

    async def wait_drained(self, timeout_s: float) -> bool:
        return True


class Ended:
    status = 137


class Stubborn:
    """A process that only SIGKILL ends, and that is sent a signal while it is being started."""

    def __init__(self) -> None:
        self.streams = Streams()
        self.got: list[int] = []
        self.changed = asyncio.Event()
        self.over = asyncio.Event()

    async def start(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(3):  # the loop hears of it in one of its next turns
            await asyncio.sleep(0)

    async def wait(self) -> Ended:
        for number in (signal.SIGINT, signal.SIGINT):
            before = len(self.got)
            os.kill(os.getpid(), number)
            while len(self.got) == before:
                self.changed.clear()
                await self.changed.wait()
        await self.over.wait()
        return Ended()

    async def kill(self, number: int) -> None:
        self.got.append(number)
        self.changed.set()
        if number == signal.SIGKILL:
            self.over.set()


def test_a_ctrl_c_that_comes_during_the_start_is_one_of_the_three_that_kill() -> None:
    process: list[Stubborn] = []

    async def work(signals: Signals) -> int:
        process.append(Stubborn())
        async with asyncio.timeout(20):
            return await run_in_foreground(cast(Process, process[0]), signals)

    assert run_with_signals(work) == 137
    assert process[0].got == [signal.SIGINT, signal.SIGINT, signal.SIGKILL]


def test_a_signal_that_our_caller_ignores_stays_ignored_and_is_nobody_s() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    got: list[int] = []

    async def work(signals: Signals) -> int:
        has_come = asyncio.Event()

        def receive(number: signal.Signals, interrupts: int) -> None:
            got.append(number)
            has_come.set()

        with signals.going_to(receive):
            for number in (signal.SIGHUP, signal.SIGUSR1):
                os.kill(os.getpid(), number)
            await has_come.wait()
        return 0

    try:
        assert run_with_signals(work) == 0
        assert got == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
