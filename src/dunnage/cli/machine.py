"""What dunnage needs of a machine: its kernel, its cgroups, an OCI runtime, and containerd where it is to drive."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

from dunnage import config, errors
from dunnage.cli.finding import Finding, missing, note, ok
from dunnage.client import DEFAULT_STATE

_CALL_S = 10.0
_OLDEST_PYTHON = (3, 11)
_CONTAINERD_CONFIG = Path("/etc/containerd/config.toml")
_SHIM = "containerd-shim-dunnage-v2"
_RUNTIME_TYPE = "io.containerd.dunnage.v2"
# where containerd's own PATH usually leads, whatever ours is
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def findings() -> Iterator[Finding]:
    """Every check of the machine, in the order in which one thing needs another."""
    yield _privilege()
    yield from _kernel()
    yield from _cgroups()
    yield _system_python()
    yield from _runtimes()
    yield _state_directory()
    yield _configuration()
    yield from _containerd()


def _privilege() -> Finding:
    if os.geteuid() == 0:
        return ok("user", "root")
    return missing("user", f"user {os.geteuid()}, not root", "run dunnage as root: sudo dunnage …")


def _kernel() -> Iterator[Finding]:
    release = os.uname().release
    try:
        os.close(os.pidfd_open(os.getpid()))
        yield ok("kernel", f"{release}, with pidfds")
    except (AttributeError, OSError):
        yield missing("kernel", f"{release} has no pidfd_open", "a kernel of 5.3 or later is needed")
    yield _splice()
    yield _overlay()


def _splice() -> Finding:
    source, sink = os.pipe(), os.pipe()
    try:
        os.write(source[1], b"x")
        os.splice(source[0], sink[1], 1)
        return ok("splice", "works between pipes")
    except OSError as error:
        return missing(
            "splice", f"does not work: {(error.strerror or '').lower()}", "output of containers needs splice(2)"
        )
    finally:
        for fd in (*source, *sink):
            os.close(fd)


def _overlay() -> Finding:
    filesystems = Path("/proc/filesystems").read_text().split()
    if "overlay" in filesystems:
        return ok("overlay", "is in the kernel")
    if any(Path("/lib/modules", os.uname().release).glob("kernel/fs/overlayfs/*")):
        return ok("overlay", "is a module that the kernel loads when it is needed")
    return missing("overlay", "is not in this kernel", "modprobe overlay, or use run --rootfs DIR")


def _cgroups() -> Iterator[Finding]:
    mounts = [line.split(" ") for line in os.fsdecode(Path("/proc/self/mounts").read_bytes()).split("\n") if line]
    v1 = {option for fields in mounts if fields[2] == "cgroup" for option in fields[3].split(",")}
    v2 = [fields[1] for fields in mounts if fields[2] == "cgroup2"]
    if "/sys/fs/cgroup" in v2:
        yield _cgroup_v2()
        return
    if not v1 & {"memory", "cpu", "devices"}:
        yield missing("cgroups", "none are mounted", "mount cgroup2 at /sys/fs/cgroup: systemd does it at boot")
        return
    yield ok("cgroups", "hybrid: controllers of version 1, beside version 2" if v2 else "version 1")
    for name in ("memory", "cpu", "pids", "devices", "freezer"):
        if name not in v1:
            yield note(
                "cgroups", f"controller {name} is not mounted", f"mount -t cgroup -o {name} {name} {_made(name)}"
            )
    if "hugetlb" not in v1 and v2 and shutil.which("crun", path=_SYSTEM_PATH):
        yield note(
            "cgroups",
            "controller hugetlb is not mounted, without which crun 1.8 fails on a hybrid machine",
            f"mkdir -p {_made('hugetlb')} && mount -t cgroup -o hugetlb hugetlb {_made('hugetlb')}",
        )


def _cgroup_v2() -> Finding:
    controllers = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    lacking = [name for name in ("memory", "cpu", "pids") if name not in controllers]
    if lacking:
        return note("cgroups", f"version 2, without {', '.join(lacking)}", "limits of these have no effect here")
    return ok("cgroups", "version 2")


def _made(controller: str) -> str:
    return f"/sys/fs/cgroup/{controller}"


def _system_python() -> Finding:
    said = _output("/usr/bin/python3", "--version")
    version = _version_of(said)
    if version >= _OLDEST_PYTHON:
        return ok("/usr/bin/python3", f"{said}: the shim runs by it")
    return note(
        "/usr/bin/python3",
        f"{said or 'is not there'}; the shim runs by the interpreter that dunnage is installed in",
        "install a system Python of 3.11 or later, so that the shim outlives that environment",
    )


def _runtimes() -> Iterator[Finding]:
    found = False
    for name in ("runc", "crun"):
        path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")
        if path is None:
            continue
        found = True
        said = _output(path, "--version").splitlines()
        yield ok(name, f"{said[0] if said else 'does not tell its version'} ({path})")
    if not found:
        yield missing("runtime", "neither runc nor crun is here", "apt-get install runc")


def _state_directory() -> Finding:
    existing = next(path for path in (DEFAULT_STATE, *DEFAULT_STATE.parents) if path.exists())
    if os.access(existing, os.W_OK | os.X_OK):
        return ok(str(DEFAULT_STATE), "is ours to write" if existing == DEFAULT_STATE else "can be made")
    return missing(str(DEFAULT_STATE), f"{existing} cannot be written", "run as root, on a writable /run")


def _configuration() -> Finding:
    if not os.path.exists(config.PATH):
        return ok(config.PATH, "is not there: every key has its default")
    try:
        config.load()
    except errors.Error as error:
        return missing(config.PATH, str(error), "correct it: no worker starts with it")
    return ok(config.PATH, "is understood")


def _containerd() -> Iterator[Finding]:
    path = shutil.which("containerd", path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")
    if path is None:
        yield note("containerd", "is not here; dunnage run works without it", "apt-get install containerd")
        return
    words = _output(path, "--version").split()
    yield ok("containerd", f"{words[2] if len(words) > 2 else 'of unknown version'} ({path})")
    shim = shutil.which(_SHIM, path=_SYSTEM_PATH)
    if shim is None:
        yield note("shim", f"{_SHIM} is not where containerd looks", "dunnage install")
    else:
        yield _shim(shim)
    yield _containerd_configuration()


def _shim(path: str) -> Finding:
    said = _output(path, "-v").split()
    if "Version:" not in said:
        return note("shim", f"{path} does not run", "dunnage install")
    return ok("shim", f"{path}, version {said[said.index('Version:') + 1]}")


def _containerd_configuration() -> Finding:
    subject = str(_CONTAINERD_CONFIG)
    runtimes = '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes'
    remedy = (
        f"ctr run --runtime {_RUNTIME_TYPE} needs no configuration; for Kubernetes add "
        f'{runtimes}.dunnage] with runtime_type = "{_RUNTIME_TYPE}", and {runtimes}.runc] with '
        f'runtime_type = "io.containerd.runc.v2", which a file that names any runtime must say again'
    )
    try:
        configuration = tomllib.loads(_CONTAINERD_CONFIG.read_text())
    except FileNotFoundError:
        return note(subject, "is not there: containerd runs with its defaults", remedy)
    except (OSError, ValueError) as error:
        return note(subject, f"cannot be read: {error}", "repair it: containerd will not start with it either")
    if _names_runtime(configuration):
        return ok(subject, f"has a runtime of type {_RUNTIME_TYPE}")
    return note(subject, f"has no runtime of type {_RUNTIME_TYPE}", remedy)


def _names_runtime(table: object) -> bool:
    if not isinstance(table, dict):
        return False
    return table.get("runtime_type") == _RUNTIME_TYPE or any(_names_runtime(value) for value in table.values())


def _output(*command: str) -> str:
    """What a program says; nothing where it cannot be asked."""
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=_CALL_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (asked.stdout or asked.stderr).strip()


def _version_of(text: str) -> tuple[int, ...]:
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)
