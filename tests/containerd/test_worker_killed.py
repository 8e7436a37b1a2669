"""kill -9 of the worker: a new one is there at once, and nobody outside has noticed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from subprocess import PIPE

import pytest
from tests.containerd.harness import Containerd, Process, wait_until

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("dunnage_alone")]


def kill_worker(containerd: Containerd) -> Process:
    """Returns the worker that came after."""
    before = containerd.worker()
    os.kill(before.pid, signal.SIGKILL)
    wait_until(lambda: [worker for worker in containerd.workers() if worker.pid != before.pid], "a new worker is there")
    return containerd.worker()


def test_the_keeper_stays_and_a_new_worker_serves(containerd: Containerd) -> None:
    containerd.run_detached("c1", "sleep", "1000")
    keeper, tasks = containerd.keeper(), containerd.tasks()
    for _ in range(5):
        kill_worker(containerd)
        assert containerd.tasks() == tasks
        assert containerd.exec("c1", "sh", "-c", "exit 5").status == 5
    assert containerd.keeper() == keeper
    assert containerd.run("c2", "echo", "new") == (0, b"new\n", b"")
    containerd.remove("c1")


def test_an_exit_status_is_not_lost(containerd: Containerd) -> None:
    arguments = containerd.run_arguments("c1", "sh", "-c", "read line; exit 41", options=["--rm"])
    with containerd.popen(*arguments, stdin=PIPE) as client:
        wait_until(lambda: containerd.tasks().get("c1", (0, ""))[1] == "RUNNING", "it runs")
        pid = containerd.tasks()["c1"][0]
        worker = containerd.worker()
        os.kill(worker.pid, signal.SIGSTOP)  # so that the exit happens while nobody looks
        os.kill(pid, signal.SIGKILL)
        os.kill(worker.pid, signal.SIGKILL)
        client.communicate(timeout=20)
    assert client.returncode == 137


def test_no_byte_of_stdout_is_lost(containerd: Containerd) -> None:
    whole = hashlib.sha256(b"".join(b"%d\n" % number for number in range(1, 2_000_001))).hexdigest()
    arguments = containerd.run_arguments("c1", "seq", "1", "2000000", options=["--rm"])
    digest, count, kills = hashlib.sha256(), 0, 0
    with containerd.popen(*arguments) as client:
        for chunk in chunks(client):
            digest.update(chunk)
            count += len(chunk)
            if count > (kills + 1) * 2_000_000 and kills < 5:
                kill_worker(containerd)
                kills += 1
    assert (client.returncode, digest.hexdigest(), kills) == (0, whole, 5)


def test_stdin_goes_on_into_the_container(containerd: Containerd) -> None:
    with containerd.popen(
        *containerd.run_arguments("c1", "sh", "-c", "while read line; do echo got $line; done", options=["--rm"]),
        stdin=PIPE,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        for number in range(5):
            client.stdin.write(b"%d\n" % number)
            client.stdin.flush()
            assert client.stdout.readline() == b"got %d\n" % number
            kill_worker(containerd)
        client.stdin.close()
        assert client.stdout.read() == b""
    assert client.returncode == 0


def test_events_are_told_once_and_in_order(containerd: Containerd) -> None:
    with containerd.events() as events:
        containerd.run_detached("c1", "sleep", "1000")
        kill_worker(containerd)
        assert containerd.exec("c1", "true", exec_id="e1").status == 0
        kill_worker(containerd)
        containerd.remove("c1")
        events.wait_for(lambda: "delete" in events.topics("c1"), "the delete is told")
        kill_worker(containerd)
        events.read_all(0.5)
        assert events.topics("c1") == ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"]


def chunks(client: subprocess.Popen[bytes]) -> Iterator[bytes]:
    assert client.stdout is not None
    while chunk := os.read(client.stdout.fileno(), 1 << 16):
        yield chunk
