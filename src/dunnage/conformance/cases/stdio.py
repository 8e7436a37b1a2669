"""Bytes: none, by fifos, by a terminal; in and out, to their end, and with a client that goes away."""

from __future__ import annotations

import asyncio
import os
from typing import Final

from dunnage.conformance.case import Area
from dunnage.conformance.check import contains, equal, that
from dunnage.conformance.scene import Scene, Status

AREA: Final = Area("stdio")


@AREA.case("without any stdio a process runs with /dev/null")
async def null(scene: Scene) -> None:
    task = await scene.running("sh", "-c", "cat; echo x; echo y >&2; exit 5")
    answer = await task.call("State")
    equal(
        "what State says of stdio", (answer.stdin, answer.stdout, answer.stderr, answer.terminal), ("",) * 3 + (False,)
    )
    await task.call("Wait")


@AREA.case("stdout and stderr come by their own fifos, to the last byte, and end with the process")
async def out_and_err(scene: Scene) -> None:
    fifos = scene.fifos()
    task = await scene.running("sh", "-c", "echo out; echo err >&2; printf last", fifos=fifos)
    await task.call("Wait")
    await task.call("Delete")
    equal("stdout", await fifos.out.read_all(), b"out\nlast")
    assert fifos.err is not None
    equal("stderr", await fifos.err.read_all(), b"err\n")


@AREA.case("State names the fifos as Create gave them")
async def state_names_fifos(scene: Scene) -> None:
    fifos = scene.fifos(stdin=True)
    task = await scene.running(fifos=fifos)
    answer = await task.call("State")
    given = fifos.fields
    equal("stdin", answer.stdin, given["stdin"])
    equal("stdout", answer.stdout, given["stdout"])
    equal("stderr", answer.stderr, given["stderr"])
    equal("terminal", answer.terminal, False)


@AREA.case("a megabyte through stdin and stdout comes back as it was")
async def megabyte(scene: Scene) -> None:
    fifos = scene.fifos(stdin=True)
    task = await scene.running("cat", fifos=fifos)
    data = os.urandom(1024) * 1024
    sent = 0
    while sent < len(data):
        try:
            sent += os.write(fifos.stdin_fd, data[sent : sent + 4096])
        except BlockingIOError:
            await asyncio.sleep(0.001)
    fifos.close_stdin()
    await task.call("CloseIO", stdin=True)
    equal("the exit status", (await task.call("Wait")).exit_status, 0)
    await task.call("Delete")
    that(await fifos.out.read_all() == data, "what comes out is what went in")


@AREA.case("a client that closes stdin does not end it without CloseIO")
async def stdin_stays_open(scene: Scene) -> None:
    fifos = scene.fifos(stdin=True)
    task = await scene.running("sh", "-c", "echo ready; cat; echo end", fifos=fifos)
    await fifos.out.wait_for(b"ready")
    fifos.write(b"one\n")
    await fifos.out.wait_for(b"one")
    fifos.close_stdin()
    second = os.open(fifos.stdin, os.O_WRONLY | os.O_NONBLOCK)
    os.write(second, b"two\n")
    await fifos.out.wait_for(b"two")
    os.close(second)
    await task.call("CloseIO", stdin=True)
    equal("the exit status", (await task.call("Wait")).exit_status, 0)
    contains("stdout", await fifos.out.read_all(), b"end\n")


@AREA.case("CloseIO does not end stdin while a client still has it open")
async def client_holds_stdin(scene: Scene) -> None:
    fifos = scene.fifos(stdin=True)
    task = await scene.running("cat", fifos=fifos)
    await task.call("CloseIO", stdin=True)
    fifos.write(b"still here\n")
    await fifos.out.wait_for(b"still here")
    fifos.close_stdin()
    equal("the exit status", (await task.call("Wait")).exit_status, 0)


@AREA.case("CloseIO before Start is remembered")
async def close_before_start(scene: Scene) -> None:
    fifos = scene.fifos(stdin=True)
    task = await scene.created("cat", fifos=fifos)
    fifos.close_stdin()
    await task.call("CloseIO", stdin=True)
    await task.call("Start")
    equal("the exit status", (await task.call("Wait")).exit_status, 0)


@AREA.case("CloseIO twice is answered twice")
async def close_twice(scene: Scene) -> None:
    fifos = scene.fifos(stdin=True)
    task = await scene.running(fifos=fifos)
    for _ in range(2):
        await task.call("CloseIO", stdin=True)


