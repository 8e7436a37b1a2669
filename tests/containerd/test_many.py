"""Many containers: every exit told once and in order, one keeper and one worker throughout, nothing left at the end."""

from __future__ import annotations

import itertools
import os
import re
import subprocess

import pytest
from tests.containerd.harness import Containerd, fds, wait_until

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

WHOLE_LIFE = ["create", "start", "exit", "delete"]


def baseline(containerd: Containerd) -> tuple[int, int, list[str]]:
    """Keeper, worker, and what the worker has open, after a first container: everything lasting is there."""
    assert containerd.run("warm-up", "true").status == 0
    return containerd.keeper().pid, containerd.worker().pid, open_in_worker(containerd)


def open_in_worker(containerd: Containerd) -> list[str]:
    """Kinds of what is open, sockets and memfds without their numbers."""
    return sorted(re.sub(r"\[\d+\]", "[]", link) for link in fds(containerd.worker().pid))


def check_baseline(containerd: Containerd, before: tuple[int, int, list[str]]) -> None:
    wait_until(lambda: open_in_worker(containerd) == before[2], "the worker's file descriptors are back", 10)
    assert (containerd.keeper().pid, containerd.worker().pid) == before[:2]
    assert len(containerd.shims()) == 2
    assert not any(link.startswith("pipe:") for link in open_in_worker(containerd))


def run_at_once(containerd: Containerd, count: int, at_once: int) -> list[tuple[int, ...]]:
    """Run ``true`` in ``count`` containers, ``at_once`` clients at any time; returns the shims seen now and then."""
    shims = []
    numbers = itertools.count()
    running: list[tuple[int, subprocess.Popen[bytes]]] = []
    started = 0
    while started < count or running:
        while started < count and len(running) < at_once:
            number = next(numbers)
            arguments = containerd.run_arguments(f"m{number}", "true", options=["--rm"])
            running.append((number, containerd.popen(*arguments)))
            started += 1
        number, process = running.pop(0)
        output, _ = process.communicate(timeout=60)
        assert (process.returncode, output) == (0, b""), (number, output)
        if number % at_once == 0:
            shims.append(keepers_and_workers(containerd))
    return shims


def keepers_and_workers(containerd: Containerd) -> tuple[int, ...]:
    """Launchers come and go, as do the children that the keeper forks for mounts."""
    shims = containerd.shims()
    pids = {shim.pid for shim in shims}
    keepers = [shim.pid for shim in shims if " keeper " in shim.argv and shim.parent not in pids]
    return *keepers, *(shim.pid for shim in shims if " worker " in shim.argv)


def check_events(topics: list[str]) -> None:
    assert topics == WHOLE_LIFE


def test_containers_one_after_the_other_8_at_a_time(containerd: Containerd) -> None:
    count = 200
    before = None if containerd.shim.is_go else baseline(containerd)
    with containerd.events() as events:
        shims = run_at_once(containerd, count, 8)
        events.wait_for(lambda: sum(e.topic == "/tasks/delete" for e in events.seen) == count, "every delete is told")
        events.read_all(0.3)
        assert {number: events.topics(f"m{number}") for number in range(count)} == dict.fromkeys(
            range(count), WHOLE_LIFE
        )
    if before is not None:
        assert set(shims) == {before[:2]}, "one keeper and one worker throughout"
        check_baseline(containerd, before)


def test_fifty_running_at_once(containerd: Containerd) -> None:
    before = None if containerd.shim.is_go else baseline(containerd)
    names = [f"m{number}" for number in range(50)]
    with containerd.events() as events:
        for some in batches(names, 8):
            starting = [
                containerd.popen(*containerd.run_arguments(name, "sleep", "1000", options=["-d", "--null-io"]))
                for name in some
            ]
            assert [process.wait(60) for process in starting] == [0] * len(starting)
        assert {name: status for name, (_, status) in containerd.tasks().items()} == dict.fromkeys(names, "RUNNING")
        if before is not None:
            assert (containerd.keeper().pid, containerd.worker().pid) == before[:2]
        addresses = {(containerd.bundle(name) / "address").read_text().removeprefix("unix://") for name in names}
        assert all(map(os.path.exists, addresses))
        for name in names:
            containerd.ctr("task", "kill", "-s", "9", name)
        events.wait_for(lambda: sum(e.topic == "/tasks/exit" for e in events.seen) == 50, "every exit is told")
        for name in names:
            containerd.ctr("task", "rm", name, check=False)
            containerd.ctr("container", "rm", name)
        events.wait_for(lambda: sum(e.topic == "/tasks/delete" for e in events.seen) == 50, "every delete is told")
        events.read_all(0.3)
        assert {name: events.topics(name) for name in names} == dict.fromkeys(names, WHOLE_LIFE)
        assert {event.fields["exit_status"] for event in events.seen if event.topic == "/tasks/exit"} == {137}
    assert containerd.leftovers() == []
    wait_until(lambda: not any(map(os.path.exists, addresses)), "the sockets are gone")
    if before is not None:
        check_baseline(containerd, before)


def test_an_exec_is_told_whole_and_before_the_init(containerd: Containerd) -> None:
    with containerd.events() as events:
        containerd.run_detached("c1", "sleep", "1000")
        assert containerd.exec("c1", "sh", "-c", "exit 3", exec_id="e1").status == 3
        fifos = f"{containerd.directory}/fifos"  # a client that detaches leaves them
        containerd.ctr("task", "exec", "-d", "--fifo-dir", fifos, "--exec-id", "e2", "c1", "sleep", "1000")
        containerd.remove("c1")
        events.wait_for(lambda: "delete" in events.topics("c1"), "the delete is told")
        events.read_all(0.3)
    told = [(event.topic.removeprefix("/tasks/"), told_of(event.fields)) for event in events.of("c1")]
    assert told == [
        ("create", "c1"),
        ("start", "c1"),
        ("exec-added", "e1"),
        ("exec-started", "e1"),
        ("exit", "e1"),
        ("exec-added", "e2"),
        ("exec-started", "e2"),
        ("exit", "e2"),
        ("exit", "c1"),
        ("delete", "c1"),
    ]


def test_an_idle_worker_holds_no_anonymous_pipe(containerd: Containerd, dunnage_alone: None) -> None:
    containerd.run_detached("c1", "sleep", "1000", options=["--null-io"])
    wait_until(lambda: not [x for x in fds(containerd.worker().pid) if x.startswith("pipe:")], "no anonymous pipe", 10)
    containerd.remove("c1")


def told_of(fields: object) -> object:
    assert isinstance(fields, dict)
    return fields.get("exec_id") or fields.get("id") or fields["container_id"]


def batches(names: list[str], size: int) -> list[list[str]]:
    return [names[first : first + size] for first in range(0, len(names), size)]
