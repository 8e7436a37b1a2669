"""Keeper and worker both gone, or not answering, or going down with the machine: containerd's `delete` then has the
bundle's files alone, and the containers have nobody."""

from __future__ import annotations

import functools
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.containerd.harness import Containerd, Events, Shim, all_processes, cgroups_below, wait_until
from tests.containerd.test_restart import is_gone

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("dunnage_alone")]

STUBBORN = ["sh", "-c", "trap '' TERM HUP INT; while :; do sleep 0.05; done"]


def kill_all(containerd: Containerd) -> None:
    """As when somebody kills every shim of the node, the keeper first."""
    keeper, worker = containerd.keeper().pid, containerd.worker().pid
    for pid in (keeper, worker):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(keeper) and is_gone(worker), "keeper and worker are gone")


@pytest.fixture(autouse=True)
def what_is_left_of_shims_and_clients(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nobody removes the address of a shim that was killed before its group ended, nor the fifos of a client that hears
    of the end from containerd: under the Go shim neither. On a shared host they may be another's."""
    directories = [Path("/run/containerd/s"), Path("/run/containerd/fifo")]
    before = {path for directory in directories if directory.is_dir() for path in directory.iterdir()}
    yield
    if request.config.getoption("shared_host"):
        return
    for directory in directories:
        for path in set(directory.iterdir()) - before:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def remove_sockets(containerd: Containerd) -> None:
    """What no later keeper replaces of one that was killed."""
    for directory in containerd.state_directories():
        for name in ("control", "node"):
            (directory / name).unlink(missing_ok=True)


def is_told(events: Events, name: str) -> bool:
    return "delete" in events.topics(name)


def test_containers_whose_shim_was_killed_are_deleted_and_told_of(containerd: Containerd) -> None:
    names = ["c1", "c2"]
    with containerd.events() as events:
        for name in names:
            containerd.run_detached(name, *STUBBORN)
        containerd.ctr("task", "exec", "--detach", "--exec-id", "e", "c1", *STUBBORN)
        wait_until(lambda: sum(STUBBORN[-1] in process.argv for process in all_processes()) == 3, "all three run")
        pids = {name: containerd.tasks()[name][0] for name in names}
        begun = time.monotonic()
        kill_all(containerd)
        for name in names:
            events.wait_for(functools.partial(is_told, events, name), f"the end of {name} is told")
        took_s = time.monotonic() - begun
        told = {name: events.of(name)[-2:] for name in names}
    for name in names:
        exit, deletion = told[name]
        assert (exit.topic, deletion.topic) == ("/tasks/exit", "/tasks/delete")
        for event in told[name]:
            assert (event.fields["pid"], event.fields["exit_status"]) == (pids[name], 137)
        wait_until(functools.partial(is_gone, pids[name]), f"{name} has ended")
        assert not containerd.bundle(name).exists()
    assert took_s < 5
    assert containerd.tasks() == {}
    assert not [process for process in all_processes() if STUBBORN[-1] in process.argv]
    assert cgroups_below(containerd.namespace) == []
    assert not os.listdir(f"/run/containerd/runc/{containerd.namespace}")
    assert containerd.mounts() == []
    for name in names:
        containerd.ctr("container", "rm", name)
    assert containerd.run("c3", "echo", "again").stdout == b"again\n"


@pytest.mark.long
def test_none_of_fifty_containers_goes_on_without_a_shim(containerd: Containerd) -> None:
    """containerd runs 50 deletes at once, and kills those that take more than 5 s."""
    names = [f"c{number}" for number in range(50)]
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda name: containerd.run_detached(name, "sleep", "1000"), names):
            pass
    pids = [pid for pid, _ in containerd.tasks().values()]
    assert len(pids) == len(names)
    kill_all(containerd)
    wait_until(lambda: not os.listdir(containerd.bundle("x").parent), "containerd has cleaned up")
    wait_until(lambda: all(map(is_gone, pids)), "all containers have ended")
    assert os.listdir(f"/run/containerd/runc/{containerd.namespace}") == []
    assert b"signal: killed" not in containerd.log.read_bytes()
    for name in names:
        containerd.ctr("container", "rm", name)
    remove_sockets(containerd)


