"""What a launch costs where a keeper answers: hardly more than an interpreter that does nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.launcher.stage import Room, answer, answering

from dunnage.cli.install import launcher_interpreter

OS = {"os", "stat", "_stat", "posixpath", "genericpath", "_collections_abc", "abc", "_abc"}
CHEAP = {"time", "fcntl", "select"}  # written in C, and without anything below them

ANSWERER = """
import socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
text = bytes.fromhex(sys.argv[2])
while True:
    peer, _ = listener.accept()
    with peer:
        size = int.from_bytes(peer.recv(5, socket.MSG_WAITALL)[1:], "little")
        peer.recv(size, socket.MSG_WAITALL)
        peer.sendall(text)
"""


def imported(argv: Sequence[str]) -> set[str]:
    """The modules that an interpreter started like this imports."""
    return names(subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=30).stderr)


def names(stderr: bytes) -> set[str]:
    """What ``-X importtime`` tells."""
    lines = stderr.decode().splitlines()
    return {line.split("|")[2].strip() for line in lines if line.startswith("import time:")} - {"imported package"}


@pytest.mark.parametrize("action", ["start", "delete"])
def test_the_fast_way_imports_only_what_talks_to_a_socket(room: Room, action: str) -> None:
    room.serve([answering(answer())])
    interpreter = [launcher_interpreter(), "-ISE", "-X", "importtime"]
    bare = imported([*interpreter, "-c", "pass"])
    assert "posix" in bare
    assert imported([*interpreter, *room.argv(action)]) - bare <= {"_socket"}


def test_a_delete_without_a_keeper_imports_little(room: Room) -> None:
    """When a node's keeper and worker are killed, containerd runs one for each container, all at once, for 5 s."""
    for name, text in {"options.json": "{}", "runtime": "/bin/true", "init.pid": "7"}.items():
        (room.bundle / name).write_text(text)
    interpreter = [launcher_interpreter(), "-ISE", "-X", "importtime"]
    bare = imported([*interpreter, "-c", "pass"])
    argv = [*interpreter, *room.argv("delete")]
    done = subprocess.run(argv, cwd=room.bundle, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    assert done.stdout, done.stderr
    found = names(done.stderr) - bare
    assert found <= {
        "_socket",
        "os",
        "stat",
        "_stat",
        "posixpath",
        "genericpath",
        "_collections_abc",
        "abc",
        "_abc",
        *CHEAP,
    }


def test_the_slow_way_is_not_compiled_before_it_is_needed(room: Room) -> None:
    compiled = compile(room.launcher.read_text(), "launcher", "exec")
    assert "clean_up" not in compiled.co_names
    assert any(isinstance(constant, str) and "def clean_up" in constant for constant in compiled.co_consts)


def test_a_launch_takes_at_most_1_3_of_a_bare_interpreter(room: Room) -> None:
    listener = room.listen()
    listener.set_inheritable(True)
    text = answer(stdout=b"unix:///run/containerd/s/0123456789abcdef").hex()
    argv = [sys.executable, "-ISE", "-c", ANSWERER, str(listener.fileno()), text]
    server = subprocess.Popen(argv, pass_fds=[listener.fileno()])
    try:
        bare = [launcher_interpreter(), "-I", "-S", "-E", "-c", "pass"]
        ratios: list[float] = []
        while not ratios or (ratios[-1] > 1.3 and len(ratios) < 3):  # a busy machine may spoil a round, not three
            spent: dict[str, list[float]] = {"bare": [], "launch": []}
            for _ in range(30):
                spent["bare"].append(elapsed(bare, room.bundle))
                spent["launch"].append(elapsed(room.argv("start"), room.bundle))
            ratios.append(statistics.median(spent["launch"]) / statistics.median(spent["bare"]))
    finally:
        server.kill()
        server.wait()
    assert ratios[-1] <= 1.3, f"{ratios} of a bare interpreter"


def elapsed(argv: Sequence[str], cwd: Path) -> float:
    start = time.perf_counter()
    subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start
