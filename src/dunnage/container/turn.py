"""Whose turn it is to change a process: a lock that can say who has it and how many wait."""

from __future__ import annotations

import asyncio


class Turn(asyncio.Lock):
    """``async with turn:``; ``holder`` is the name of the task that is inside, empty where none is."""

    def __init__(self) -> None:
        super().__init__()
        self.holder = ""
        self.waiting = 0

    async def acquire(self) -> bool:  # type: ignore[override]  # typeshed has Literal[True]
        self.waiting += 1
        try:
            await super().acquire()
        finally:
            self.waiting -= 1
        task = asyncio.current_task()
        self.holder = "" if task is None else task.get_name()
        return True

    def release(self) -> None:
        self.holder = ""
        super().release()
