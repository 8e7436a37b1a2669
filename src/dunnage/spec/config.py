"""The specification of a container that was described in a few words; the rest is as containerd's own clients have it.

The defaults (capabilities, mounts, masked and read-only paths, devices) are those of containerd's `oci` package, so
that a command runs here as it runs under ctr; only rlimits are not set, since the caller's are meant.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from dunnage import errors
from dunnage.spec.resources import Resources
from dunnage.spec.users import resolve_user
from dunnage.spec.values import Mount

OCI_VERSION = "1.0.2"

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
MOUNTS = (
    Mount("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    Mount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    Mount("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    Mount("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
    Mount("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    Mount("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    Mount("/run", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
)
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def make_spec(
    args: Sequence[str],
    *,
    env: Sequence[str] = (),
    cwd: str = "/",
    user: str | None = None,
    terminal: bool = False,
    hostname: str | None = None,
    mounts: Iterable[Mount] = (),
    memory_bytes: int | None = None,
    cpus: float | None = None,
    pids: int | None = None,
    network: Literal["host", "none"] = "host",
    read_only: bool = False,
    rootfs_path: str = "rootfs",
    cgroups_path: str | None = None,
    annotations: Mapping[str, str] | None = None,
    users_root: str | os.PathLike[str] | None = None,
    unified: bool | None = None,
) -> dict[str, Any]:
    """A config.json as a dictionary; InvalidArgument for what no container can have.

    ``env`` is of ``NAME=value``. ``mounts`` come after the default ones, and in place of one with the same destination.
    ``users_root`` is where the names in ``user`` can be looked up now, if that isn't ``rootfs_path``. ``unified`` says
    whether the host has cgroup v2 alone (None: see for yourself); the container then gets a cgroup namespace.
    """
    check_words("command", args)
    check_words("environment", env)
    check_process(args, env, cwd)
    own = list(mounts)
    _check(own, rootfs_path, hostname, pids, network)
    limits = Resources(memory_bytes=memory_bytes, cpus=cpus, pids=pids)
    taken = {mount.destination for mount in own}
    capabilities = list(CAPABILITIES)
    spec: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": terminal,
            "user": resolve_user(user, rootfs_path if users_root is None else users_root),
            "args": list(args),
            "env": list(env),
            "cwd": cwd,
            "capabilities": {
                "bounding": capabilities,
                "effective": list(capabilities),
                "permitted": list(capabilities),
            },
            "noNewPrivileges": True,
        },
        "root": {"path": rootfs_path, "readonly": read_only},
        "mounts": [mount.to_oci() for mount in (*(m for m in MOUNTS if m.destination not in taken), *own)],
        "linux": {
            # the runtime itself adds the devices that every container has
            "resources": {"devices": [{"allow": False, "access": "rwm"}], **limits.to_oci()},
            "namespaces": [{"type": name} for name in _namespaces(network, unified)],
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
        },
    }
    if hostname:
        spec["hostname"] = hostname
    if cgroups_path:
        spec["linux"]["cgroupsPath"] = cgroups_path
    if annotations:
        spec["annotations"] = dict(annotations)
    return spec


def merge_env(base: Sequence[str], changes: Sequence[str]) -> list[str]:
    """`base` with the variables of `changes` (``NAME=value``) in their place."""
    merged = dict(entry.partition("=")[::2] for entry in base)
    merged.update(entry.partition("=")[::2] for entry in changes)
    return [f"{name}={value}" for name, value in merged.items()]


def check_process(args: Sequence[str], env: Sequence[str], cwd: str) -> None:
    """InvalidArgument for a command, environment or working directory that no process can have."""
    if not args or not args[0]:
        raise errors.InvalidArgument("no command to run")
    if not cwd.startswith("/"):
        raise errors.InvalidArgument(f"working directory {cwd!r} is not an absolute path")
    for variable in env:
        if variable.find("=") < 1:
            raise errors.InvalidArgument(f"environment variable {variable!r} is not of the form NAME=value")
    if any("\0" in text for text in (*args, *env, cwd)):
        raise errors.InvalidArgument("a zero byte in command, environment or working directory")
    check_text("command", *args)
    check_text("environment variable", *env)
    check_text("working directory", cwd)


def check_words(what: str, texts: object) -> None:
    """InvalidArgument where one text, or anything else, stands for a list of them: Python would take its letters."""
    if not isinstance(texts, Sequence) or isinstance(texts, str | bytes):
        raise errors.InvalidArgument(f"{what} {texts!r} is not a list of texts")
    for text in texts:
        if not isinstance(text, str):
            raise errors.InvalidArgument(f"{what}: {text!r} is not a text")


def check_text(what: str, *texts: str) -> None:
    """InvalidArgument for what is not UTF-8: a specification is JSON, which would have other bytes in its place."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise errors.InvalidArgument(f"{what} {text!r} is not UTF-8") from None


def _check(mounts: Iterable[Mount], rootfs_path: str, hostname: str | None, pids: int | None, network: str) -> None:
    check_text("root", rootfs_path)
    check_text("host name", hostname or "")
    for mount in mounts:
        check_text("mount", mount.source, mount.destination, mount.type, *mount.options)
    if pids is not None and pids < 1:
        raise errors.InvalidArgument(f"a limit of {pids} processes is less than 1")
    if network not in ("host", "none"):
        raise errors.InvalidArgument(f"network {network!r} is neither host nor none")


def _namespaces(network: str, unified: bool | None) -> list[str]:
    if unified is None:
        unified = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    return [
        *("pid", "ipc", "uts", "mount"),
        *(["network"] if network == "none" else []),
        *(["cgroup"] if unified else []),
    ]