@AREA.case("a reader that goes away and comes back finds what was written later")
async def reader_comes_back(scene: Scene) -> None:
    fifos = scene.fifos(stdin=True)
    task = await scene.running("cat", fifos=fifos)
    fifos.write(b"one\n")
    await fifos.out.wait_for(b"one")
    fifos.out.close()
    fifos.write(b"two\n")
    equal("the status", await task.status(), Status.RUNNING)
    fifos.out.open()
    await fifos.out.wait_for(b"two")


@AREA.case("an exec has fifos of its own")
async def exec_fifos(scene: Scene) -> None:
    task = await scene.running()
    fifos = scene.fifos("e1", stdin=True)
    await task.started_exec("e1", "sh", "-c", "read line; echo got $line; echo err >&2; exit 3", fifos=fifos)
    fifos.write(b"this\n")
    equal("the exit status", (await task.call("Wait", exec_id="e1")).exit_status, 3)
    await task.call("Delete", exec_id="e1")
    equal("stdout", await fifos.out.read_all(), b"got this\n")
    assert fifos.err is not None
    equal("stderr", await fifos.err.read_all(), b"err\n")


@AREA.case("CloseIO of an exec ends the exec's stdin and not the container's")
async def exec_close(scene: Scene) -> None:
    outer, inner = scene.fifos("c1", stdin=True), scene.fifos("e1", stdin=True)
    task = await scene.running("cat", fifos=outer)
    await task.started_exec("e1", "cat", fifos=inner)
    inner.close_stdin()
    await task.call("CloseIO", exec_id="e1", stdin=True)
    equal("the exec's exit status", (await task.call("Wait", exec_id="e1")).exit_status, 0)
    outer.write(b"alive\n")
    await outer.out.wait_for(b"alive")


@AREA.case("with a terminal the process has one, and its output comes by one fifo")
async def terminal(scene: Scene) -> None:
    fifos = scene.fifos(stdin=True, terminal=True)
    task = await scene.running("sh", "-c", "tty; echo err >&2; read line; exit 4", fifos=fifos)
    await fifos.out.wait_for(b"/dev/pts/")
    await fifos.out.wait_for(b"err\r\n")
    fifos.write(b"go\n")
    equal("the exit status", (await task.call("Wait")).exit_status, 4)
    that((await task.call("State")).terminal, "State says that it is a terminal")
    await task.call("Delete")
    await fifos.out.read_all()


@AREA.case("ResizePty is seen by the process")
async def resize(scene: Scene) -> None:
    fifos = scene.fifos(stdin=True, terminal=True)
    task = await scene.running("sh", "-c", "read line; stty size; read line", fifos=fifos)
    await task.call("ResizePty", width=123, height=45)
    fifos.write(b"go\n")
    await fifos.out.wait_for(b"45 123")


@AREA.case("an exec may have a terminal where its container has none")
async def exec_terminal(scene: Scene) -> None:
    task = await scene.running()
    fifos = scene.fifos("e1", stdin=True, terminal=True)
    await task.started_exec("e1", "sh", "-c", "tty; read line; stty size", fifos=fifos)
    await fifos.out.wait_for(b"/dev/pts/")
    await task.call("ResizePty", exec_id="e1", width=99, height=11)
    fifos.write(b"go\n")
    await fifos.out.wait_for(b"11 99")
    equal("the exit status", (await task.call("Wait", exec_id="e1")).exit_status, 0)
    await task.call("Delete", exec_id="e1")
    await fifos.out.read_all()


@AREA.case("the request says whether an exec has a terminal, whatever its spec says")
async def terminal_of_the_request(scene: Scene) -> None:
    task = await scene.running()
    fifos = scene.fifos("e1")
    await task.exec("e1", "sh", "-c", "tty; true", fifos=fifos, terminal=True)
    await task.call("Start", exec_id="e1")
    await task.call("Wait", exec_id="e1")
    await task.call("Delete", exec_id="e1")
    contains("stdout", await fifos.out.read_all(), b"not a tty")


@AREA.case("a child that outlives an exec and keeps its stdout delays neither its exit nor, for long, its Delete")
async def inherited(scene: Scene) -> None:
    task = await scene.running()
    fifos = scene.fifos("e1")
    await task.started_exec("e1", "sh", "-c", "sleep 1000 & echo here", fifos=fifos)
    await fifos.out.wait_for(b"here")
    equal("the exit status", (await task.call("Wait", exec_id="e1", timeout_s=5)).exit_status, 0)
    await task.call("Delete", exec_id="e1", timeout_s=15)
