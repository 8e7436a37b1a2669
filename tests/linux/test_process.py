"""What a process changes about itself, tried in a child."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dunnage.linux.attributes import Attributes
from dunnage.linux.namespaces import namespaces
from dunnage.linux.process import session_hierarchies

SRC = Path(__file__).resolve().parents[2] / "src"


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", f"import os, sys\nfrom dunnage.linux.process import *\n{code}", *arguments]
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def test_title_replaces_the_command_line_and_not_the_environment() -> None:
    code = """
before = open('/proc/self/environ').read()
assert set_title(['containerd-shim-dunnage-v2', 'worker', 'node'])
assert open('/proc/self/environ').read() == before
print(open('/proc/self/cmdline', 'rb').read().rstrip(bytes(1)))
"""
    assert run(code, "x" * 100) == "b'containerd-shim-dunnage-v2\\x00worker\\x00node'\n"


def test_title_is_cut_to_the_room_there_is() -> None:
    code = "set_title(['y' * 100_000]); print(len(open('/proc/self/cmdline').read()) < 100_000)"
    assert run(code) == "True\n"


def test_name_is_cut_to_fifteen_bytes() -> None:
    assert run("set_name('containerd-shim-dunnage'); print(open('/proc/self/comm').read())") == "containerd-shim\n\n"


def test_orphan_comes_to_the_subreaper() -> None:
    code = """
set_child_subreaper()
reading, writing = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.read(reading, 1)
        os._exit(5 if os.getppid() == int(sys.argv[1] or 0) else 6)
    os._exit(0)
os.wait()
os.write(writing, b'x')
print(os.waitstatus_to_exitcode(os.wait()[1]))
""".replace("int(sys.argv[1] or 0)", "keeper").replace("set_child", "keeper = os.getpid()\nset_child")
    assert run(code) == "5\n"


def test_terminal_is_left() -> None:
    assert run(
        "before = os.getsid(0); leave_terminal(); print(os.getsid(0) == os.getpid() != before, os.getcwd())"
    ) == ("True /\n")


def test_only_hierarchies_of_a_users_session_are_left() -> None:
    mounts = """\
30 20 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
31 20 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
32 20 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 20 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 20 0:30 /part /elsewhere rw - cgroup cgroup rw,pids
"""
    memberships = """\
5:pids:/user.slice/user-0.slice
4:memory:/system.slice/containerd.service
3:cpu,cpuacct:/user.slice
1:name=systemd:/user.slice/user-0.slice/session-1.scope
0::/user.slice/user-0.slice/session-1.scope
"""
    assert session_hierarchies(memberships, mounts) == [
        "/sys/fs/cgroup/cpu,cpuacct",
        "/sys/fs/cgroup/systemd",
        "/sys/fs/cgroup/unified",
    ]


@pytest.mark.parametrize("separator", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_a_mount_point_of_any_name_is_one_line(tmp_path: Path, separator: str) -> None:
    """The kernel escapes space, tab, newline and backslash, and nothing else."""
    point = tmp_path / f"a{separator}b"
    point.mkdir()
    code = (
        "import subprocess\nsubprocess.run(['mount', '-t', 'tmpfs', 'none', sys.argv[1]], check=True)\nleave_terminal()"
    )
    command = ["unshare", "-m", sys.executable, "-c", f"import os, sys\nfrom dunnage.linux.process import *\n{code}"]
    subprocess.run([*command, str(point)], env={**os.environ, "PYTHONPATH": str(SRC)}, check=True)


def test_attributes_survive_the_wire() -> None:
    attributes = Attributes.of(os.getpid())
    assert Attributes.from_json(attributes.to_json()) == attributes
    assert attributes.affinity == os.sched_getaffinity(0)
    with pytest.raises(ProcessLookupError):
        Attributes.of(2**22)


def test_what_may_not_be_had_is_named() -> None:
    code = """
from dunnage.linux.attributes import Attributes
mine = Attributes.of(os.getpid())
print(mine.apply(), mine._replace(rlimits={7: (5, 1)}, affinity=frozenset({1023})).apply())
"""
    mine, other = run(code).split(" ", 1)
    assert mine == "[]"
    assert "affinity" in other
    assert "limit 7 5:1" in other


def test_namespaces_are_those_of_the_process() -> None:
    mine = namespaces("self")
    assert mine == namespaces(os.getpid())
    assert {"mnt", "net", "pid", "user"} <= set(mine)
    with subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        child.stdin.write(b"x")
        child.stdin.flush()
        child.stdout.read(1)
        other = namespaces(child.pid)
        child.stdin.close()
    assert {kind for kind in mine if mine[kind] != other[kind]} == {"net"}
    with pytest.raises(ProcessLookupError):
        namespaces(2**22)


def test_cgroup_of_a_users_session_is_left(tmp_path: Path) -> None:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        points = [line.split()[4] for line in file if " - cgroup2 " in line or line.rstrip().endswith(",pids")]
    if not points or not os.access(points[0], os.W_OK):
        pytest.skip("needs CAP_SYS_RESOURCE or a cgroup hierarchy to write to")
    root = Path(points[0])
    session, home = root / "user.slice" / f"dunnage-test-{os.getpid()}.scope", root / "system.slice" / "dunnage"
    were_there = [path for path in (home, home.parent, session.parent) if path.exists()]
    session.mkdir(parents=True)
    code = """
with open(sys.argv[1] + '/cgroup.procs', 'w') as procs:
    procs.write(str(os.getpid()))
leave_terminal()
print(str(os.getpid()) in open(sys.argv[2] + '/cgroup.procs').read().split())
"""
    try:
        assert run(code, str(session), str(home)) == "True\n"
    finally:
        for path in (session, home, home.parent, session.parent):
            if path not in were_there:
                path.rmdir()
