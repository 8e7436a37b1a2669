"""`ctr run`: what a container says and how it ends reaches the client, and nothing is left behind."""

from __future__ import annotations

import os
import time

import pytest
from tests.containerd.harness import Containerd, all_processes

pytestmark = [pytest.mark.real, pytest.mark.parametrize("shim", ["runc", "crun"], indirect=True)]


def test_what_a_command_prints_is_printed(containerd: Containerd) -> None:
    assert containerd.run("c1", "echo", "hello") == (0, b"hello\n", b"")


def test_stderr_is_kept_apart(containerd: Containerd) -> None:
    result = containerd.run("c1", "sh", "-c", "echo out; echo err >&2")
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


def test_the_exit_status_is_the_commands(containerd: Containerd) -> None:
    assert containerd.run("c1", "sh", "-c", "exit 7").status == 7


def test_a_command_killed_by_signal_9_gives_137(containerd: Containerd) -> None:
    containerd.run_detached("c1", "sleep", "1000")
    with containerd.popen("task", "attach", "c1") as attached:
        containerd.ctr("task", "kill", "-s", "9", "c1")
        assert attached.wait(20) == 137
    containerd.ctr("container", "rm", "c1")


def test_an_exec_killed_by_signal_9_gives_137(containerd: Containerd) -> None:
    containerd.run_detached("c1", "sleep", "1000")
    assert containerd.exec("c1", "sh", "-c", "kill -9 $$").status == 137
    containerd.remove("c1")


def test_a_missing_command_gives_the_runtimes_own_sentence_and_leaves_no_task(containerd: Containerd) -> None:
    result = containerd.run("c1", "no-such-command")
    assert result.status == 1
    sentence = {
        "runc": b'exec: "no-such-command": executable file not found in $PATH',
        "crun": b"executable file `no-such-command` not found in $PATH",
    }[containerd.shim.oci_runtime]
    assert b"OCI runtime create failed: " in result.stderr
    assert sentence in result.stderr
    assert containerd.tasks() == {}


def test_the_same_id_can_be_used_again_at_once(containerd: Containerd) -> None:
    assert [containerd.run("c1", "sh", "-c", f"exit {status}").status for status in (1, 2, 3)] == [1, 2, 3]


def test_what_an_init_leaves_in_the_host_s_pid_namespace_is_killed_with_it(containerd: Containerd) -> None:
    """Its output was open there, too: without the kill nobody would see the end of it."""
    seconds = str(int(containerd.mark[:8], 16))  # by which it is known again on the host
    script = f"sleep {seconds} & echo left one"
    options = ["--with-ns", f"pid:/proc/{os.getpid()}/ns/pid"]
    began = time.monotonic()
    assert containerd.run("c1", "sh", "-c", script, options=options) == (0, b"left one\n", b"")
    assert time.monotonic() - began < 9, "no time limit was waited for"
    assert [process for process in all_processes() if f"sleep {seconds}" in process.argv] == []
