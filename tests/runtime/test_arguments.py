"""Argv as literals: flag for flag what go-runc writes."""

from __future__ import annotations

import pytest

from dunnage.runtime import arguments
from dunnage.runtime.arguments import Arguments, Criu

FULL = Criu(
    image_path="/i",
    work_path="/w",
    parent_path="/p",
    open_tcp=True,
    external_unix_sockets=True,
    terminal=True,
    file_locks=True,
    cgroups_mode="soft",
    empty_namespaces=("network", "uts"),
)
FULL_ARGV = (
    "--image-path /i --work-path /w --parent-path /p --tcp-established --ext-unix-sk --shell-job --file-locks"
    " --manage-cgroups-mode soft --empty-ns network --empty-ns uts"
)


@pytest.mark.parametrize(
    ("options", "argv"),
    [
        (arguments.Create("/b", "/b/init.pid"), "create --bundle /b --pid-file /b/init.pid c1"),
        (
            arguments.Create("/b", "/b/init.pid", "/t/pty.sock", no_pivot=True, no_new_keyring=True),
            "create --bundle /b --pid-file /b/init.pid --console-socket /t/pty.sock --no-pivot --no-new-keyring c1",
        ),
        (arguments.Start(), "start c1"),
        (arguments.Exec("/p.json", "/b/e1.pid"), "exec --process /p.json --detach --pid-file /b/e1.pid c1"),
        (
            arguments.Exec("/p.json", "/b/e1.pid", "/t/pty.sock"),
            "exec --process /p.json --console-socket /t/pty.sock --detach --pid-file /b/e1.pid c1",
        ),
        (arguments.Kill(15), "kill c1 15"),
        (arguments.Kill(9, all=True), "kill --all c1 9"),
        (arguments.Delete(), "delete c1"),
        (arguments.Delete(force=True), "delete --force c1"),
        (arguments.Pause(), "pause c1"),
        (arguments.Resume(), "resume c1"),
        (arguments.Ps(), "ps --format json c1"),
        (arguments.State(), "state c1"),
        (arguments.Update(), "update --resources=- c1"),
        (arguments.Checkpoint(Criu("/i")), "checkpoint --image-path /i --leave-running c1"),
        (arguments.Checkpoint(Criu("/i", "/w"), leave_running=False), "checkpoint --image-path /i --work-path /w c1"),
        (arguments.Checkpoint(FULL), f"checkpoint {FULL_ARGV} --leave-running c1"),
        (
            arguments.Restore(FULL, "/b", "/b/init.pid", "/t/pty.sock", no_pivot=True),
            f"restore {FULL_ARGV} --detach --pid-file /b/init.pid --console-socket /t/pty.sock --no-pivot -no-subreaper"
            " --bundle /b c1",
        ),
        (
            arguments.Restore(Criu("/i", "/w"), "/b", "/b/init.pid"),
            "restore --image-path /i --work-path /w --detach --pid-file /b/init.pid -no-subreaper --bundle /b c1",
        ),
    ],
)
def test_argv(options: Arguments, argv: str) -> None:
    assert options.argv("c1") == argv.split(" ")
    assert options.verb == argv.partition(" ")[0]


def test_what_stands_before_the_subcommand() -> None:
    assert arguments.Globals("/r", "/b/log.json").argv() == [
        "--root",
        "/r",
        "--log",
        "/b/log.json",
        "--log-format",
        "json",
    ]
    last = arguments.Globals("/r", "/b/log.json", systemd_cgroup=True, criu="/opt/criu").argv()[6:]
    assert last == ["--criu", "/opt/criu", "--systemd-cgroup"]


def test_a_pid_file_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert f"{tmp_path}/init.pid" in arguments.Create("/b", "init.pid").argv("c1")
