"""A new child: the program or the function it becomes, and what it has from whom."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.keeper.conftest import Failed, Running, descendants

from dunnage.linux.attributes import Attributes

Start = Callable[..., Running]


def attributes_of_this(**changed: Any) -> dict[str, Any]:
    return Attributes.of(os.getpid())._replace(**changed).to_json()


def test_missing_command_is_told_in_gos_words(keeper: Running) -> None:
    with pytest.raises(Failed) as missing:
        keeper.ask("spawn", argv=["no-runc"])
    assert missing.value.args == (
        "FileNotFoundError",
        errno.ENOENT,
        'exec: "no-runc": executable file not found in $PATH',
    )
    with pytest.raises(Failed) as path:
        keeper.ask("spawn", argv=["/no/runc"])
    assert path.value.args[2] == "fork/exec /no/runc: no such file or directory"
    with pytest.raises(Failed) as directory:
        keeper.ask("spawn", argv=["true"], cwd="/no/where")
    assert directory.value.args[2] == "chdir /no/where: no such file or directory"
    while descendants(keeper.process.pid) != [keeper.ask("pids")["worker"]]:
        pass  # they are reaped when they are dead, nobody has to ask


def test_failure_longer_than_a_pipe_takes_at_once_is_told_all_the_same(keeper: Running) -> None:
    with pytest.raises(Failed) as failed:
        keeper.ask("spawn", argv=["x" * 10_000])
    assert failed.value.args[1] == errno.ENOENT
    assert failed.value.args[2].startswith('exec: "xxx')


def test_command_is_looked_up_in_the_path_of_its_own_environment(keeper: Running, tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    pid = keeper.ask("spawn", argv=["tool"], env={"PATH": f"/nowhere::{tool.parent}"})
    assert keeper.finish(pid) == [9, None]
    tool.chmod(0o644)
    with pytest.raises(Failed, match="executable file not found"):
        keeper.ask("spawn", argv=["tool"], env={"PATH": str(tool.parent)})


def test_environment_is_the_given_one_and_may_be_large(keeper: Running, tmp_path: Path) -> None:
    env = {"PATH": "/bin", "ODD": "\udcff\udcfe", **{f"V{index}": "x" * 1000 for index in range(500)}}
    pid = keeper.ask("spawn", argv=["env", "-0"], env=env, output=str(tmp_path / "env"))
    assert keeper.finish(pid) == [0, None]
    got = dict(entry.split(b"=", 1) for entry in (tmp_path / "env").read_bytes().rstrip(b"\0").split(b"\0"))
    assert got == {os.fsencode(key): os.fsencode(value) for key, value in env.items()}


def test_child_has_the_given_fds_and_null_for_the_rest(keeper: Running, tmp_path: Path) -> None:
    keeper.ask("store_text", name="note", text="x")
    pid = keeper.ask("spawn", argv=["ls", "-l", "/proc/self/fd"], output=str(tmp_path / "out"))
    assert keeper.finish(pid) == [0, None]
    links = [line.split(" -> ")[0].split()[-1] for line in (tmp_path / "out").read_text().splitlines()[1:]]
    assert links == ["0", "1", "2", "3"]  # 3 is ls's own directory
    assert "0 -> /dev/null" in (tmp_path / "out").read_text()


def test_fds_may_be_placed_where_each_others_sources_lie(keeper: Running) -> None:
    script = 'test "$(cat <&3)" = one && test "$(cat <&4)" = two && test "$(cat <&0)" != one'
    for first, second in ((3, 4), (4, 3)):
        text = script if first == 3 else script.replace("one", "x").replace("two", "one").replace("x", "two", 1)
        assert keeper.finish(keeper.ask("spawn_swapped", script=text, first=first, second=second)) == [0, None]


def test_working_directory_may_be_an_fd(keeper: Running, tmp_path: Path) -> None:
    deep = tmp_path / "a directory"
    deep.mkdir()
    pid = keeper.ask("spawn_in_directory_fd", path=str(deep), output=str(tmp_path / "out"))
    assert keeper.finish(pid) == [0, None]
    assert (tmp_path / "out").read_text() == f"{deep}\n"


def test_two_hundred_and_fifty_fds_travel_and_more_are_refused(keeper: Running, tmp_path: Path) -> None:
    pid = keeper.ask("spawn_with_fds", count=250, output=str(tmp_path / "out"))
    assert keeper.finish(pid) == [0, None]
    assert len((tmp_path / "out").read_text().split()) == 250 + 2 + 1  # and 0, 2, ls's own
    with pytest.raises(Failed, match="at most 250"):
        keeper.ask("spawn_with_fds", count=251, output=str(tmp_path / "out"))


def test_attributes_are_those_asked_for(keeper: Running, tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    asked = attributes_of_this(
        umask=0o027,
        nice=7,
        affinity=frozenset(cpus[:1]),
        oom_score_adj=321,
        rlimits={resource.RLIMIT_NOFILE: (123, 456), resource.RLIMIT_CORE: (0, 0)},
    )
    pid = keeper.ask("spawn", argv=["sleep", "1000"], attributes=asked)
    try:
        got = Attributes.of(pid)
        assert (got.umask, got.nice, got.affinity, got.oom_score_adj) == (0o027, 7, frozenset(cpus[:1]), 321)
        assert got.rlimits[resource.RLIMIT_NOFILE] == (123, 456)
        assert got.rlimits[resource.RLIMIT_CORE] == (0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
    keeper.finish(pid)


def test_attributes_not_asked_for_are_those_the_keeper_was_started_with(start_keeper: Start) -> None:
    keeper = start_keeper(limit="ulimit -S -n 200; umask 037", preexec_fn=lambda: os.nice(3))
    pid = keeper.ask("spawn", argv=["sleep", "1000"])
    got, mine = Attributes.of(pid), Attributes.of(os.getpid())
    assert got.rlimits[resource.RLIMIT_NOFILE] == (200, mine.rlimits[resource.RLIMIT_NOFILE][1])
    assert (got.umask, got.nice, got.oom_score_adj) == (0o037, mine.nice + 3, mine.oom_score_adj)
    soft, hard = keeper.ask("state")["nofile"]
    assert soft == hard  # the worker's own limit is raised
    os.kill(pid, signal.SIGKILL)
    keeper.finish(pid)


def test_child_starts_with_no_signal_blocked_or_ignored(keeper: Running, tmp_path: Path) -> None:
    pid = keeper.ask("spawn", argv=["grep", "Sig[BI]", "/proc/self/status"], output=str(tmp_path / "out"))
    keeper.finish(pid)
    lines = dict(line.split() for line in (tmp_path / "out").read_text().splitlines())
    assert {int(mask, 16) for mask in lines.values()} == {0}


def test_forked_child_runs_a_function_of_the_warm_image_with_named_fds(keeper: Running) -> None:
    entry = "tests.keeper.worker:read_and_add"
    pid = keeper.ask("fork", entry=entry, argument={"number": 1}, texts={"a": "20", "b": "300"})
    assert keeper.finish(pid) == [321 & 0xFF, None]


def test_forked_child_has_no_fd_but_its_own(keeper: Running) -> None:
    keeper.ask("store_text", name="note", text="x")
    pid = keeper.ask("fork", entry="tests.keeper.worker:count_fds", argument=3, texts={"a": ""})
    assert keeper.finish(pid) == [1, None]


def test_failing_function_ends_with_status_1_and_its_traceback_in_the_log(keeper: Running) -> None:
    pid = keeper.ask("fork", entry="tests.keeper.worker:fail", argument=None)
    assert keeper.finish(pid) == [1, None]
    assert "RuntimeError: as told" in keeper.log


def test_large_argument_travels(keeper: Running) -> None:
    argument = {"number": 5, "ballast": "x" * 300_000}
    pid = keeper.ask("fork", entry="tests.keeper.worker:read_and_add", argument=argument, texts={"a": "6"})
    assert keeper.finish(pid) == [11, None]


def test_mounts_are_made_by_a_forked_child_and_are_seen_by_all(keeper: Running, tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    mounts = [{"type": "tmpfs", "source": "tmpfs", "target": "", "options": ["size=64k"]}]
    argument = {"rootfs": str(rootfs), "mounts": mounts}
    pid = keeper.ask("fork", entry="dunnage.linux.mount:mount_all", argument=argument, texts={"error": ""})
    assert keeper.finish(pid) == [0, None]
    assert os.path.ismount(rootfs)
    pid = keeper.ask("fork", entry="dunnage.linux.mount:unmount_all", argument=argument, texts={"error": ""})
    assert keeper.finish(pid) == [0, None]
    assert not os.path.ismount(rootfs)
