"""The worker's side of the keeper, alone: when the keeper has gone, and when there is no room for what it says."""

from __future__ import annotations

import asyncio
import os
import resource
import socket

import pytest

from dunnage.errors import Unavailable
from dunnage.keeper.client import Inherited, Keeper
from dunnage.keeper.messages import receive


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


def test_what_finds_no_room_in_the_system_is_sent_later_and_in_order() -> None:
    asyncio.run(say_without_room())


async def say_without_room() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper = Keeper(Inherited(ours, {}, {}, os.getpid(), "node"))
    before = os.listdir("/proc/self/fd")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
    try:
        keeper.release("first", owner="x" * 70_000)  # it takes a memfd
        keeper.release("second")
        with pytest.raises(OSError, match="Too many open files"):
            keeper.store("third", 0, owner="y" * 70_000)  # its fd can not be kept, and that is said
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert os.listdir("/proc/self/fd") == before
    await keeper.wait_sent()
    names = []
    for _ in range(2):
        packet = receive(theirs)
        assert packet is not None
        names.append(packet.message["name"])
    assert names == ["first", "second"]
    await close(keeper, theirs)


def test_request_that_can_not_be_made_leaves_nothing_behind() -> None:
    asyncio.run(ask_without_room())


async def ask_without_room() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper = Keeper(Inherited(ours, {}, {}, os.getpid(), "node"))
    with pytest.raises(TypeError):
        await keeper.fork("name", "entry", object())  # no JSON
    assert keeper._answers == {}
    await close(keeper, theirs)


async def close(keeper: Keeper, theirs: socket.socket) -> None:
    closed = asyncio.Event()
    keeper.on_closed = closed.set
    theirs.close()
    await closed.wait()


def test_packet_that_is_none_of_ours_leaks_no_fd() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        before = os.listdir("/proc/self/fd")
        with open(os.devnull, "rb") as empty:
            for body in (b"no json", b'{"verb":"store","memfd":true}'):
                socket.send_fds(ours, [body], [empty.fileno(), empty.fileno()])
                with pytest.raises(ValueError, match="Expecting value"):
                    receive(theirs)
        assert os.listdir("/proc/self/fd") == before
