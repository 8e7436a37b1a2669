"""The worker's side of the keeper, alone: what it does when the keeper has gone."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from dunnage.errors import Unavailable
from dunnage.keeper.client import Inherited, Keeper


def test_without_a_keeper_what_awaits_an_answer_fails_and_nothing_else_does() -> None:
    asyncio.run(ask_when_it_is_gone())


async def ask_when_it_is_gone() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper = Keeper(Inherited(ours, {}, {}, os.getpid(), "node"))
    closed = asyncio.Event()
    keeper.on_closed = closed.set
    theirs.close()
    await closed.wait()
    keeper.store("name", 0)
    keeper.release("name")
    keeper.reap(1)
    await keeper.wait_sent()
    with pytest.raises(Unavailable):
        await keeper.peek(1)