def test_a_containerd_that_finds_its_shim_killed_cleans_up(containerd: Containerd) -> None:
    containerd.run_detached("c1", *STUBBORN)
    pid = containerd.tasks()["c1"][0]
    containerd.stop()
    kill_all(containerd)
    assert not is_gone(pid)
    containerd.start()
    assert containerd.tasks() == {}
    wait_until(lambda: is_gone(pid), "the container has ended")
    containerd.ctr("container", "rm", "c1")
    remove_sockets(containerd)


def state_of(worker: int, log: Path) -> bytes:
    """What it says of itself (SIGUSR1)."""
    begun = log.stat().st_size
    os.kill(worker, signal.SIGUSR1)
    wait_until(lambda: b"=== end of the state" in log.read_bytes()[begun:], "it has told its state")
    return log.read_bytes()[begun:].partition(b"it was interrupted at")[0].replace(b"groups", b"")


@pytest.mark.long
def test_a_containerd_that_finds_its_shim_hanging_cleans_up(containerd: Containerd) -> None:
    """It waits 5 s for the answer to its Connect, and then 5 s for `delete`."""
    containerd.run_detached("c1", *STUBBORN)
    pid = containerd.tasks()["c1"][0]
    containerd.stop()
    keeper, worker = containerd.keeper().pid, containerd.worker().pid
    for hung in (keeper, worker):
        os.kill(hung, signal.SIGSTOP)
    try:
        containerd.start()
        assert containerd.tasks() == {}
        # it is the child of a keeper that cannot reap
        assert is_gone(pid)
        assert not containerd.bundle("c1").exists()
    finally:
        for hung in (keeper, worker):
            os.kill(hung, signal.SIGCONT)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the keeper that goes on has reaped it")
    # and nothing is kept of it, else the keeper would stay for ever
    log = containerd.state_directories()[0] / "log"
    wait_until(lambda: b"was deleted without us" in log.read_bytes(), "the worker has heard of it")
    wait_until(lambda: b"group" not in state_of(worker, log), "its group has gone")
    containerd.ctr("container", "rm", "c1")
    assert containerd.run("c2", "echo", "again").stdout == b"again\n"


@pytest.fixture
def containerd_of_a_machine_going_down(
    shim: Shim, image_tar: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containerd]:
    """One whose `/run` says what systemd says of a shutdown that is on."""
    directory = tmp_path_factory.mktemp("d")
    for path in ("/run/containerd", "/run/dunnage"):
        os.makedirs(path, exist_ok=True)
    script = f"""
        new={directory}/run; mkdir -p $new && mount -t tmpfs none $new && cd $new
        mkdir -p containerd dunnage systemd/system && touch nologin
        mount --rbind /run/containerd containerd && mount --rbind /run/dunnage dunnage && mount --rbind $new /run
        exec "$@"
    """
    prefix = ["unshare", "--mount", "sh", "-ec", script, "-"]
    with Containerd(directory, shim, image_tar=image_tar, prefix=prefix) as running:
        yield running
        shutil.rmtree(directory / "run", ignore_errors=True)


def test_a_machine_that_goes_down_waits_for_neither_keeper_nor_worker(
    containerd_of_a_machine_going_down: Containerd,
) -> None:
    containerd = containerd_of_a_machine_going_down
    containerd.run_detached("c1", *STUBBORN)
    pid = containerd.tasks()["c1"][0]
    shims = containerd.shims()
    assert len(shims) == 2
    pidfds = [os.pidfd_open(shim.pid) for shim in shims]
    everybody = [*(process.pid for process in containerd.processes()), pid]
    begun = time.monotonic()
    for one in everybody:
        os.kill(one, signal.SIGTERM)
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], 10)[0]
        os.close(pidfd)
    assert time.monotonic() - begun < 2
    assert not is_gone(pid), "its end is the business of whoever ends the machine"
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid), "the container has ended")
    containerd.stop()
    containerd.start()  # `delete` by the files alone
    assert containerd.tasks() == {}
    containerd.ctr("container", "rm", "c1")
    remove_sockets(containerd)
