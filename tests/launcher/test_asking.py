"""The launcher and whoever answers its socket: it prints what comes back, and asks again where nothing whole does."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from tests.launcher.stage import Room, answer, answering, read_request

from dunnage import launcher
from dunnage.worker.control import ControlServer, LaunchAnswer, LaunchRequest, decode_request


def test_it_prints_and_exits_as_told(room: Room) -> None:
    room.serve([answering(answer(status=7, stdout=b"unix:///x", stderr=b"no\0newline"))])
    done = room.launch()
    assert (done.returncode, done.stdout, done.stderr) == (7, b"unix:///x", b"no\0newline")
    assert not room.starts()


def test_the_worker_s_own_server_understands_it(room: Room) -> None:
    seen: list[LaunchRequest] = []

    async def handle(request: LaunchRequest) -> LaunchAnswer:
        seen.append(request)
        return LaunchAnswer(stdout=request.stdin)

    async def scenario() -> tuple[int, bytes]:
        server = ControlServer(room.listen(), handle, logging.getLogger("test"))
        child = await asyncio.create_subprocess_exec(
            *room.argv("start"),
            cwd=room.bundle,
            env={"PATH": "/bin", "TTRPC_ADDRESS": "/x"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        out, _ = await child.communicate(b"\0any" * 100_000)
        server.close()
        return child.pid, out

    pid, out = asyncio.run(scenario())
    assert out == b"\0any" * 100_000
    (request,) = seen
    assert request.argv == (str(room.launcher), "-namespace", "default", "-id", "c1", "start")
    assert request.cwd == str(room.bundle)
    assert request.env["TTRPC_ADDRESS"] == "/x"
    assert request.pid == pid


@pytest.mark.parametrize(("words", "read"), [(("start",), True), (("-info",), True), (("delete",), False)])
def test_stdin_is_read_where_it_says_something(room: Room, words: tuple[str, ...], read: bool) -> None:
    got: list[bytes] = []

    def behave(peer: socket.socket) -> None:
        got.append(decode_request(read_request(peer), pid=1, uid=2).stdin)
        peer.sendall(answer())

    room.serve([behave])
    argv = [str(room.launcher), "-id", "c1", *words]
    assert subprocess.run(argv, input=b"options", cwd=room.bundle, timeout=30).returncode == 0
    assert got == [b"options" if read else b""]


def test_the_address_names_the_keeper(room: Room) -> None:
    room.serve([answering(answer(stdout=b"one"))], "run-containerd-containerd.sock")
    for words in (["-address", "/run/containerd/containerd.sock"], ["--address=/run/containerd/containerd.sock"]):
        assert room.launch("start", *words).stdout == b"one"


def test_a_connection_that_ends_without_an_answer_means_ask_again(room: Room) -> None:
    def hang_up(peer: socket.socket) -> None:
        read_request(peer)

    def refuse_at_once(peer: socket.socket) -> None:
        pass  # closed with the request unread: a reset

    def break_off(peer: socket.socket) -> None:
        read_request(peer)
        peer.sendall(answer(stdout=b"whole")[:-2])

    room.serve([hang_up, refuse_at_once, break_off, answering(answer(stdout=b"whole"))])
    done = room.launch(stdin=b"x" * 300_000)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"whole", b"")


def test_an_answer_in_pieces_is_one_answer(room: Room) -> None:
    def trickle(peer: socket.socket) -> None:
        read_request(peer)
        for byte in answer(status=3, stdout=b"abc", stderr=b"de"):
            peer.sendall(bytes([byte]))

    room.serve([trickle])
    done = room.launch()
    assert (done.returncode, done.stdout, done.stderr) == (3, b"abc", b"de")


def test_an_answer_to_a_question_that_was_not_heard_out_counts(room: Room) -> None:
    def interrupt(peer: socket.socket) -> None:
        peer.sendall(answer(status=1, stderr=b"too much"))

    room.serve([interrupt])
    done = room.launch(stdin=bytes(4 << 20))
    assert (done.returncode, done.stderr) == (1, b"too much")


def test_a_full_backlog_is_waited_for(room: Room) -> None:
    listener = room.listen(backlog=0)
    filler = socket.socket(socket.AF_UNIX)
    with filler:
        filler.connect(str(room.state / "local" / "control"))
        child = subprocess.Popen(room.argv("start"), cwd=room.bundle, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        wait_channel_until_connecting(child.pid)
        listener.accept()[0].close()
        peer, _ = listener.accept()
        with peer:
            read_request(peer)
            peer.sendall(answer(stdout=b"late"))
        assert child.communicate(timeout=30)[0] == b"late"


def test_a_launcher_that_is_stopped_while_it_waits_for_the_backlog_asks_again(room: Room) -> None:
    listener = room.listen(backlog=0)
    with socket.socket(socket.AF_UNIX) as filler:
        filler.connect(str(room.state / "local" / "control"))
        child = subprocess.Popen(room.argv("start"), cwd=room.bundle, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        for _ in range(3):  # the slow way is stopped, too
            wait_channel_until_connecting(child.pid)
            child.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED)
            child.send_signal(signal.SIGCONT)
            os.waitid(os.P_PID, child.pid, os.WCONTINUED)
        listener.accept()[0].close()
        listener.settimeout(30)
        peer, _ = listener.accept()
        with peer:
            read_request(peer)
            peer.sendall(answer(stdout=b"after all"))
        assert child.communicate(timeout=30)[0] == b"after all"


def test_descriptors_that_do_not_block_lose_nothing(room: Room) -> None:
    got: list[bytes] = []

    def behave(peer: socket.socket) -> None:
        got.append(decode_request(read_request(peer), pid=1, uid=2).stdin)
        peer.sendall(answer(stdout=bytes(1 << 20)))

    room.serve([behave])
    (stdin, options), (output, stdout) = os.pipe(), os.pipe()
    for end in (stdin, stdout):
        os.set_blocking(end, False)
    child = subprocess.Popen(room.argv("start"), cwd=room.bundle, stdin=stdin, stdout=stdout)
    os.close(stdout)
    with open(output, "rb") as reader:
        while child.poll() is None and not got and system_call(child.pid) not in READ:
            pass
        os.write(options, b"options")
        os.close(options)
        while child.poll() is None and system_call(child.pid) not in WRITE:
            pass
        assert len(reader.read()) == 1 << 20
    os.close(stdin)
    assert child.wait(30) == 0
    assert got == [b"options"]


READ, WRITE = ("0", "63"), ("1", "64")  # on x86-64 and on arm64


def wait_channel_until_connecting(pid: int) -> None:
    """Until the process sleeps in connect(2), which is number 42 on x86-64 and 203 on arm64."""
    while system_call(pid) not in ("42", "203"):
        pass


def system_call(pid: int) -> str:
    """The number of that in which the process sleeps."""
    try:
        return Path(f"/proc/{pid}/syscall").read_text().split()[0]
    except OSError:
        return ""


def test_the_version_needs_nobody(room: Room) -> None:
    for word in ("-v", "--version", "-version=true"):
        done = subprocess.run([room.launcher, word], capture_output=True, timeout=30)
        assert done.returncode == 0
        assert done.stdout.startswith(b"containerd-shim-dunnage-v2:\n  Version:  ")
    assert not room.state.exists()


def test_a_worker_of_another_release_is_named(room: Room) -> None:
    room.serve([answering(answer(b"V"))])
    (room.state / "local" / "lock").write_text("4711\n")
    done = room.launch()
    assert done.returncode == 1
    expected = f"io.containerd.dunnage.v2: keeper 4711 of {room.state}/local is of another release"
    assert done.stderr.decode() == expected


def test_other_namespaces_than_the_keeper_s_have_a_keeper_of_their_own(room: Room) -> None:
    room.serve([answering(answer(b"N"))])
    assert room.launch().stdout == b"unix:///run/stub"
    assert not room.starts()
    assert len(room.starts(launcher.own_key("local"))) == 1


def test_a_keeper_for_these_namespaces_is_preferred_to_a_new_one(room: Room) -> None:
    room.serve([answering(answer(stdout=b"own"))], launcher.own_key("local"))
    assert room.launch().stdout == b"own"
    assert not room.starts()
    assert not (room.state / "local").exists()


def test_a_keeper_that_disowns_its_own_namespaces_is_an_error(room: Room) -> None:
    room.serve([answering(answer(b"N"))])
    room.serve([answering(answer(b"N"))], launcher.own_key("local"))
    done = room.launch()
    assert done.returncode == 1
    assert b"says that these namespaces are not its own" in done.stderr


def test_many_launchers_at_once_are_all_answered(room: Room) -> None:
    room.serve([answering(answer(stdout=b"ok"))])
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(room.launch().stdout)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [b"ok"] * 12
