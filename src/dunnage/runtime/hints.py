"""What a failure most likely means, and what to do: a table of what runtimes, kernels and our own rooms say. Pure.

A hint says only what the words bear out; where nothing fits, there is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Hint(NamedTuple):
    """``text`` may name the group ``name`` of the pattern, in braces."""

    pattern: re.Pattern[str]
    text: str


def _hint(pattern: str, *text: str) -> Hint:
    return Hint(re.compile(pattern, re.IGNORECASE), "".join(text))


HINTS: tuple[Hint, ...] = (
    # the runtime
    _hint(
        r'(?:unable to retrieve OCI runtime error.*|^)exec: "(?P<name>[^"/]+)": executable file not found in \$PATH$',
        "the OCI runtime {name} is in no directory of the PATH that shims are run with: install it, or have the option",
        " BinaryName say its absolute path",
    ),
    _hint(
        r"fork/exec (?P<name>[^:]+): (?:no such file|not a directory)",
        "there is no OCI runtime {name}, or the interpreter that its first line names is missing: look at the option",
        " BinaryName",
    ),
    _hint(
        r"fork/exec (?P<name>[^:]+): permission denied",
        "the OCI runtime {name} is not executable, or its file system is mounted noexec",
    ),
    _hint(
        r"fork/exec (?P<name>[^:]+): exec format error",
        "the OCI runtime {name} is no program of this machine: made for another, or a script without its first line #!",
    ),
    _hint(
        r"container with given ID already exists|container [`'\"][^`'\"]+[`'\"] already exists",
        "the runtime has a container of this id still: with its --root, `list` shows it, `delete --force` removes it",
    ),
    _hint(
        r"did not end within [0-9.]+ s",
        "a process hangs, in the kernel or waiting for another; /proc/PID/stack and /proc/PID/wchan say where, and",
        " /etc/dunnage/config.toml has the deadline",
    ),
    _hint(
        r"exit status 137\b",
        "the runtime was killed: for want of memory, as the kernel's log then says, or by somebody",
    ),
    # the command
    _hint(
        r"exec: \"(?P<name>[^\"/]+)\": executable file not found in \$PATH",
        "{name} is in no directory of the PATH that the process has in the container",
    ),
    _hint(
        r"executable file [`'](?P<name>[^`']+)['`] not found in \$PATH",
        "{name} is not in the container, at that path or in the PATH that the process has there",
    ),
    _hint(
        r"exec: \"(?P<name>/[^\"]*)\": stat [^:]*: no such file",
        "the container's root has no {name}",
    ),
    _hint(
        r"exec (?:container process )?[`'\"]?(?P<name>/[^:`'\"]*)[`'\"]?: no such file",
        "{name} is there, and what runs it is not: the interpreter of its first line #!, or its dynamic loader",
    ),
    _hint(
        r"exec\w*[ :].*exec format error|^exec: exec format error",
        "the command is no program of this machine: its image is for another, or it is a script without its first",
        " line #!",
    ),
    _hint(
        r"exec: \"(?P<name>[^\"]+)\": (?:permission denied|is a directory)",
        "{name} is a directory, or not executable for the container's user: look at its mode and owner, and at the",
        " directories above it",
    ),
    _hint(
        r"open executable: (?:permission denied|operation not permitted)",
        "the command is a directory, or not executable for the container's user: look at its mode and owner, and at",
        " the directories above it",
    ),
    _hint(
        r"chdir to cwd \(\"(?P<name>[^\"]*)\"\)|chdir to [`'](?P<name2>[^`']*)[`']",
        "the container has no directory {name} to work in, or its user may not enter it",
    ),
    _hint(
        r"unknown version specified",
        "the spec is of an OCI version that this crun does not know: it needs a newer crun",
    ),
    # cgroups
    _hint(
        r"cannot use systemd cgroups|cannot open sd-bus|systemd not running on this host",
        "the option SystemdCgroup has systemd make the cgroup, and systemd does not answer on this machine: leave the",
        " option out, here and in the kubelet (cgroupDriver)",
    ),
    _hint(
        r"expected cgroupsPath to be of format \"slice:prefix:name\"",
        "the option SystemdCgroup is set, and whoever made the spec does not use systemd: have both do it, or neither",
    ),
    _hint(
        r"^(?!.*hugetlb\.).*hugetlb",
        "crun wants the controller hugetlb of cgroup v1 on a machine that has both versions: `dunnage doctor` says how",
        " to mount it; runc does without",
    ),
    _hint(
        r"unable to set memory limit to \d+|memory limit could be too low",
        "the memory limit is below what the runtime itself needs to begin the container",
    ),
    _hint(
        r"/cpuset/.*no space left on device",
        "a cpuset of cgroup v1 has no processors or memory nodes (cpuset.cpus, cpuset.mems): fill in its parent's",
    ),
    _hint(
        r"cgroup.*read-only file system",
        "the cgroups are mounted read-only here: is this itself a container without privileges?",
    ),
    _hint(
        r"cgroup.*device or resource busy",
        "the cgroup has processes, or cgroups below it: something of an earlier container still runs there",
    ),
    # security
    _hint(
        r"apparmor",
        "the spec's apparmorProfile is not loaded, or this kernel has no AppArmor: aa-status says which there are",
    ),
    _hint(
        r"selinux|/attr/keycreate",
        "the spec has an SELinux label, and SELinux is disabled here or does not know it",
    ),
    _hint(
        r"seccomp",
        "the spec's seccomp filter is not one that this runtime, its libseccomp or this kernel can make",
    ),
    # room
    _hint(
        r"no space left on device",
        "a file system is full, of bytes or of inodes: df and df -i say which",
    ),
    _hint(
        r"too many open files",
        "a limit of open files is reached: of the process (ulimit -n) or of the machine (fs.file-max,",
        " fs.inotify.max_user_instances)",
    ),
    _hint(
        r"resource temporarily unavailable",
        "no further process can be made: pids.max of a cgroup, ulimit -u or kernel.pid_max is reached",
    ),
    _hint(
        r"cannot allocate memory",
        "memory is short, on this machine or in the cgroup of the shim",
    ),
    # mounts
    _hint(
        r"(?:pivot_root|pivot root).*invalid argument",
        "the root is one that cannot be pivoted, as an initramfs is: set the option NoPivotRoot",
    ),
    _hint(
        r"mount.*(?:mkdir|creat\w*|open\w*) .*read-only file system",
        "a mount's target is missing in the container's root, which is read-only: it must be in the image",
    ),
    _hint(
        r"mount.*not a directory",
        "one of a mount's source and target is a directory, and the other a file",
    ),
    _hint(
        r"mount.*(?:stat|source) (?P<name>/[^:]*): no such file|stat'ing file [`'](?P<name2>[^`']*)[`']: no such file",
        "this machine has no {name} to be mounted",
    ),
)
"""The first that fits counts: what is particular comes before what is general."""


def hint_for(texts: Iterable[str]) -> str:
    """The hint for what was said, the most telling words first; empty: there is none."""
    for text in texts:
        for hint in HINTS:
            found = hint.pattern.search(text)
            if found is not None:
                return hint.text.format(name=next(filter(None, found.groups()), ""))
    return ""
