"""Real runtimes, called: runc and crun answer the same calls, and their failures come out whole."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.runtime.local import Bundle, wait_for_exit

from dunnage import errors
from dunnage.runtime import arguments, failures
from dunnage.runtime.client import Stdio
from dunnage.runtime.console import ConsoleSocket
from dunnage.runtime.failures import CommandFailed

pytestmark = pytest.mark.real
Make = Callable[..., Bundle]

PROCESS = {"user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"], "cwd": "/"}


def create(bundle: Bundle, stdio: Stdio | None = None) -> arguments.Create:
    options = arguments.Create(str(bundle.directory), str(bundle.pid_file))
    asyncio.run(bundle.runtime.create(bundle.container, options, stdio or Stdio()))
    return options


def start(bundle: Bundle, stdio: Stdio | None = None) -> int:
    create(bundle, stdio)
    asyncio.run(bundle.runtime.start(bundle.container))
    return bundle.pid


def kill(bundle: Bundle, number: int = 9) -> None:
    asyncio.run(bundle.runtime.kill(bundle.container, number))


def delete(bundle: Bundle) -> None:
    asyncio.run(bundle.runtime.delete(bundle.container))
    assert list(bundle.root.iterdir()) == []


def test_a_container_from_create_to_delete(make_bundle: Make) -> None:
    bundle = make_bundle(["sh", "-c", "echo out; echo err >&2; read line; echo $line; exit 7"])
    read, write = os.pipe()
    stdin_read, stdin_write = os.pipe()
    create(bundle, Stdio(stdin_read, write, write))
    os.close(stdin_read)
    os.close(write)
    assert asyncio.run(bundle.runtime.state(bundle.container))["status"] == "created"
    asyncio.run(bundle.runtime.start(bundle.container))
    assert asyncio.run(bundle.runtime.ps(bundle.container)) == [bundle.pid]
    os.write(stdin_write, b"in\n")
    os.close(stdin_write)
    with open(read) as output:
        assert output.read() == "out\nerr\nin\n"
    assert wait_for_exit(bundle.pid) == 7
    assert asyncio.run(bundle.runtime.state(bundle.container))["status"] == "stopped"
    delete(bundle)
    name = f"runtime:test/{bundle.container}"
    verbs = ["create", "state", "start", "ps", "state", "delete"]
    assert bundle.spawner.names == [f"{name}:{verb}" for verb in verbs]


def test_a_missing_command_is_told_in_the_runtime_s_own_words(make_bundle: Make) -> None:
    bundle = make_bundle(["nope"])
    sentence = {
        "runc": "runc create failed: unable to start container process: "
        'exec: "nope": executable file not found in $PATH',
        "crun": "executable file `nope` not found in $PATH: No such file or directory",
    }
    with pytest.raises(errors.Error) as told:
        create(bundle)
    assert str(told.value) == f"OCI runtime create failed: {sentence[bundle.command]}"
    assert isinstance(told.value.__cause__, CommandFailed)


@pytest.mark.parametrize("collected", [True, False])
def test_a_missing_runtime_is_named(make_bundle: Make, collected: bool) -> None:
    bundle = make_bundle(["true"])
    options = arguments.Create(str(bundle.directory), str(bundle.pid_file))
    with pytest.raises(errors.Error) as told:
        asyncio.run(bundle.make_runtime("no-runc").create(bundle.container, options, None if collected else Stdio()))
    log = bundle.directory / "log.json"
    assert str(told.value) == (
        f"OCI runtime create failed: unable to retrieve OCI runtime error (open {log}: no such file or directory): "
        'exec: "no-runc": executable file not found in $PATH'
    )


def test_a_path_that_is_no_runtime_has_the_kernel_s_reason(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle(["true"])
    (tmp_path / "file").write_text("")
    for path, reason in ((tmp_path / "none", "no such file or directory"), (tmp_path / "file", "permission denied")):
        with pytest.raises(CommandFailed, match=rf"^fork/exec {path}: {reason}$"):
            asyncio.run(bundle.make_runtime(str(path)).ps(bundle.container))


def test_an_old_error_is_not_told_again(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle(["nope"])
    with pytest.raises(errors.Error, match="nope"):
        create(bundle)
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\necho ${NOTIFY_SOCKET-words}; exit 3\n")
    silent.chmod(0o755)
    with pytest.raises(errors.Error) as told:
        asyncio.run(bundle.make_runtime(str(silent)).start(bundle.container))
    assert str(told.value) == (
        f"OCI runtime start failed: {silent} did not terminate successfully: exit status 3: words\n"
    )


def test_an_exec_runs_and_its_file_is_gone(make_bundle: Make) -> None:
    bundle = make_bundle(["sleep", "100"])
    init = start(bundle)
    read, write = os.pipe()
    pid_file = bundle.directory / "e1.pid"
    process = PROCESS | {"args": ["sh", "-c", "echo hello; exit 5"]}
    before = {path.name for path in bundle.directory.iterdir()}
    call = bundle.runtime.exec(bundle.container, "e1", process, pid_file=str(pid_file), stdio=Stdio(None, write, write))
    asyncio.run(call)
    os.close(write)
    with open(read) as output:
        assert output.read() == "hello\n"
    assert wait_for_exit(int(pid_file.read_text())) == 5
    assert {path.name for path in bundle.directory.iterdir()} - before == {"e1.pid"}
    assert bundle.spawner.names[-1] == f"runtime:test/{bundle.container}/e1:exec"
    kill(bundle)
    assert wait_for_exit(init) == 137
    delete(bundle)


def test_a_missing_command_of_an_exec(make_bundle: Make) -> None:
    bundle = make_bundle(["sleep", "100"])
    start(bundle)
    sentence = {
        "runc": 'exec failed: unable to start container process: exec: "nope": executable file not found in $PATH',
        "crun": "executable file `nope` not found in $PATH: No such file or directory",
    }
    process = PROCESS | {"args": ["nope"]}
    with pytest.raises(errors.Error) as told:
        asyncio.run(bundle.runtime.exec(bundle.container, "e1", process, pid_file="e1.pid", stdio=Stdio()))
    assert str(told.value) == f"OCI runtime exec failed: {sentence[bundle.command]}"
    assert not list(bundle.directory.glob("process*"))


def test_kill_of_what_has_ended_or_never_was_is_not_found(make_bundle: Make) -> None:
    bundle = make_bundle(["sleep", "100"])
    init = start(bundle)
    kill(bundle)
    wait_for_exit(init)
    with pytest.raises(errors.NotFound, match=r"^process already finished$"):
        kill(bundle)
    delete(bundle)
    with pytest.raises(errors.NotFound, match=r"^no such container$"):
        kill(bundle)
    with pytest.raises(errors.NotFound, match=r"^no such container$"):
        asyncio.run(bundle.runtime.state(bundle.container))
    delete(bundle)


def test_kill_all_ends_every_process(make_bundle: Make) -> None:
    bundle = make_bundle(["sh", "-c", "sleep 100 & sleep 100 & wait"])
    init = start(bundle)
    asyncio.run(bundle.runtime.kill(bundle.container, signal.SIGKILL, all=True))
    assert wait_for_exit(init) == 137


def test_pause_update_resume(make_bundle: Make) -> None:
    bundle = make_bundle(["sleep", "100"])
    start(bundle)
    asyncio.run(bundle.runtime.pause(bundle.container))
    assert asyncio.run(bundle.runtime.state(bundle.container))["status"] == "paused"
    asyncio.run(bundle.runtime.resume(bundle.container))
    asyncio.run(bundle.runtime.update(bundle.container, json.dumps({"pids": {"limit": 23}}).encode()))
    roots = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))
    limits = [root / bundle.container / "pids.max" for root in roots]
    assert [path.read_text() for path in limits if path.exists()] == ["23\n"]
    with pytest.raises(CommandFailed, match=f"^{bundle.command} did not terminate successfully: exit status 1: "):
        asyncio.run(bundle.runtime.update(bundle.container, b"{"))


def test_a_failed_start_names_the_reason(make_bundle: Make) -> None:
    bundle = make_bundle(["sleep", "100"])
    start(bundle)
    sentence = {
        "runc": "cannot start an already running container",
        "crun": f"cannot open `{bundle.root}/{bundle.container}/exec.fifo`: No such file or directory",
    }
    with pytest.raises(errors.Error) as told:
        asyncio.run(bundle.runtime.start(bundle.container))
    assert str(told.value) == f"OCI runtime start failed: {sentence[bundle.command]}"
    with pytest.raises(errors.Error, match=r"^failed to delete task: .* not"):
        asyncio.run(bundle.runtime.delete(bundle.container))


def test_a_terminal_comes_over_the_console_socket(make_bundle: Make) -> None:
    bundle = make_bundle(["sh", "-c", "test -t 0 && test -t 1 && test -t 2 && echo hi"], terminal=True)

    async def run() -> int:
        async with ConsoleSocket.open(os.environ) as console:
            options = arguments.Create(str(bundle.directory), str(bundle.pid_file), console.path)
            receiving = asyncio.create_task(console.receive(10))
            await bundle.runtime.create(bundle.container, options)
            master = await receiving
        os.set_blocking(master, True)
        await bundle.runtime.start(bundle.container)
        return master

    master = asyncio.run(run())
    output = b""
    try:
        while chunk := os.read(master, 4096):
            output += chunk
    except OSError:
        pass  # EIO: the last holder of the slave has gone
    os.close(master)
    assert output == b"hi\r\n"
    assert wait_for_exit(bundle.pid) == 0
    delete(bundle)


def test_a_call_that_does_not_end_is_a_deadline_that_names_it(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle(["true"])
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 100\n")
    slow.chmod(0o755)
    runtime = bundle.make_runtime(str(slow), deadline_s=0.1)
    expected = rf"^{slow} exec of container {bundle.container} did not end within 0\.1 s$"
    with pytest.raises(errors.DeadlineExceeded, match=expected):
        asyncio.run(runtime.exec(bundle.container, "e1", PROCESS, pid_file="e1.pid"))
    assert not list(bundle.directory.glob("process*"))


def test_a_checkpoint_and_a_restore_have_a_deadline_of_their_own(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle(["true"])
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 100\n")
    slow.chmod(0o755)
    runtime = bundle.make_runtime(str(slow), deadline_s=0.1, checkpoint_deadline_s=0.2)
    criu = arguments.Criu("/image")
    restore = arguments.Restore(criu, str(bundle.directory), "init.pid")
    with pytest.raises(errors.DeadlineExceeded, match=r"checkpoint of container .* did not end within 0\.2 s$"):
        asyncio.run(runtime.checkpoint(bundle.container, arguments.Checkpoint(criu)))
    with pytest.raises(errors.DeadlineExceeded, match=r"restore of container .* did not end within 0\.2 s$"):
        asyncio.run(runtime.restore(bundle.container, restore))
    with pytest.raises(errors.DeadlineExceeded, match=r"start of container .* did not end within 0\.1 s$"):
        asyncio.run(runtime.start(bundle.container))


def test_a_grandchild_that_keeps_the_output_open_does_not_hang_the_call(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle(["true"])
    forking = tmp_path / "forking"
    pid = tmp_path / "pid"
    forking.write_text(f"#!/bin/sh\nsleep 100 & echo $! > {pid}; echo '[3, 1]'; echo warning >&2\n")
    forking.chmod(0o755)
    assert asyncio.run(bundle.make_runtime(str(forking), deadline_s=10).ps(bundle.container)) == [3, 1]
    grandchild = int(pid.read_text())
    os.kill(grandchild, signal.SIGKILL)
    assert wait_for_exit(grandchild) == 137


@pytest.mark.parametrize("said", ["", "nonsense", "7", "[[1]]", '"x"'])
def test_what_is_no_answer_is_an_error_of_ours(tmp_path: Path, said: str) -> None:
    babbling = tmp_path / "babbling"
    babbling.write_text(f"#!/bin/sh\necho '{said}'\n")
    babbling.chmod(0o755)
    runtime = Bundle(tmp_path, str(babbling), "c1").runtime
    with pytest.raises(CommandFailed, match=f"{babbling} ps of container c1 gives no pids: "):
        asyncio.run(runtime.ps("c1"))
    with pytest.raises(CommandFailed, match=f"{babbling} state of container c1 gives none: "):
        asyncio.run(runtime.state("c1"))


def test_two_calls_that_fail_at_once_tell_their_own_errors(make_bundle: Make, tmp_path: Path) -> None:
    """Each waits for the other to have logged, so that both have before either has ended."""
    bundle = make_bundle(["true"])
    both = tmp_path / "both"
    both.write_text(
        f"""#!/bin/sh
        log=$4; for verb; do case $verb in start|pause) break;; esac; done
        echo "{{\\"level\\":\\"warning\\",\\"msg\\":\\"$verb is odd\\"}}" >> $log
        echo "{{\\"level\\":\\"error\\",\\"msg\\":\\"$verb is not possible\\"}}" >> $log
        mkdir {tmp_path}/$verb
        while ! [ -d {tmp_path}/start ] || ! [ -d {tmp_path}/pause ]; do :; done
        exit 1
        """
    )
    both.chmod(0o755)
    runtime = bundle.make_runtime(str(both))

    async def run() -> list[BaseException | None]:
        calls = (runtime.start(bundle.container), runtime.pause(bundle.container))
        return list(await asyncio.gather(*calls, return_exceptions=True))

    told = asyncio.run(run())
    assert [str(error) for error in told] == [
        "OCI runtime start failed: start is not possible",
        "OCI runtime pause failed: pause is not possible",
    ]
    for error, verb in zip(told, ("start", "pause"), strict=True):
        assert error is not None
        failure = error.__cause__
        assert isinstance(failure, CommandFailed)
        assert (failure.call.verb, failure.call.argv[0], failure.call.status) == (verb, str(both), 1)
        assert failure.call.argv[-2:] == (verb, bundle.container)
        assert [record.message for record in failures.records(failure.log)] == [
            f"{verb} is odd",
            f"{verb} is not possible",
        ]
    log = (bundle.directory / "log.json").read_text().splitlines()
    assert len(log) == 4, "the bundle's log has all"
    assert not list(bundle.directory.glob("dunnage-*"))


@pytest.mark.parametrize(("end", "killed"), [("exit 137", True), ("kill -9 $$", True), ("exit 1", False)])
def test_a_wrapper_that_says_its_runtime_was_killed_counts_as_killed(
    make_bundle: Make, tmp_path: Path, end: str, killed: bool
) -> None:
    bundle = make_bundle(["true"])
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f"#!/bin/sh\n{end}\n")
    wrapper.chmod(0o755)
    with pytest.raises(CommandFailed) as told:
        asyncio.run(bundle.make_runtime(str(wrapper)).ps(bundle.container))
    assert told.value.killed is killed
    assert told.value.call.status == (137 if killed else 1)
