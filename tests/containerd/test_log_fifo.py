"""The log fifo of a bundle: a worker's words about a container are in the log of whichever containerd there is then."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tests.containerd.harness import Containerd, all_processes, wait_until
from tests.containerd.test_restart import is_gone

pytestmark = pytest.mark.real


class Said:
    """The lines that have come to containerd's log since this was made."""

    def __init__(self, containerd: Containerd) -> None:
        self._path = containerd.log
        self._begun = containerd.log.stat().st_size

    def wait_for(self, what: str) -> None:
        wait_until(lambda: any(what in line for line in self.lines()), f"{what!r} is in containerd's log")

    def lines(self) -> list[str]:
        return self._path.read_bytes()[self._begun :].decode(errors="replace").splitlines()


def complain(containerd: Containerd, exec_id: str) -> None:
    """Have the worker log a line: the disk is full that the output of an exec goes to."""
    log = ["--log-uri", "file:///dev/full", "--exec-id", exec_id, "--detach"]
    containerd.ctr("task", "exec", *log, "c1", "echo", "lost")


def line_of(exec_id: str) -> str:
    return f"/{exec_id}: [Errno 28]"


def node_log(containerd: Containerd) -> str:
    return "".join((Path(directory) / "log").read_text() for directory in containerd.state_directories())


def test_lines_of_a_container_reach_each_containerd_that_serves_it(containerd: Containerd, dunnage_alone: None) -> None:
    said = Said(containerd)
    containerd.run_detached("c1", "sleep", "1000")
    complain(containerd, "e1")
    said.wait_for(line_of("e1"))
    keeper = containerd.keeper().pid
    script = "trap 'echo lost; exit' TERM; while :; do sleep 0.01; done"
    waiting = ["--log-uri", "file:///dev/full", "--exec-id", "e2", "--detach", "c1", "sh", "-c", script]
    containerd.ctr("task", "exec", *waiting)
    pid = next(process.pid for process in all_processes() if script in process.argv and process.parent == keeper)
    containerd.stop()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: is_gone(pid), "e2 has ended")
    wait_until(lambda: line_of("e2") in node_log(containerd), "the line is kept where nobody reads the fifo")
    said = Said(containerd)
    containerd.start()
    complain(containerd, "e3")
    said.wait_for(line_of("e3"))
    worker = containerd.worker().pid
    os.kill(worker, signal.SIGKILL)
    complain(containerd, "e4")
    assert containerd.worker().pid != worker
    said.wait_for(line_of("e4"))
    assert not any(line_of("e2") in line for line in said.lines()), "told once, and in the other log"
    assert not any(line_of(exec_id) in node_log(containerd) for exec_id in ("e1", "e3", "e4"))
    containerd.remove("c1")
