"""containerd stopped and started while containers run: they are found again, and what happened is told in order."""

from __future__ import annotations

import functools
import os
import signal

import pytest
from tests.containerd.harness import Containerd, wait_until
from tests.containerd.recorder import Exit, Recorder

pytestmark = pytest.mark.real


def restart(containerd: Containerd) -> None:
    containerd.stop()
    containerd.start()


def test_containers_are_found_again_and_exec_and_kill_work(containerd: Containerd) -> None:
    names = ["c1", "c2", "c3"]
    for name in names:
        containerd.run_detached(name, "sleep", "1000")
    before = containerd.tasks()
    restart(containerd)
    assert containerd.tasks() == before
    assert containerd.exec("c2", "sh", "-c", "echo again; exit 4") == (4, b"again\n", b"")
    assert [line.split()[0] for line in containerd.ctr("task", "ps", "c3").stdout.decode().splitlines()[1:]] == [
        str(before["c3"][0])
    ]
    for name in names:
        containerd.remove(name)


def test_the_same_keeper_and_worker_go_on(containerd: Containerd, dunnage_alone: None) -> None:
    containerd.run_detached("c1", "sleep", "1000")
    before = containerd.keeper(), containerd.worker()
    restart(containerd)
    assert containerd.run("c2", "echo", "new").stdout == b"new\n"
    assert (containerd.keeper(), containerd.worker()) == before
    containerd.remove("c1")


def test_output_written_while_containerd_is_away_arrives(containerd: Containerd) -> None:
    log = containerd.directory / "output"
    script = "trap 'echo second; exit 3' TERM; echo first; while :; do sleep 0.01; done"
    containerd.run_detached("c1", "sh", "-c", script, options=["--log-uri", f"file://{log}"])
    wait_until(lambda: log.read_bytes() == b"first\n", "the first line is there")
    pid = containerd.tasks()["c1"][0]
    containerd.stop()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: is_gone(pid), "the init has ended")
    wait_until(lambda: log.read_bytes() == b"first\nsecond\n", "the second line is there")
    containerd.start()
    containerd.remove("c1")


def test_an_exit_during_the_outage_keeps_its_status(containerd: Containerd) -> None:
    containerd.run_detached("c1", "sh", "-c", "trap 'exit 42' TERM; echo up; while :; do sleep 0.01; done")
    pid = containerd.tasks()["c1"][0]
    assert containerd.exec("c1", "true").status == 0  # its trap is set by now: an exec takes longer than a shell
    containerd.stop()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: is_gone(pid), "the init has ended")
    containerd.start()
    assert containerd.tasks()["c1"][1] == "STOPPED"
    assert b"exit code 42" in containerd.ctr("task", "rm", "c1").stderr
    containerd.ctr("container", "rm", "c1")


def test_the_events_of_an_outage_arrive_in_order(containerd: Containerd, dunnage_alone: None) -> None:
    """The Go shim promises less: it retries each event by itself, and drops it after some seconds."""
    names = [f"c{number}" for number in range(6)]
    for name in names:
        containerd.run_detached(name, "sleep", "1000")
    pids = {name: containerd.tasks()[name][0] for name in names}
    containerd.stop()
    for name in reversed(names):
        os.kill(pids[name], signal.SIGKILL)
        wait_until(functools.partial(is_gone, pids[name]), f"{name} has ended")
    with Recorder(containerd.address) as recorder:
        recorder.wait_for_exits(len(names))
    assert recorder.exits == [Exit(name, name, 137) for name in reversed(names)]
    containerd.start()
    for name in names:
        containerd.ctr("task", "rm", name, check=False)
        containerd.ctr("container", "rm", name)


def is_gone(pid: int) -> bool:
    """No such process, or only its zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
